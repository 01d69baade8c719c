"""200 jobs of one image at once, on a graph the size of ResNet-50, against ONNX Runtime itself.

`callers`: 16 threads show one prepared image after the other to the batcher, as the slots of an
ml-worker do. `jobs`: jobs that a gateway took, from when their rendered images wait for the
ml-worker until the last has ended: ledger, Redis, blobs, certificates and preparing included.
Rendering is not: it happens before. `once`: ONNX Runtime, one image at a time. `batch`: ONNX
Runtime at the best of some fixed sizes. All with the same threads, session options and images.

First memory: a batcher is shown 2,000 images of 40 sizes. `growth` = RSS after all / after 500.

Last line: `ratio` = images per second, callers / the best fixed batch.
"""

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from fluoro.v1.job_pb2 import Attempt, Job, Step
from fluoro.v1.photograph_pb2 import ImportImages
from fluoro_client import Client
from fluoro_client.jobs import analyze, step
from ml_worker.cpus import run_threads
from ml_worker.repository import read_model
from ml_worker.sessions import Model, open_model, session_options
from ml_worker.settings import SHIPPED_MODELS, ModelSettings
from ml_worker.testing import write_model
from ml_worker.waiting import Alone
from numpy.typing import NDArray
from PIL import Image
from rig.figures import percentile, quick, ratio, say
from rig.resnet import LABELS, SIDE, resnet50
from rig.servers import Servers, servers

SLOTS: Final = 16
"""Callers at a time: the slots of an ml-worker."""
PATIENCE_SECONDS: Final = 280
"""How long the jobs of a round may take."""
MANIFEST: Final = f"""
name = "resnet50"
version = "1.0.0"
summary = "The size of ResNet-50, and recognises nothing."
intended_use = "demonstration"
license = "Apache-2.0"
source = "benchmarks/rig/resnet.py"
training_data = "None."
applies_to = {{ modalities = [], unit = "1", photometric = ["grey", "colour"] }}
labels = [{", ".join(f'{{value = {n}, display_name = "{n}"}}' for n in range(LABELS))}]
[[inputs]]
name = "x"
dtype = "float32"
layout = "NCHW"
shape = ["n", 3, {SIDE}, {SIDE}]
image = {{ colour = "rgb", values = {{ from = "full", to = [0, 1] }}, resize = "cover" }}
[[outputs]]
kind = "classes"
name = "y"
dtype = "float32"
shape = ["n", {LABELS}]
"""
Images = NDArray[np.float32]


def write_resnet(folder: Path, ladder: Sequence[int] = (1, 2, 4, 8)) -> Path:
    """The model's folder. ladder: sizes of its runs."""
    batch = f"batch = {{ max = {ladder[-1]}, ladder = {list(ladder)}, bytes_per_voxel = 512 }}"
    graph = resnet50()
    x = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    (y,) = ort.InferenceSession(graph).run(None, {"x": x})
    return write_model(folder, f"{batch}\n{MANIFEST}", graph, {"x": x, "y": np.asarray(y)})


def callers(model: Model, images: Images, seconds: list[float], threads: int = SLOTS) -> float:
    """Images per second of the batcher. seconds: of each image, from asking to the answer."""

    def show(number: int) -> None:
        before = time.perf_counter()
        model.run({"x": images[number : number + 1]}, Alone(f"owner-{number % 4}"))
        seconds.append(time.perf_counter() - before)

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(show, range(len(images))))
    return len(images) / (time.perf_counter() - began)


def plain(session: ort.InferenceSession, images: Images, size: int) -> float:
    """Images per second of ONNX Runtime at one size of batch."""
    began = time.perf_counter()
    for start in range(0, len(images), size):
        session.run(["y"], {"x": images[start : start + size]})
    return len(images) / (time.perf_counter() - began)


def jobs(run: Servers, models: Path, count: int) -> dict[str, float]:
    """Jobs per second from where their images wait for the ml-worker, and their p95."""
    picture = BytesIO()
    noise = np.random.default_rng(2).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(noise).save(picture, "PNG")
    with ExitStack() as stack:
        gateway = stack.enter_context(run.service("gateway"))
        stack.enter_context(run.service("scheduler"))
        client = stack.enter_context(Client(f"127.0.0.1:{gateway.port}", owner="bench"))
        blob = client.upload(picture.getvalue()).name
        steps = [step(ImportImages(), "import"), analyze("resnet50", after=["import"])]
        with run.service("dicom_worker"):
            names = [client.submit(Job(inputs=[blob], steps=steps)).name for _ in range(count)]
            _until(lambda: all(_imported(client.get(name)) for name in names))
        with run.service("ml_worker", slots=SLOTS, ml_models_folder=models):
            done = [client.wait(name, timeout_seconds=PATIENCE_SECONDS) for name in names]
    for job in done:
        if job.state != Job.STATE_SUCCEEDED:
            raise SystemExit(f"a job is {Job.State.Name(job.state)}: {job.message}")
    # The worker is ready before this process hears of it.
    began = min(_first(job).start_time.ToNanoseconds() for job in done)
    seconds = [(job.end_time.ToNanoseconds() - began) / 1e9 for job in done]
    return {"per_second": count / max(seconds), "p95_ms": 1000 * percentile(seconds, 95)}


def _imported(job: Job) -> bool:
    return job.steps[0].state == Step.STATE_SUCCEEDED


def _first(job: Job) -> Attempt:
    """Of the analysis."""
    return job.steps[1].tasks[0].attempts[0]


def _until(probe: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not probe():
        if time.monotonic() > deadline:
            raise SystemExit("a round did not end")
        threading.Event().wait(0.2)


def memory(images: int) -> dict[str, float]:
    """MiB of this process after a quarter of the images, and after all."""
    model = open_model(read_model(SHIPPED_MODELS / "ct-tissue" / "1.0.0"), ModelSettings())
    sizes = np.random.default_rng(3).integers(64, 640, (40, 2))

    def show(number: int) -> None:
        rows, columns = sizes[number % len(sizes)]
        x = np.full((1, rows, columns), number % 1000, np.float32)
        model.run({model.manifest.inputs[0].name: x}, Alone())

    found = []
    with ThreadPoolExecutor(SLOTS) as pool:
        for share in (range(images // 4), range(images // 4, images)):
            list(pool.map(show, share))
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            found.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
    return {"quarter_mib": found[0], "all_mib": found[1], "growth": found[1] / found[0]}


def main(rounds: int, images: int, sizes: Sequence[int], mixed: int) -> None:
    """rounds: of so many images each; as many jobs once. sizes: batches to choose from."""
    figures = memory(mixed)
    say("memory", images=mixed, **figures)
    with tempfile.TemporaryDirectory() as folder, servers() as run:
        place = write_resnet(Path(folder))
        settings = ModelSettings()
        model = open_model(read_model(place), settings)
        session = ort.InferenceSession(place / "model.onnx", session_options(settings))
        shown = np.random.default_rng(0).random((images, 3, SIDE, SIDE), np.float32)
        tried = {size: plain(session, shown[: 4 * max(sizes)], size) for size in sizes}
        best = max(tried, key=tried.__getitem__)
        rates: dict[str, list[float]] = {"callers": [], "once": [], "batch": []}
        seconds: list[float] = []
        for _ in range(rounds):
            rates["callers"].append(callers(model, shown, seconds))
            rates["batch"].append(plain(session, shown, best))
            rates["once"].append(plain(session, shown, 1))
        for name, per_second in rates.items():
            say(name, per_second=statistics.median(per_second))
        done = jobs(run, Path(folder), images)
        say("jobs", count=images, **done)
        say(
            "batching",
            ratio=ratio(rates["callers"], rates["batch"]),
            ratio_once=ratio(rates["callers"], rates["once"]),
            ratio_jobs=done["per_second"] / statistics.median(rates["batch"]),
            p95_ms=1000 * percentile(seconds, 95),
            best_batch=best,
            growth=figures["growth"],
            threads=run_threads(),
        )


if __name__ == "__main__":
    if quick(__doc__):
        main(1, 4, (1, 4), 40)
    else:
        main(3, 200, (1, 2, 4, 8, 16), 2000)
