"""ml-worker's Open Inference Protocol, called by NVIDIA's client over mTLS."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from fluoro_jobs.testing.rig import Rig, until
from gateway.testing_identity import Authority
from ml_worker.settings import SHIPPED_MODELS
from open_inference import open_inference_pb2 as wire
from open_inference.open_inference_pb2_grpc import GRPCInferenceServiceStub

REQUIREMENTS = Path(__file__).parents[2] / "requirements" / "tritonclient.txt"
SECONDS = 60
PROGRAM = """
import json, sys
import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

address, sample, ca, key, certificate = sys.argv[1:]
client = grpc.InferenceServerClient(
    address, ssl=True, root_certificates=ca, private_key=key, certificate_chain=certificate
)
told = {
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "model": client.is_model_ready("ct-tissue"),
    "unseen": client.is_model_ready("unseen"),
    "server": client.get_server_metadata().name,
    "about": client.get_model_metadata("ct-tissue", as_json=True),
}
arrays = np.load(sample)
(name,) = (tensor["name"] for tensor in told["about"]["inputs"])
wanted = [tensor["name"] for tensor in told["about"]["outputs"]]


def shown(values):
    given = grpc.InferInput(name, values.shape, "FP32")
    given.set_data_from_numpy(values)
    return client.infer("ct-tissue", [given], client_timeout=30, request_id="7")


result = shown(arrays[name])
told["same"] = {
    each: np.allclose(result.as_numpy(each), arrays[each], equal_nan=True) for each in wanted
}
told["id"] = result.get_response().id
try:
    shown(arrays[name][0])
except InferenceServerException as error:
    told["refused"] = [error.status(), error.message()]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def tritonclient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client and what it needs: not beside ours, whose protobuf is newer."""
    folder = tmp_path_factory.mktemp("tritonclient")
    uv = Path(sys.executable).with_name("uv")
    install = [str(uv), "pip", "install", "--quiet", "--require-hashes", "-r", str(REQUIREMENTS)]
    done = subprocess.run(
        [*install, "--python", sys.executable, "--target", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    if done.returncode:
        verdict = pytest.fail if os.environ.get("CI") else pytest.skip
        verdict(f"tritonclient cannot be installed: {done.stderr}")
    return folder


def test_nvidias_client_runs_a_model_of_a_worker_that_knows_its_certificate(
    rig: Rig, tritonclient: Path, tmp_path: Path
) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    certificate, key, _ = authority.issue("worker")
    rig.start(
        "ml_worker",
        ml_inference_address="0.0.0.0:0",
        ml_inference_tls_certificate_file=certificate,
        ml_inference_tls_key_file=key,
        ml_inference_tls_client_ca_file=authority.ca,
    )

    def port() -> str:
        lines = [line for line in rig.logs().splitlines() if "inference_ready" in line]
        return re.findall(r'"port": ?(\d+)', lines[0])[0] if lines else ""

    until(port, SECONDS, "a server of models")
    address = f"localhost:{port()}"
    sample = SHIPPED_MODELS / "ct-tissue" / "1.0.0" / "warm_up.npz"
    mine, my_key, _ = authority.issue("caller")
    # -S: nothing of this environment.
    done = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM, address, sample, authority.ca, my_key, mine],
        env={"PYTHONPATH": str(tritonclient), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    about = told.pop("about")
    assert (about["name"], about["versions"]) == ("ct-tissue", ["1.0.0"])
    code, words = told.pop("refused")
    assert code == "StatusCode.INVALID_ARGUMENT"
    assert "must have the shape" in words
    assert all(told.pop("same").values())
    assert told == {
        "live": True,
        "ready": True,
        "model": True,
        "unseen": False,
        "server": "fluoro-ml-worker",
        "id": "7",
    }

    its, its_key, _ = stranger.issue("someone")
    pairs = [(its_key.read_bytes(), its.read_bytes()), (None, None)]
    for private, chain in pairs:
        credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes(), private, chain)
        with grpc.secure_channel(address, credentials) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                GRPCInferenceServiceStub(channel).ServerLive(wire.ServerLiveRequest(), timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
