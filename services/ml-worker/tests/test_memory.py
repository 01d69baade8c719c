"""Memory is bounded by the run, not by the volume."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from fluoro.v1 import ml_pb2
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.context import Upstream
from ml_worker.operations.analyze import analyze
from ml_worker.registry import Registry
from ml_worker.settings import ModelSettings

MIB = 1024 * 1024
CT_TISSUE = ml_pb2.AnalyzeImages(model="ct-tissue")


@contextmanager
def at_most_more_memory(amount_bytes: int) -> Iterator[None]:
    """In the body, the process cannot get more anonymous memory than this above what it has."""
    status = Path("/proc/self/status").read_text().splitlines()
    (now_kib,) = (int(line.split()[1]) for line in status if line.startswith("VmData:"))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (now_kib * 1024 + amount_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def test_a_volume_many_times_the_memory_allowed_goes_through(
    render: Callable[..., Upstream], attempt: Callable[..., Attempt]
) -> None:
    # 200 MiB of frames, 400 MiB as float32; one run may have 32 MiB, and threads, blobs and the
    # overlay need a little beside.
    volume = np.zeros((400, 512, 512), "<i2")
    volume[:, :256] = -500
    upstream = render(volume)
    voxels = volume.size
    del volume
    models = Registry(ModelSettings(run_memory_bytes=32 * MIB))
    models.open()
    # The allocator keeps what a run has freed, so the first runs are not counted.
    few = render(np.zeros((20, 512, 512), "<i2"), name="few")
    analyze(CT_TISSUE, attempt(few).context, models)
    run = attempt(upstream)
    with at_most_more_memory(128 * MIB):
        (finding,) = analyze(CT_TISSUE, run.context, models).findings
    assert [measurement.voxels for measurement in finding.measurements] == [
        0,
        0,
        voxels // 2,
        0,
        voxels // 2,
        0,
    ]
