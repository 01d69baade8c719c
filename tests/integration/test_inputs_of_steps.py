"""What a step works on, through the ledger and back: keys, parts, groups, earlier results."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from fluoro.v1 import deidentify_pb2, dicom_pb2, export_pb2, job_pb2, ml_pb2
from fluoro_jobs import dispatch
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import heartbeats
from fluoro_jobs.ledger.attempts import Worker
from fluoro_jobs.operations import BY_FIELD
from fluoro_jobs.testing.rig import TERMINAL, Rig
from fluoro_jobs.wakeups import Publisher
from fluoro_jobs.worker.context import StepContext
from fluoro_jobs.worker.execute import Executor
from fluoro_jobs.worker.handler import Handler, handles

Item = job_pb2.Item
Seen = list[dict[str, Any]]


@handles(dicom_pb2.RenderDicom)
def scan(_request: dicom_pb2.RenderDicom, context: StepContext) -> dicom_pb2.RenderDicomResult:
    """Leaves what each input asks for: keys of pixel arrays, each of which says its key."""
    result = dicom_pb2.RenderDicomResult()
    for item in context.each("scan"):
        with item:
            for key in json.loads(item.fetch().read_bytes()) or [item.key]:
                data = key.encode()
                name = item.put("pixels", ".npy", "pixels", "application/x-npy", data, key)
                result.images.add(input=item.input, item=key, pixels=name)
    return result


def looking(seen: Seen, failing: str = "") -> Handler[Any, Any]:
    """An analysis that notes what it works on. failing: key of an input that fails."""

    @handles(ml_pb2.AnalyzeImages)
    def look(_request: ml_pb2.AnalyzeImages, context: StepContext) -> ml_pb2.AnalyzeImagesResult:
        result = ml_pb2.AnalyzeImagesResult()
        known = {
            image.item
            for rendered in context.results.values()
            if isinstance(rendered, dicom_pb2.RenderDicomResult)
            for image in rendered.images
        }
        for item in context.each("look"):
            with item:
                parts = [item.fetch(part).read_text() for part in item.parts]
                steps = [part.step for part in item.parts]
                seen.append(
                    {"key": item.key, "parts": parts, "steps": steps, "known": sorted(known)}
                )
                if item.key == failing:
                    raise FluoroError(Reason.PIXELS_NOT_CERTIFIED, "As told.")
                item.put("label-map", ".npy", "label-map", "application/x-npy", b"x")
                result.findings.add(input=item.input, item=item.key)
        return result

    return look


def telling(seen: Seen) -> Handler[Any, Any]:
    """A report that notes the items of each step before it."""

    @handles(export_pb2.ExportReport)
    def tell(
        _request: export_pb2.ExportReport, context: StepContext
    ) -> export_pb2.ExportReportResult:
        assert not context.inputs
        seen.extend(
            {
                "step": step.step,
                "items": [item.key for item in step.items],
                "artifacts": [artifact.key for artifact in step.artifacts],
            }
            for step in context.upstream
        )
        return export_pb2.ExportReportResult()

    return tell


Run = Callable[..., job_pb2.Job]


@pytest.fixture
def run(rig: Rig) -> Run:
    """Submits a job and runs it to its end in this process, with these operations."""
    workers = [Worker(new_id(), "host:1", queue, 50, "test") for queue in ("dicom", "ml", "export")]
    publisher = Publisher(rig.redis_url)

    def job_through(job: job_pb2.Job, *handlers: Handler[Any, Any]) -> job_pb2.Job:
        table = {handler.operation.task_name: handler for handler in handlers}
        with rig.connection() as connection:
            for worker in workers:
                heartbeats.beat(connection, worker, [])
        job_id: UUID = rig.submit(job)
        executor = Executor(rig.ledger, rig.blobs, publisher, workers[0], table, rig.folder)
        while (now := rig.job(job_id)).state not in TERMINAL:
            with rig.connection() as connection:
                queued = [*connection.execute(QUEUED).fetchall(), *dispatch.take(connection)]
            assert queued, "a job that has not ended has something to run"
            for task, *_ in queued:
                list(executor.run([(task, None)]))
        return now

    yield job_through
    publisher.close()


QUEUED = "SELECT task_id FROM open_tasks WHERE state = 'QUEUED'"


def scans(rig: Rig, *keys: list[str], per_task: int = 0) -> job_pb2.Job:
    """A job whose first step leaves arrays under these keys, by input."""
    job = job_pb2.Job(inputs=[rig.blob(json.dumps(each).encode()) for each in keys])
    job.steps.add(name="scan", max_inputs_per_task=per_task).render_dicom.SetInParent()
    return job


def then_look(job: job_pb2.Job, *sources: job_pb2.StepInput, per_task: int = 0) -> job_pb2.Step:
    step = job.steps.add(name="look", inputs=sources, max_inputs_per_task=per_task)
    step.analyze_images.model = "none"
    return step


@pytest.fixture
def takes_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row of `looking`, which works on every part."""
    row = replace(BY_FIELD["analyze_images"], groups=True)
    monkeypatch.setitem(BY_FIELD, "analyze_images", row)


@pytest.mark.usefixtures("takes_groups")
def test_grouping_gives_one_item_per_series_with_its_parts_in_order_and_one_fails_alone(
    rig: Rig, run: Run
) -> None:
    slices = ["series-2/0000", "series-1/0000", "series-2/0001", "series-1/0001", "series-2/0002"]
    job = scans(rig, slices)
    then_look(job, job_pb2.StepInput(step="scan", group=True), per_task=1)
    seen: Seen = []
    done = run(job, scan, looking(seen, failing="series-1"))
    assert sorted((one["key"], one["parts"]) for one in seen) == [
        ("series-1", [key for key in slices if key.startswith("series-1")]),
        ("series-2", [key for key in slices if key.startswith("series-2")]),
    ]
    assert done.state == job_pb2.Job.STATE_PARTIALLY_SUCCEEDED
    look = done.steps[1]
    assert len(look.tasks) == 2
    assert [(item.key, item.input, item.state) for item in look.items] == [
        ("series-2", 0, Item.STATE_SUCCEEDED),
        ("series-1", 0, Item.STATE_FAILED),
    ]
    assert [(left.name, left.key, left.input) for left in look.artifacts] == [
        ("label-map-series-2.npy", "series-2", 0)
    ]
    assert [artifact.key for artifact in done.steps[0].artifacts] == sorted(slices)


@pytest.mark.usefixtures("takes_groups")
def test_what_comes_from_several_inputs_of_the_job_names_none(rig: Rig, run: Run) -> None:
    job = scans(rig, [], [])
    then_look(job, job_pb2.StepInput(step="scan", group=True))
    seen: Seen = []
    look = run(job, scan, looking(seen)).steps[1]
    assert [(one["key"], one["parts"]) for one in seen] == [("all", ["0", "1"])]
    assert [(item.key, item.input) for item in look.items] == [("all", -1)]
    assert [(left.key, left.HasField("input")) for left in look.artifacts] == [("all", False)]


def test_blobs_of_two_steps_that_share_a_key_are_one_input(rig: Rig, run: Run) -> None:
    job = scans(rig, [], [])
    job.steps.add(name="again").render_dicom.SetInParent()
    then_look(job, job_pb2.StepInput(step="again"), job_pb2.StepInput(step="scan"))
    seen: Seen = []
    run(job, scan, looking(seen))
    assert [(one["key"], one["steps"]) for one in seen] == [
        ("0", ["again", "scan"]),
        ("1", ["again", "scan"]),
    ]


def test_a_task_reads_the_results_of_those_tasks_alone_that_left_its_inputs(
    rig: Rig, run: Run
) -> None:
    job = scans(rig, [], [], [], [], per_task=2)
    job.steps.add(name="look", after=["scan"], max_inputs_per_task=1).analyze_images.model = "none"
    seen: Seen = []
    run(job, scan, looking(seen))
    assert {one["key"]: one["known"] for one in seen} == {
        "0": ["0", "1"],
        "1": ["0", "1"],
        "2": ["2", "3"],
        "3": ["2", "3"],
    }


def test_a_report_reads_all_that_the_steps_before_it_left_and_has_no_inputs(
    rig: Rig, run: Run
) -> None:
    job = scans(rig, ["0/0000", "0/0001"])
    then_look(job, job_pb2.StepInput(step="scan"))
    job.steps.add(name="tell", after=["scan", "look"]).export_report.SetInParent()
    seen: Seen = []
    done = run(job, scan, looking([]), telling(seen))
    assert done.state == job_pb2.Job.STATE_SUCCEEDED
    assert seen == [
        {"step": "scan", "items": ["0"], "artifacts": ["0/0000", "0/0001"]},
        {"step": "look", "items": ["0/0000", "0/0001"], "artifacts": ["0/0000", "0/0001"]},
    ]


@handles(deidentify_pb2.DeidentifyDicom)
def clean(
    _request: deidentify_pb2.DeidentifyDicom, context: StepContext
) -> deidentify_pb2.DeidentifyDicomResult:
    """Leaves something of each input."""
    for item in context.each("clean"):
        with item:
            item.put("instance", ".dcm", "instance", "application/dicom", b"[]")
    return deidentify_pb2.DeidentifyDicomResult()


@pytest.mark.parametrize("cleans", [True, False])
def test_a_job_that_deidentifies_tells_no_step_the_hashes_of_its_originals(
    rig: Rig, run: Run, cleans: bool
) -> None:
    known = []

    @handles(export_pb2.ExportReport)
    def tell(
        _request: export_pb2.ExportReport, context: StepContext
    ) -> export_pb2.ExportReportResult:
        known.append(context.origins)
        return export_pb2.ExportReportResult()

    job = scans(rig, [], [])
    if cleans:
        job.steps.insert(0, job_pb2.Step(name="clean"))
        job.steps[0].deidentify_dicom.project = "trial"
        job.steps[1].after.append("clean")
    # It comes right after a step that does not de-identify.
    job.steps.add(name="tell", after=["scan"]).export_report.SetInParent()
    done = run(job, clean, scan, tell)
    [(inputs, runs)] = known
    assert len(inputs) == (0 if cleans else 2)
    assert [run.step for run in runs] == ["scan"]
    assert done.steps[-1].state == job_pb2.Step.STATE_SUCCEEDED
