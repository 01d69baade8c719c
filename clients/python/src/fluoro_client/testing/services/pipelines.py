"""PipelineService over the state in memory."""

from fluoro.v1 import pipeline_service_pb2, pipeline_service_pb2_grpc

from fluoro_client.testing.calls import Context, Service
from fluoro_client.testing.pipelines import page


class PipelineService(Service, pipeline_service_pb2_grpc.PipelineServiceServicer):
    """fluoro.v1.PipelineService."""

    def ListPipelines(
        self, request: pipeline_service_pb2.ListPipelinesRequest, context: Context
    ) -> pipeline_service_pb2.ListPipelinesResponse:
        """Pipelines by name."""
        return self._answer(
            "ListPipelines", request, context, lambda _: page(self._state.pipelines, request)
        )

    def GetPipeline(
        self, request: pipeline_service_pb2.GetPipelineRequest, context: Context
    ) -> pipeline_service_pb2.GetPipelineResponse:
        """One of them."""

        def get(_: str) -> pipeline_service_pb2.GetPipelineResponse:
            found = self._state.pipelines.find(request.name, "name").shown
            return pipeline_service_pb2.GetPipelineResponse(pipeline=found)

        return self._answer("GetPipeline", request, context, get)
