"""Bad requests are refused with a reason and every bad field named."""

import math
from collections.abc import Callable

import pytest
from fluoro.v1 import job_pb2, job_service_pb2
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger.submission import validate

Request = job_service_pb2.SubmitJobRequest


def request() -> Request:
    job = job_pb2.Job(inputs=[f"blobs/{new_id()}"])
    job.steps.add(name="inspect").inspect_dicom.SetInParent()
    job.steps.add(name="render", after=["inspect"]).render_dicom.SetInParent()
    return Request(job=job, request_id="r1")


def edit(path: str, value: object) -> Callable[[Request], None]:
    def apply(request: Request) -> None:
        *parents, last = path.split(".")
        target: object = request
        for name in parents:
            target = target[int(name)] if name.isdigit() else getattr(target, name)  # type: ignore[index]
        if isinstance(value, list):
            del getattr(target, last)[:]
            getattr(target, last).extend(value)
        else:
            setattr(target, last, value)

    return apply


def malformed_duration(request: Request) -> None:
    request.job.steps[0].attempt_timeout.seconds = 5
    request.job.steps[0].attempt_timeout.nanos = -5


def report_in_shares(request: Request) -> None:
    request.job.steps[0].export_report.SetInParent()
    request.job.steps[0].max_inputs_per_task = 1


def two_windows(request: Request) -> None:
    request.job.steps[1].render_dicom.window.width = 5
    request.job.steps[1].render_dicom.file_window.index = 1


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        (lambda r: r.job.ClearField("steps"), Reason.JOB_EMPTY, "job.steps"),
        (lambda r: r.job.ClearField("inputs"), Reason.JOB_EMPTY, "job.inputs"),
        (edit("job.inputs", ["blobs/nope"]), Reason.INVALID_ARGUMENT, "job.inputs[0]"),
        (edit("job.inputs", [str(new_id())]), Reason.INVALID_ARGUMENT, "job.inputs[0]"),
        (edit("job.priority", 10), Reason.INVALID_ARGUMENT, "job.priority"),
        (lambda r: r.job.labels.update({"a": "\0"}), Reason.INVALID_ARGUMENT, "job.labels"),
        (
            lambda r: r.job.labels.update({str(i): "" for i in range(65)}),
            Reason.INVALID_ARGUMENT,
            "job.labels",
        ),
        (edit("request_id", "with space"), Reason.INVALID_ARGUMENT, "request_id"),
        (edit("job.steps.0.name", "Inspect!"), Reason.INVALID_ARGUMENT, "job.steps[0].name"),
        (edit("job.steps.1.name", "inspect"), Reason.INVALID_ARGUMENT, "job.steps[1].name"),
        (
            lambda r: r.job.steps[0].ClearField("inspect_dicom"),
            Reason.INVALID_ARGUMENT,
            "job.steps[0].operation",
        ),
        (
            edit("job.steps.0.retry_policy.max_attempts", 11),
            Reason.INVALID_ARGUMENT,
            "job.steps[0].retry_policy.max_attempts",
        ),
        (
            edit("job.steps.1.render_dicom.window.width", 0.5),
            Reason.INVALID_ARGUMENT,
            "job.steps[1].render_dicom.window.width",
        ),
        (two_windows, Reason.INVALID_ARGUMENT, "job.steps[1].render_dicom"),
        (
            edit("job.steps.1.render_dicom.window.center", math.nan),
            Reason.INVALID_ARGUMENT,
            "job.steps[1].render_dicom.window.center",
        ),
        (
            edit("job.steps.1.render_dicom.window.width", math.inf),
            Reason.INVALID_ARGUMENT,
            "job.steps[1].render_dicom.window.width",
        ),
        (
            edit("job.steps.1.retry_policy.max_backoff.nanos", -1),
            Reason.INVALID_ARGUMENT,
            "job.steps[1].retry_policy.max_backoff",
        ),
        (malformed_duration, Reason.INVALID_ARGUMENT, "job.steps[0].attempt_timeout"),
        (
            lambda r: r.job.steps[0].analyze_images.SetInParent(),
            Reason.INVALID_ARGUMENT,
            "job.steps[0].analyze_images.model",
        ),
        (
            edit("job.steps.1.export_report.formats", [0]),
            Reason.INVALID_ARGUMENT,
            "job.steps[1].export_report.formats[0]",
        ),
        (
            edit("job.steps.0.max_inputs_per_task", -1),
            Reason.INVALID_ARGUMENT,
            "job.steps[0].max_inputs_per_task",
        ),
        (
            edit("job.steps.0.attempt_timeout.seconds", 7 * 3600),
            Reason.INVALID_ARGUMENT,
            "job.steps[0].attempt_timeout",
        ),
        (
            edit("job.steps.0.attempt_timeout.seconds", 10**18),
            Reason.INVALID_ARGUMENT,
            "job.steps[0].attempt_timeout",
        ),
        (edit("job.expire_time.seconds", 10**18), Reason.INVALID_ARGUMENT, "job.expire_time"),
        (
            edit("job.steps.0.item_failure_policy", 9),
            Reason.INVALID_ARGUMENT,
            "job.steps[0].item_failure_policy",
        ),
        (report_in_shares, Reason.INVALID_ARGUMENT, "job.steps[0].max_inputs_per_task"),
        (edit("job.steps.1.after", ["nope"]), Reason.STEP_UNKNOWN, "job.steps[1].after[0]"),
        (edit("job.steps.0.after", ["render"]), Reason.STEP_GRAPH_CYCLE, "job.steps[0].after"),
        (edit("job.steps.0.after", ["inspect"]), Reason.STEP_GRAPH_CYCLE, "job.steps[0].after"),
    ],
)
def test_a_bad_request_is_refused_with_its_reason_and_field(
    change: Callable[[Request], None], reason: Reason, field: str
) -> None:
    bad = request()
    change(bad)
    with pytest.raises(FluoroError) as caught:
        validate(bad, "owner")
    assert (caught.value.reason, caught.value.violations[0].field) == (reason, field)


@pytest.mark.parametrize("character", "\a\x7f\x80\x85\x9b\u2028\u202e\u2066")
def test_text_that_people_see_in_terminals_holds_nothing_that_controls_them(character: str) -> None:
    bad = request()
    bad.job.steps.add(name="report", after=["render"]).export_report.title = f"a{character}b"
    bad.job.steps.add(name="analyze", after=["render"]).analyze_images.model = f"a{character}b"
    bad.job.labels.update({f"key{character}": "value"})
    bad.job.labels.update({"key": f"value{character}"})
    with pytest.raises(FluoroError) as caught:
        validate(bad, "tester")
    assert sorted(violation.field for violation in caught.value.violations) == [
        "job.labels",
        "job.labels",
        "job.steps[2].export_report.title",
        "job.steps[3].analyze_images.model",
    ]


def test_text_may_be_in_any_language() -> None:
    good = request()
    # Letters, a joined emoji, a zero-width non-joiner as Persian has it, a mark of direction.
    good.job.labels.update({"é": "好 \U0001f469\u200d\u2695\ufe0f می\u200cشود \u200f"})
    validate(good, "tester")


def test_every_bad_field_is_named_at_once() -> None:
    bad = request()
    bad.job.priority, bad.job.steps[0].name, bad.job.inputs[0] = 99, "", "x"
    with pytest.raises(FluoroError) as caught:
        validate(bad, "owner")
    assert {v.field for v in caught.value.violations} == {
        "job.priority",
        "job.steps[0].name",
        "job.inputs[0]",
    }


def test_a_good_request_becomes_rows_with_edges_as_numbers_and_defaults_filled_in() -> None:
    submission = validate(request(), "owner")
    first, second = submission.steps
    assert (first.after, second.after) == ([], [0])
    assert (first.max_attempts, first.initial_backoff_seconds, first.max_backoff_seconds) == (
        3,
        2.0,
        300.0,
    )
    assert (first.operation.task_name, second.operation.queue) == ("dicom.inspect", "dicom")


def test_what_only_the_server_sets_does_not_count_for_the_body_hash() -> None:
    one, other = request(), request()
    other.job.inputs[0] = one.job.inputs[0]
    other.job.state, other.job.steps[0].reason = job_pb2.Job.STATE_FAILED, "X"
    assert validate(one, "owner").sha256 == validate(other, "owner").sha256
    other.job.priority = 1
    assert validate(one, "owner").sha256 != validate(other, "owner").sha256


@pytest.mark.parametrize("large", [False, True])
def test_steps_that_are_alike_are_refused_alike_each_in_its_place(large: bool) -> None:
    """Small ones are looked at once and remembered."""
    for _ in range(2):
        job = job_pb2.Job(inputs=[f"blobs/{new_id()}"])
        for name in ("good", "Bad", "Bad"):
            step = job.steps.add(name=name, inspect_dicom={})
            if large:
                step.inputs.add(step="good", role="x" * 4000)
        with pytest.raises(FluoroError) as caught:
            validate(job_service_pb2.SubmitJobRequest(job=job), "owner")
        fields = {violation.field for violation in caught.value.violations}
        assert {"job.steps[1].name", "job.steps[2].name"} <= fields
        assert "job.steps[0].name" not in fields


def test_what_is_remembered_of_one_request_says_nothing_of_another() -> None:
    def made(**fields: object) -> job_service_pb2.SubmitJobRequest:
        request = job_service_pb2.SubmitJobRequest(request_id=str(new_id()))
        request.job.inputs.append(f"blobs/{new_id()}")
        request.job.labels["study"] = "1"
        request.job.steps.add(name="look").inspect_dicom.SetInParent()
        for name, value in fields.items():
            setattr(request.job if name == "priority" else request, name, value)
        return request

    for _ in range(2):
        sent = made()
        again = validate(
            job_service_pb2.SubmitJobRequest.FromString(sent.SerializeToString()), "ada"
        )
        checked = validate(sent, "ada")
        assert [str(one) for one in checked.inputs] == [sent.job.inputs[0].removeprefix("blobs/")]
        assert checked.request_id == sent.request_id
        assert checked.sha256 == again.sha256
        for field, bad in (
            ("request_id", made(request_id="two words")),
            ("request_id", made(request_id="x" * 129)),
            ("job.priority", made(priority=10)),
            ("pipeline", made(pipeline="p" * 93)),
        ):
            with pytest.raises(FluoroError) as refusal:
                validate(bad, "ada")
            assert [one.field for one in refusal.value.violations] == [field]
