"""50 photographs through `batch-skin-check`, from the submit to the report as PDF, on the CPU.

The photographs are painted, 600 x 600 pixels, uploaded before the clock starts. `seconds`: from
submit to the end of the job: taking in, certificates, three models, ranking, PDF. `analysis`: the
step with the models alone, from its first claim to its end. Peer: the same three models in a plain
loop of one process, image by image: decode, resize as the manifest says, ONNX Runtime with the
same threads. It keeps nothing and proves nothing.

Last line: `ratio` = seconds of the loop / those of `analysis`, the median over neighbours.
"""

import statistics
import time
from contextlib import ExitStack
from io import BytesIO
from typing import Any, Final

import numpy as np
import onnxruntime
from fluoro.v1 import dicom_pb2
from fluoro.v1.job_pb2 import Job
from fluoro_client import Client
from ml_worker.prepare import prepare
from ml_worker.repository import read_model
from ml_worker.sessions import session_options
from ml_worker.settings import SHIPPED_MODELS, ModelSettings
from ml_worker.skin_phantoms import KINDS, lesion
from PIL import Image
from rig.figures import quick, ratio, say
from rig.servers import servers

SIDE: Final = 600
PATIENCE_SECONDS: Final = 280
MODELS: Final = ("lesion-kind-color", "lesion-kind-texture", "lesion-kind-shape")
PIPELINE: Final = "batch-skin-check"


def photographs(count: int) -> list[bytes]:
    """JPEG files, all different."""
    random, files = np.random.default_rng(11), []
    for number in range(count):
        file = BytesIO()
        picture = lesion(random, number % len(KINDS), SIDE)
        Image.fromarray(picture.pixels).save(file, "JPEG", quality=92)
        files.append(file.getvalue())
    return files


def loop(files: list[bytes], sessions: list[tuple[Any, Any]]) -> float:
    """Seconds of a plain loop. sessions: the manifest's input and the session of each model."""
    began = time.perf_counter()
    for file in files:
        frame = np.asarray(Image.open(BytesIO(file)).convert("RGB"))[np.newaxis]
        for tensor, session in sessions:
            session.run(None, {tensor.name: prepare(frame, dicom_pb2.RenderedImage(), tensor)})
    return time.perf_counter() - began


def check(client: Client, blobs: list[str]) -> tuple[float, float]:
    """Seconds of a whole job, and of its analysis."""
    name = client.submit({"inputs": blobs}, pipeline=PIPELINE).name
    job = client.wait(name, timeout_seconds=PATIENCE_SECONDS)
    if job.state != Job.STATE_SUCCEEDED:
        raise SystemExit(f"the job is {Job.State.Name(job.state)}: {job.message}")
    step = next(step for step in job.steps if step.name == "classify")
    starts = [task.attempts[0].start_time.ToNanoseconds() for task in step.tasks]
    ends = [task.attempts[-1].end_time.ToNanoseconds() for task in step.tasks]
    whole = job.end_time.ToNanoseconds() - job.create_time.ToNanoseconds()
    return whole / 1e9, (max(ends) - min(starts)) / 1e9


def main(rounds: int, count: int) -> None:
    """rounds: of so many photographs each."""
    files = photographs(count)
    settings = ModelSettings()
    sessions = []
    for name in MODELS:
        place = SHIPPED_MODELS / name / "1.0.0"
        session = onnxruntime.InferenceSession(place / "model.onnx", session_options(settings))
        sessions.append((read_model(place).manifest.inputs[0], session))
    wholes, analyses, loops = [], [], []
    with servers() as run, ExitStack() as stack:
        gateway = stack.enter_context(run.service("gateway"))
        for service, slots in (("dicom_worker", 2), ("export_worker", 1), ("ml_worker", 16)):
            stack.enter_context(run.service(service, slots=slots))
        stack.enter_context(run.service("scheduler"))
        client = stack.enter_context(Client(f"127.0.0.1:{gateway.port}", owner="bench"))
        blobs = [client.upload(file, media_type="image/jpeg").name for file in files]
        check(client, blobs)  # warms everything up
        for _ in range(rounds):
            whole, analysis = check(client, blobs)
            wholes.append(whole)
            analyses.append(analysis)
            loops.append(loop(files, sessions))
    say(
        "analysis",
        ratio=ratio(loops, analyses),
        seconds=statistics.median(wholes),
        analysis_seconds=statistics.median(analyses),
        loop_seconds=statistics.median(loops),
        photographs=count,
        models=len(MODELS),
    )


if __name__ == "__main__":
    if quick(__doc__):
        main(1, 4)
    else:
        main(5, 50)
