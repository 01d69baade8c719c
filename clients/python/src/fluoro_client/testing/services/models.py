"""ModelService over the state in memory."""

from fluoro.v1 import model_pb2, model_service_pb2, model_service_pb2_grpc

from fluoro_client.testing.calls import Context, Service
from fluoro_client.testing.faults import RefusalError, invalid


class Models(Service, model_service_pb2_grpc.ModelServiceServicer):
    """fluoro.v1.ModelService."""

    def ListModels(
        self, request: model_service_pb2.ListModelsRequest, context: Context
    ) -> model_service_pb2.ListModelsResponse:
        """The models that the test gave the gateway, in their order: a test has few."""

        def listed(_: str) -> model_service_pb2.ListModelsResponse:
            if request.page_size < 0:
                raise invalid("page_size", "Must not be negative.")
            answer = model_service_pb2.ListModelsResponse(models=self._state.models)
            for model in answer.models:
                model.ClearField("card")
            return answer

        return self._answer("ListModels", request, context, listed)

    def GetModel(
        self, request: model_service_pb2.GetModelRequest, context: Context
    ) -> model_service_pb2.GetModelResponse:
        """One of them."""

        def get(_: str) -> model_service_pb2.GetModelResponse:
            if not request.name.startswith("models/"):
                raise invalid("name", "Must be models/{id} or models/{id}/versions/{version}.")
            return model_service_pb2.GetModelResponse(model=_found(self._state.models, request))

        return self._answer("GetModel", request, context, get)


def _found(
    models: list[model_pb2.Model], request: model_service_pb2.GetModelRequest
) -> model_pb2.Model:
    for model in models:
        if request.name in {model.name, model.name.partition("/versions/")[0]}:
            return model
    text = "No live worker has such a model, or not in this version. ListModels has all."
    raise RefusalError("MODEL_UNKNOWN", text, ("name", text))
