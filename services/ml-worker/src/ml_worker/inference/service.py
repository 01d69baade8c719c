"""Answers calls of the Open Inference Protocol by the models of this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import Event, Timer
from typing import Any, Final, NoReturn, Protocol, TypeVar

import grpc
import structlog
from fluoro_jobs.errors import CancelledAttempt, FluoroError, Reason
from open_inference import open_inference_pb2 as wire
from open_inference import open_inference_pb2_grpc

from ml_worker.images import Models
from ml_worker.inference.tensors import described, read_inputs, wanted_outputs, write_outputs
from ml_worker.waiting import Alone

log = structlog.get_logger(__name__)

NAME: Final = "fluoro-ml-worker"
PLATFORM: Final = "onnxruntime_onnx"
"""As Triton calls it."""
CODES: Final = {
    Reason.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.MODEL_UNKNOWN: grpc.StatusCode.NOT_FOUND,
    Reason.MODEL_UNAVAILABLE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.IMAGE_TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.MODEL_RUN_FAILED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.MODEL_OUTPUT_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.MODEL_RUN_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""How a call ends for a reason; INTERNAL for others."""

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Context(Protocol):
    """What gRPC tells of a call, as far as it is needed here."""

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """Ends the call, by raising."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Calls back once the call is over; False if it is."""

    def auth_context(self) -> Any:
        """Who calls, by their certificate."""


class _CallEndedError(Exception):
    """The call ends with a code and words."""

    def __init__(self, code: grpc.StatusCode, words: str) -> None:
        super().__init__(words)
        self.code = code


def answered(
    method: Callable[[Any, Request, Context], Answer],
) -> Callable[[Any, Request, Context], Answer]:
    """Ends calls that go wrong with a code and a sentence, never with what Python says."""

    @wraps(method)
    def call(self: Any, request: Request, context: Context) -> Answer:
        try:
            return method(self, request, context)
        except _CallEndedError as error:
            code, words = error.code, str(error)
        except FluoroError as error:
            code = CODES.get(error.reason, grpc.StatusCode.INTERNAL)
            words = f"{error.reason}: {error.message}"
        except Exception as error:  # noqa: BLE001 - its text may quote what was sent
            log.error("inference_failed", exception=type(error).__qualname__)
            code, words = grpc.StatusCode.INTERNAL, f"{Reason.INTERNAL}: The call failed."
        return context.abort(code, words)

    return call


class InferenceService(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Models for callers who bring tensors. Their samples run in batches with those of jobs."""

    def __init__(self, models: Models, version: str, call_seconds: float) -> None:
        """version: of this server. call_seconds: longest time of a call."""
        self._models, self._version, self._call_seconds = models, version, call_seconds

    @answered
    def ServerLive(  # noqa: N802 - the contract's name
        self, _request: wire.ServerLiveRequest, _context: Context
    ) -> wire.ServerLiveResponse:
        """It is."""
        return wire.ServerLiveResponse(live=True)

    @answered
    def ServerReady(  # noqa: N802 - the contract's name
        self, _request: wire.ServerReadyRequest, _context: Context
    ) -> wire.ServerReadyResponse:
        """It is: it is started once the models are open."""
        return wire.ServerReadyResponse(ready=True)

    @answered
    def ModelReady(  # noqa: N802 - the contract's name
        self, request: wire.ModelReadyRequest, _context: Context
    ) -> wire.ModelReadyResponse:
        """Whether there is such a model, and it is READY."""
        try:
            self._models.find(request.name, request.version)
        except FluoroError:
            return wire.ModelReadyResponse(ready=False)
        return wire.ModelReadyResponse(ready=True)

    @answered
    def ServerMetadata(  # noqa: N802 - the contract's name
        self, _request: wire.ServerMetadataRequest, _context: Context
    ) -> wire.ServerMetadataResponse:
        """No extensions."""
        return wire.ServerMetadataResponse(name=NAME, version=self._version)

    @answered
    def ModelMetadata(  # noqa: N802 - the contract's name
        self, request: wire.ModelMetadataRequest, _context: Context
    ) -> wire.ModelMetadataResponse:
        """What the manifest says."""
        manifest = self._models.find(request.name, request.version).manifest
        return wire.ModelMetadataResponse(
            name=manifest.name,
            versions=[manifest.version],
            platform=PLATFORM,
            inputs=[described(tensor) for tensor in manifest.inputs],
            outputs=[described(output) for output in manifest.outputs],
        )

    @answered
    def ModelInfer(  # noqa: N802 - the contract's name
        self, request: wire.ModelInferRequest, context: Context
    ) -> wire.ModelInferResponse:
        """Runs the model on the samples, along with those of jobs."""
        model = self._models.find(request.model_name, request.model_version)
        outputs = wanted_outputs(request, model.manifest)
        inputs = read_inputs(request, model.manifest)
        # Reading and checking come before: a call that is refused takes no turn.
        with _within(self._call_seconds, context) as caller:
            found = model.run(inputs, caller)
        response = wire.ModelInferResponse(
            model_name=model.manifest.name, model_version=model.manifest.version, id=request.id
        )
        write_outputs(response, found, outputs)
        return response


@contextmanager
def _within(seconds: float, context: Context) -> Iterator[Alone]:
    """A caller who leaves when the call ends, or after that time."""
    is_late = Event()
    caller = Alone(owner_of(context))

    def ring() -> None:
        is_late.set()
        caller.cancelled.set()

    # The call is over already, and nobody would call back.
    if not context.add_callback(caller.cancelled.set):
        caller.cancelled.set()
    alarm = Timer(seconds, ring)
    # A timer must not keep the process from ending.
    alarm.daemon = True
    alarm.start()
    try:
        yield caller
    except CancelledAttempt:
        # Both set the same event, and only this tells the two ends apart.
        if is_late.is_set():
            raise _CallEndedError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"The call took more than the {seconds:g} s that this server allows.",
            ) from None
        raise _CallEndedError(grpc.StatusCode.CANCELLED, "The caller has left.") from None
    finally:
        alarm.cancel()


def owner_of(context: Context) -> str:
    """Whose turn it is in the batches: the certificate's common name; one for all without TLS.

    No owner of jobs has a slash.
    """
    names = context.auth_context().get("x509_common_name", [b""])
    return f"inference/{names[0].decode(errors='replace')}"
