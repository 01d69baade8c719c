"""PipelineService: says which pipelines there are."""

from fluoro.v1.pipeline_service_pb2 import (
    GetPipelineRequest,
    GetPipelineResponse,
    ListPipelinesRequest,
    ListPipelinesResponse,
)
from fluoro_jobs.pipelines import Pipelines

from gateway.rpc import Call


class PipelineCatalogue:
    """The methods of fluoro.v1.PipelineService."""

    def __init__(self, pipelines: Pipelines) -> None:
        self._pipelines = pipelines

    async def list_pipelines(
        self, request: ListPipelinesRequest, _call: Call
    ) -> ListPipelinesResponse:
        """A page of pipelines."""
        return self._pipelines.page(request)

    async def get_pipeline(self, request: GetPipelineRequest, _call: Call) -> GetPipelineResponse:
        """One pipeline."""
        found = self._pipelines.find(request.name, "name")
        return GetPipelineResponse(pipeline=found.as_proto())
