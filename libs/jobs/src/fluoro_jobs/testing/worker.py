"""A worker for tests and benchmarks: its operations do what their first input says.

`python -m fluoro_jobs.testing.worker QUEUE POOL` drains QUEUE. The input is JSON, a list of
commands run in order; `[]` does nothing. A report has no inputs: its title names the blob.

    {"do": "wait", "path": P}      until file P exists, looking at cancellation
    {"do": "stay_once", "path": P, "until": Q}  unless file P exists: makes it, then waits until
                                   file Q exists, without looking at cancellation
    {"do": "sleep", "seconds": S}  S seconds, looking at cancellation
    {"do": "touch", "path": P}     makes file P
    {"do": "die"}                  this process kills itself, every time
    {"do": "die_once", "path": P}  the same, unless file P exists; makes it first
    {"do": "panic_once", "path": P}  raises what is no Exception, unless file P exists; makes it
    {"do": "spin"}                 computes for ever without looking at anything
    {"do": "take", "bytes": N}     asks for so much memory
    {"do": "take_each", "bytes": [N, …]}  the same for each input, as an item
    {"do": "deafen"}               makes Celery take no more messages; in a pool of threads
    {"do": "keep_slot"}            its pool child or thread does not return once the task is over
    {"do": "fail", "reason": R, "retryable": B, "unless": P}  P is optional: not if file P exists
    {"do": "upstream"}             reads what the steps before left
    {"do": "progress", "stage": S, "done": N, "total": N}
    {"do": "artifact", "name": N, "text": T, "times": K}  the text K times over; K is optional
    {"do": "return", "bytes": N}   an inspect_dicom returns about so many bytes
    {"do": "measure", "path": P}   writes to P how many bytes the steps before returned

CLOCK_OFFSET_SECONDS in the environment sets the clock of its processes wrong.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from celery import signals
from fluoro.v1 import dicom_pb2, export_pb2, ml_pb2
from kombu.asynchronous import get_event_loop

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext
from fluoro_jobs.worker.handler import handles
from fluoro_jobs.worker.run import run_worker


def _set_clock(offset_seconds: float) -> None:
    """For this process. Safe to repeat: the true clock is the kernel's."""
    time.time = lambda: time.clock_gettime(time.CLOCK_REALTIME) + offset_seconds
    time.time_ns = lambda: time.clock_gettime_ns(time.CLOCK_REALTIME) + int(offset_seconds * 1e9)


if "CLOCK_OFFSET_SECONDS" in os.environ:
    _set_clock(float(os.environ["CLOCK_OFFSET_SECONDS"]))


def _wait(command: dict[str, Any], context: StepContext) -> None:
    while not Path(command["path"]).exists():
        context.cancelled.wait(0.02)
        context.check()


def _stay_once(command: dict[str, Any], _context: StepContext) -> None:
    if not Path(command["path"]).exists():
        Path(command["path"]).touch()
        while not Path(command["until"]).exists():
            threading.Event().wait(0.02)


def _sleep(command: dict[str, Any], context: StepContext) -> None:
    context.cancelled.wait(command["seconds"])
    context.check()


def _die(_command: dict[str, Any], _context: StepContext) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_once(command: dict[str, Any], context: StepContext) -> None:
    if not Path(command["path"]).exists():
        Path(command["path"]).touch()
        _die(command, context)


def _panic_once(command: dict[str, Any], _context: StepContext) -> None:
    """As a library in Rust does."""
    if not Path(command["path"]).exists():
        Path(command["path"]).touch()
        raise BaseException("panic")  # noqa: TRY002 - that is the point


def _spin(_command: dict[str, Any], _context: StepContext) -> None:
    while True:
        pow(3, 100_000)


def _take_each(command: dict[str, Any], context: StepContext) -> None:
    for item, size_bytes in zip(context.each("take"), command["bytes"], strict=True):
        with item:
            bytearray(size_bytes)


def _deafen(_command: dict[str, Any], _context: StepContext) -> None:
    hub = get_event_loop()
    assert hub is not None
    hub.call_soon(threading.Event().wait)


def _keep_slot(_command: dict[str, Any], _context: StepContext) -> None:
    # Not in the body, whose end the ledger is to hear of.
    signals.task_postrun.connect(lambda **_: threading.Event().wait(), weak=False)


def _fail(command: dict[str, Any], _context: StepContext) -> None:
    if not ("unless" in command and Path(command["unless"]).exists()):
        raise FluoroError(Reason(command["reason"]), "As told.", retryable=command.get("retryable"))


def _measure(command: dict[str, Any], context: StepContext) -> None:
    sizes = [step.result.ByteSize() for step in context.upstream]
    Path(command["path"]).write_text(str(sum(sizes)))


COMMANDS: Final[dict[str, Callable[[dict[str, Any], StepContext], object]]] = {
    "wait": _wait,
    "stay_once": _stay_once,
    "sleep": _sleep,
    "touch": lambda command, _: Path(command["path"]).touch(),
    "die": _die,
    "die_once": _die_once,
    "panic_once": _panic_once,
    "spin": _spin,
    "take": lambda command, _: bytearray(command["bytes"]),
    "take_each": _take_each,
    "deafen": _deafen,
    "keep_slot": _keep_slot,
    "fail": _fail,
    "upstream": lambda _, context: context.upstream,
    "return": lambda _command, _context: None,
    "measure": _measure,
    "progress": lambda command, context: context.progress(
        command["stage"], command["done"], command["total"]
    ),
    "artifact": lambda command, context: context.put(
        command["name"], "result", "text/plain", command["text"].encode() * command.get("times", 1)
    ),
}


def obey(context: StepContext, blob: str) -> list[dict[str, Any]]:
    """Runs the commands in a blob, and returns them."""
    commands: list[dict[str, Any]] = json.loads(context.fetch(blob).read_bytes())
    for command in commands:
        COMMANDS[command["do"]](command, context)
    return commands


@handles(dicom_pb2.InspectDicom)
def inspect(_request: dicom_pb2.InspectDicom, context: StepContext) -> dicom_pb2.InspectDicomResult:
    """Obeys."""
    commands = obey(context, context.inputs[0].parts[0].blob)
    sizes = [command["bytes"] for command in commands if command["do"] == "return"]
    instances = [dicom_pb2.DicomInstance(modality="x" * size) for size in sizes]
    return dicom_pb2.InspectDicomResult(instances=instances)


@handles(dicom_pb2.RenderDicom)
def noop(_request: dicom_pb2.RenderDicom, _context: StepContext) -> dicom_pb2.RenderDicomResult:
    """Does nothing: what the runtime costs."""
    return dicom_pb2.RenderDicomResult()


@handles(ml_pb2.AnalyzeImages)
def analyze(_request: ml_pb2.AnalyzeImages, context: StepContext) -> ml_pb2.AnalyzeImagesResult:
    """Obeys."""
    obey(context, context.inputs[0].parts[0].blob)
    return ml_pb2.AnalyzeImagesResult()


@handles(export_pb2.ExportReport)
def export(request: export_pb2.ExportReport, context: StepContext) -> export_pb2.ExportReportResult:
    """Obeys."""
    obey(context, request.title)
    return export_pb2.ExportReportResult()


HANDLERS: Final = (inspect, noop, analyze, export)

if __name__ == "__main__":
    run_worker(
        "testing-worker",
        queue=sys.argv[1],
        pool=sys.argv[2],
        handlers="fluoro_jobs.testing.worker:HANDLERS",
        version="test",
    )
