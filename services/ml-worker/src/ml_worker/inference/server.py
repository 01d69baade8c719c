"""The gRPC server of the Open Inference Protocol, in the process that has the models."""

from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Final

import grpc
import structlog
from fluoro_jobs.settings import from_environment
from open_inference.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server

from ml_worker.images import Models
from ml_worker.inference.service import InferenceService
from ml_worker.inference.settings import PREFIX, InferenceSettings
from ml_worker.registry import Registry
from ml_worker.registry import warm_up as open_models

log = structlog.get_logger(__name__)

GRACE_SECONDS: Final = 5
"""How long calls may go on after the server was told to stop."""


class InferenceServer:
    """A server that runs. port: the one it listens on."""

    def __init__(self, models: Models, settings: InferenceSettings) -> None:
        """Serves at the settings' address. RuntimeError or ValueError if that cannot be."""
        assert settings.address is not None  # the caller looked
        self._server = grpc.server(
            ThreadPoolExecutor(settings.calls, thread_name_prefix="inference"),
            # As many as threads: calls beyond them would wait in a queue without an end.
            maximum_concurrent_rpcs=settings.calls,
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                # With it, a second worker could take the same port, and each would get some of the
                # calls.
                ("grpc.so_reuseport", 0),
            ],
        )
        service = InferenceService(models, version("ml-worker"), settings.call_seconds)
        add_GRPCInferenceServiceServicer_to_server(service, self._server)
        self.port: int = self._listen(settings)
        self._server.start()
        log.info("inference_ready", port=self.port, tls=settings.tls_files is not None)

    def _listen(self, settings: InferenceSettings) -> int:
        address = settings.address or ""
        try:
            if settings.tls_files is None:
                # `InferenceSettings` lets only loopback be served without TLS.
                return int(self._server.add_insecure_port(address))
            certificate, key, authorities = (path.read_bytes() for path in settings.tls_files)
            credentials = grpc.ssl_server_credentials(
                [(key, certificate)], authorities, require_client_auth=True
            )
            return int(self._server.add_secure_port(address, credentials))
        except RuntimeError as error:
            raise RuntimeError(
                f"The Open Inference Protocol cannot be served at {PREFIX}ADDRESS ({address}). Is "
                "the port taken, or do certificate and key not fit?"
            ) from error

    def close(self) -> None:
        """Ends it, and the calls that are still there after the grace period."""
        self._server.stop(GRACE_SECONDS).wait(2 * GRACE_SECONDS)


_running: list[InferenceServer] = []


def warm_up() -> Registry:
    """Opens the models of this process, and serves them if the settings name an address."""
    settings = from_environment(InferenceSettings)
    models = open_models()
    # The warm-up may be asked for again; the port is taken then, by ourselves.
    if settings.address is not None and not _running:
        _running.append(InferenceServer(models, settings))
    return models


def close() -> None:
    """Ends the server of this process, if there is one."""
    while _running:
        _running.pop().close()
