"""Has a real worker behind a real gateway work on damaged files."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fluoro.v1 import job_pb2
from fluoro.v1.deidentify_pb2 import DeidentifyDicom
from fluoro.v1.dicom_pb2 import InspectDicom, RenderDicom
from fluoro.v1.photograph_pb2 import ImportImages
from fluoro_client.jobs import step
from fluoro_local.services import SERVICES
from fluoro_local.testing import RunningFluoro, running
from google.protobuf.message import Message

from fuzzing.files import NAME, NUMBER, mutant
from fuzzing.operations import Finding, Report
from fuzzing.photographs import photograph

JOB_SECONDS: Final = 240
"""How long a job with INPUTS files may take."""
INPUTS: Final = 100
"""Files of one job."""
ON_DICOM: Final = {
    "inspect": InspectDicom(),
    "render": RenderDicom(),
    "deidentify": DeidentifyDicom(project="default"),
}
ON_PHOTOGRAPHS: Final = {"photograph": ImportImages()}


def worked_on(numbers: Sequence[int], seed: int) -> Report:
    """The same operations on these files, as steps of jobs."""
    report = Report()
    needed = {"gateway", "dicom-worker", "scheduler"}
    with running([each for each in SERVICES if each.name in needed]) as fluoro:
        for at in range(0, len(numbers), INPUTS):
            part = numbers[at : at + INPUTS]
            for made, messages in ((mutant, ON_DICOM), (photograph, ON_PHOTOGRAPHS)):
                job = run(fluoro, [made(seed, number) for number in part], messages)
                for each in job.steps:
                    judge(each, part, report)
        log = (fluoro.data / "logs" / "dicom-worker.log").read_text(errors="replace")
    report.findings += findings_of_log(log)
    return report


def run(
    fluoro: RunningFluoro, files: Sequence[bytes], messages: Mapping[str, Message]
) -> job_pb2.Job:
    """A job with these inputs and these steps, name → operation, at its end."""
    with fluoro.client() as client:
        steps = [
            step(message, name, allow_identifiable=not isinstance(message, DeidentifyDicom))
            for name, message in messages.items()
        ]
        inputs = [client.upload(file).name for file in files]
        job = client.submit(job_pb2.Job(inputs=inputs, steps=steps))
        return client.wait(job.name, timeout_seconds=JOB_SECONDS)


def judge(made: job_pb2.Step, numbers: Sequence[int], report: Report) -> None:
    """Adds a step's outcomes, and what is wrong with them."""
    for task in made.tasks:
        # One attempt was enough: nothing that a file does takes its worker along.
        if len(task.attempts) != 1:
            told = f"a task took {len(task.attempts)} attempts"
            report.findings.append(Finding("lost", numbers[0], made.name, told))
    seen = {item.input: item for item in made.items}
    for at, number in enumerate(numbers):
        item = seen.get(at, job_pb2.Item(reason="MISSING"))
        state = job_pb2.Item.State.Name(item.state).removeprefix("STATE_")
        report.outcomes[f"{made.name} (job)", f"{state} {item.reason}".strip()] += 1
        if item.reason in {"INTERNAL", "MISSING", "WORKER_LOST"}:
            report.findings.append(Finding("untyped", number, made.name, item.reason))


def findings_of_log(text: str) -> list[Finding]:
    """What a worker's log holds that it may not: tracebacks, errors, the patient."""
    found = []
    for line in text.splitlines():
        event: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
        is_error = event.get("level") in {"error", "critical"}
        told = any(word in line for word in (*NAME.split("^"), NUMBER, "Traceback"))
        if is_error or told:
            found.append(Finding("log", -1, "", line[:400]))
    return found
