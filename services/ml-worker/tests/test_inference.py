"""The Open Inference Protocol on a server of its own, called with stubs of the wire contract."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from ml_worker.inference.server import InferenceServer
from ml_worker.inference.settings import InferenceSettings
from ml_worker.registry import Registry
from ml_worker.settings import ModelSettings
from open_inference import open_inference_pb2 as wire
from open_inference.open_inference_pb2_grpc import GRPCInferenceServiceStub as Stub
from prometheus_client import REGISTRY
from pydantic import ValidationError

SECONDS = 20
MIB = 2**20


@pytest.fixture(scope="module")
def registry(
    tmp_path_factory: pytest.TempPathFactory,
    make_double: Callable[..., Path],
    write_endless: Callable[[Path], None],
) -> Registry:
    """The models that ship, one that doubles two numbers, and one whose run may never end."""
    folder = tmp_path_factory.mktemp("models")
    make_double(folder)
    write_endless(folder)
    models = Registry(ModelSettings(models_folder=folder))
    models.open()
    return models


@pytest.fixture(scope="module")
def serve(registry: Registry) -> Iterator[Callable[..., Stub]]:
    """Stubs of servers with these settings."""
    servers, channels = [], []

    def start(**settings: Any) -> Stub:
        found = InferenceSettings(address="127.0.0.1:0", **settings)
        servers.append(InferenceServer(registry, found))
        channels.append(grpc.insecure_channel(f"127.0.0.1:{servers[-1].port}"))
        return Stub(channels[-1])

    yield start
    for channel in channels:
        channel.close()
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def stub(serve: Callable[..., Stub]) -> Stub:
    return serve(max_message_bytes=MIB)


def double(*rows: tuple[float, float], **fields: Any) -> wire.ModelInferRequest:
    x = np.array(rows, "<f4")
    tensor = wire.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=x.shape)
    return wire.ModelInferRequest(
        **{
            "model_name": "double",
            "id": "7",
            "inputs": [tensor],
            "raw_input_contents": [x.tobytes()],
            **fields,
        }
    )


def endless(value: float) -> wire.ModelInferRequest:
    request = wire.ModelInferRequest(
        model_name="endless", raw_input_contents=[np.full((1, 4, 4), value, "<f4").tobytes()]
    )
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4, 4])
    return request


def values(response: wire.ModelInferResponse) -> list[Any]:
    (output,), (data,) = response.outputs, response.raw_output_contents
    assert (output.name, output.datatype) == ("y", "FP32")
    return np.frombuffer(data, "<f4").reshape(output.shape).tolist()  # type: ignore[no-any-return]


def test_a_model_says_what_it_takes_and_gives_what_it_gives(stub: Stub) -> None:
    assert stub.ServerLive(wire.ServerLiveRequest(), timeout=SECONDS).live
    assert stub.ServerReady(wire.ServerReadyRequest(), timeout=SECONDS).ready
    assert stub.ServerMetadata(wire.ServerMetadataRequest(), timeout=SECONDS).name
    about = stub.ModelMetadata(wire.ModelMetadataRequest(name="double"), timeout=SECONDS)
    assert (about.name, about.versions, about.platform) == ("double", ["1.0.0"], "onnxruntime_onnx")
    assert [(each.name, each.datatype, each.shape) for each in (*about.inputs, *about.outputs)] == [
        ("x", "FP32", [-1, 2]),
        ("y", "FP32", [-1, 2]),
    ]
    # Many samples are several runs of this model, and come back as one answer.
    rows = [(n, n + 0.5) for n in range(9)]
    response = stub.ModelInfer(double(*rows), timeout=SECONDS)
    assert (response.model_name, response.model_version, response.id) == ("double", "1.0.0", "7")
    assert values(response) == [[2 * a, 2 * b] for a, b in rows]
    typed = double((1, 2), raw_input_contents=[], model_version="1.0.0")
    typed.inputs[0].contents.fp32_contents.extend([1, 2])
    typed.outputs.add(name="y")
    assert values(stub.ModelInfer(typed, timeout=SECONDS)) == [[2, 4]]
    for name, version, ready in (
        ("double", "", True),
        ("double", "9.9.9", False),
        ("?", "", False),
    ):
        request = wire.ModelReadyRequest(name=name, version=version)
        assert stub.ModelReady(request, timeout=SECONDS).ready is ready


def test_calls_at_the_same_time_share_runs_and_each_gets_its_own_answer(stub: Stub) -> None:
    def runs() -> float:
        return REGISTRY.get_sample_value("fluoro_model_run_samples_count", {"model": "double"}) or 0

    before = runs()
    with ThreadPoolExecutor(12) as pool:
        answers = list(
            pool.map(lambda n: stub.ModelInfer(double((n, n)), timeout=SECONDS), range(12))
        )
    assert [values(each) for each in answers] == [[[2 * n, 2 * n]] for n in range(12)]
    assert 0 < runs() - before <= 12


def without(field: str) -> wire.ModelInferRequest:
    request = double((1, 2))
    request.ClearField(field)  # type: ignore[arg-type]
    return request


def told(**fields: Any) -> wire.ModelInferRequest:
    request = double((1, 2))
    tensor = request.inputs[0]
    for name, value in fields.items():
        if isinstance(value, list):
            tensor.ClearField(name)  # type: ignore[arg-type]
            getattr(tensor, name).extend(value)
        else:
            setattr(tensor, name, value)
    return request


PARAMETER = {"timeout": wire.InferParameter(int64_param=1)}
TWICE = list(double((1, 2)).inputs) * 2


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (double((1, 2), model_name="unseen"), "NOT_FOUND", "MODEL_UNKNOWN: This worker has no"),
        (double((1, 2), model_version="2.0.0"), "NOT_FOUND", "MODEL_UNKNOWN"),
        (without("inputs"), "INVALID_ARGUMENT", "each of these inputs once: x"),
        (double((1, 2), inputs=TWICE), "INVALID_ARGUMENT", "each of these inputs once"),
        (without("raw_input_contents"), "INVALID_ARGUMENT", "its 2 values in fp32_contents"),
        (told(datatype="FP64"), "INVALID_ARGUMENT", "x must be FP32"),
        (told(shape=[1, 3]), "INVALID_ARGUMENT", "x must have the shape"),
        (told(shape=[0, 2]), "INVALID_ARGUMENT", "each axis 1 at least"),
        (told(shape=[-1, 2]), "INVALID_ARGUMENT", "each axis 1 at least"),
        (told(shape=[2**62, 2]), "INVALID_ARGUMENT", "raw contents of x"),
        (told(name="X"), "INVALID_ARGUMENT", "inputs once: x"),
        (double((1, 2), raw_input_contents=[b"1"]), "INVALID_ARGUMENT", "raw contents of x"),
        (double((1, 2), raw_input_contents=[b""] * 2), "INVALID_ARGUMENT", "an entry per input"),
        (double((1, 2), parameters=PARAMETER), "INVALID_ARGUMENT", "no parameters"),
        (
            double((1, 2), outputs=[{"name": "z"}]),
            "INVALID_ARGUMENT",
            "the model has these outputs: y",
        ),
        (double((np.nan, 2)), "INVALID_ARGUMENT", "MODEL_OUTPUT_INVALID: double 1.0.0 gave"),
        (double(*[(1, 2)] * (MIB // 4)), "RESOURCE_EXHAUSTED", "larger than max"),
    ],
)
def test_what_cannot_be_run_is_refused_with_a_code_and_words(
    stub: Stub, request_: wire.ModelInferRequest, code: str, words: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request_, timeout=SECONDS)
    assert (caught.value.code().name, words in caught.value.details()) == (code, True), (
        caught.value.details()
    )
    assert "Traceback" not in caught.value.details()
    assert values(stub.ModelInfer(double((1, 2)), timeout=SECONDS)) == [[2, 4]]


def test_a_call_that_takes_too_long_ends_and_the_next_ones_run(
    serve: Callable[..., Stub],
) -> None:
    stub = serve(call_seconds=2)
    began = time.monotonic()
    for timeout in (SECONDS, 0.2):  # by the server's limit, and by the caller's
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(endless(1), timeout=timeout)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    found = stub.ModelInfer(endless(0), timeout=SECONDS)
    assert found.outputs[0].datatype == "UINT8"
    assert time.monotonic() - began < SECONDS


def test_calls_over_the_limit_are_refused_at_once(serve: Callable[..., Stub]) -> None:
    stub = serve(calls=1, call_seconds=SECONDS)
    stuck = stub.ModelInfer.future(endless(1), timeout=SECONDS)  # type: ignore[attr-defined]
    until = time.monotonic() + SECONDS
    code = None
    while code != grpc.StatusCode.RESOURCE_EXHAUSTED and time.monotonic() < until:
        if stuck.done():  # the other call was there first
            stuck = stub.ModelInfer.future(endless(1), timeout=SECONDS)  # type: ignore[attr-defined]
        try:
            stub.ServerLive(wire.ServerLiveRequest(), timeout=SECONDS)
        except grpc.RpcError as error:
            code = error.code()
    stuck.cancel()
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_bug_says_nothing_of_what_was_sent(
    stub: Stub, registry: Registry, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("Doe^Jane")

    monkeypatch.setattr(registry, "find", broken)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(double((1, 2)), timeout=SECONDS)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert "Doe" not in caught.value.details() + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"address": "0.0.0.0:8001"}, "without TLS everyone"),
        ({"address": "example.com:8001"}, "without TLS everyone"),
        ({"address": "127.0.0.1"}, "match pattern"),
        ({"address": "127.0.0.1:1", "tls_key_file": __file__}, "belong together"),
        (
            dict.fromkeys(("tls_certificate_file", "tls_key_file", "tls_client_ca_file"), __file__),
            "need FLUORO_ML_INFERENCE_ADDRESS",
        ),
    ],
)
def test_settings_that_would_let_everyone_in_or_follow_nothing_are_refused(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        InferenceSettings(**settings)
    for address in (None, "127.0.0.1:8001", "[::1]:8001", "localhost:8001"):
        InferenceSettings(address=address)


def test_a_port_that_is_taken_is_said_to_be(registry: Registry) -> None:
    first = InferenceServer(registry, InferenceSettings(address="127.0.0.1:0"))
    try:
        with pytest.raises(RuntimeError, match="port taken"):
            InferenceServer(registry, InferenceSettings(address=f"127.0.0.1:{first.port}"))
    finally:
        first.close()
