"""DeploymentService over the state in memory."""

from importlib.metadata import version

from fluoro.v1 import deployment_service_pb2, deployment_service_pb2_grpc

from fluoro_client.testing.calls import Context, Service


class Deployment(Service, deployment_service_pb2_grpc.DeploymentServiceServicer):
    """fluoro.v1.DeploymentService."""

    def DiagnoseDeployment(
        self, request: deployment_service_pb2.DiagnoseDeploymentRequest, context: Context
    ) -> deployment_service_pb2.DiagnoseDeploymentResponse:
        """The findings that the test gave the gateway."""

        def diagnose(_: str) -> deployment_service_pb2.DiagnoseDeploymentResponse:
            answer = deployment_service_pb2.DiagnoseDeploymentResponse(
                findings=self._state.findings, version=version("fluoro-client")
            )
            answer.time.GetCurrentTime()
            return answer

        return self._answer("DiagnoseDeployment", request, context, diagnose)
