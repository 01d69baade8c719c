"""Where results come from, for programs."""

from collections.abc import Sequence
from importlib.metadata import version

from fluoro.v1.export_pb2 import InputOrigin, Provenance, StepRun
from fluoro_jobs.ledger import origins
from fluoro_jobs.worker.context import Upstream

from export_worker.images import models_in


def provenance(job: str, upstream: Sequence[Upstream], known: origins.Origins) -> Provenance:
    """The same in every attempt."""
    ran = {model.SerializeToString(deterministic=True): model for model in models_in(upstream)}
    return Provenance(
        job=job,
        inputs=[
            InputOrigin(input=one.number, size_bytes=one.size_bytes, sha256=one.sha256)
            for one in known.inputs
        ],
        runs=map(_run, known.runs),
        models=ran.values(),
        writer_version=version("export-worker"),
    )


def _run(run: origins.StepRun) -> StepRun:
    told = StepRun(step=run.step, attempts=run.attempts)
    told.start_time.FromDatetime(run.start_time)
    told.end_time.FromDatetime(run.end_time)
    return told
