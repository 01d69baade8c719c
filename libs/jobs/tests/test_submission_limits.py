"""Whatever a caller can make large in a submit has a limit.

The fields come from the descriptors, so that a new one needs a limit too.
"""

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fluoro.v1 import job_pb2, job_service_pb2
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger.submission import OUTPUT_ONLY_JOB, OUTPUT_ONLY_STEP, validate
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

OUTPUT_ONLY = {f"fluoro.v1.Job.{name}" for name in OUTPUT_ONLY_JOB} | {
    f"fluoro.v1.Step.{name}" for name in OUTPUT_ONLY_STEP
}
MANY, LONG = 100_001, 2**20
TEXTS = {FieldDescriptor.TYPE_STRING: "x" * LONG, FieldDescriptor.TYPE_BYTES: bytes(LONG)}

Request = job_service_pb2.SubmitJobRequest
Part = Callable[[Request], Any]


def request(steps: int = 1, inputs: int = 1) -> Request:
    job = job_pb2.Job(inputs=[f"blobs/{new_id()}"] * inputs)
    for number in range(steps):
        job.steps.add(name=f"s{number}").inspect_dicom.SetInParent()
    return Request(job=job)


def inputs_of(
    message: Descriptor, path: str, part: Part
) -> Iterator[tuple[str, FieldDescriptor, Part]]:
    """Every field that a caller sets, its path in refusals, and the way to its message."""
    for field in message.fields:
        oneof = field.containing_oneof
        if field.full_name in OUTPUT_ONLY or (
            oneof and f"{message.full_name}.{oneof.name}" in OUTPUT_ONLY
        ):
            continue
        yield f"{path}{field.name}", field, part
        nested = field.message_type
        if (
            nested is None
            or nested.GetOptions().map_entry
            or nested.full_name.startswith("google.")
        ):
            continue

        def inner(request: Request, part: Part = part, field: FieldDescriptor = field) -> Any:
            value = getattr(part(request), field.name)
            return (value[0] if len(value) else value.add()) if field.is_repeated else value

        yield from inputs_of(
            nested, f"{path}{field.name}{'[0]' if field.is_repeated else ''}.", inner
        )


FIELDS = list(inputs_of(Request.DESCRIPTOR, "", lambda request: request))


def fill(field: FieldDescriptor, part: Message) -> None:
    """Makes a repeated field far too large, with elements that are fine by themselves."""
    value: Any = getattr(part, field.name)
    if field.message_type is None:
        value.extend([1 if field.enum_type else "s0"] * MANY)
    elif field.message_type.GetOptions().map_entry:
        value.update({str(number): "" for number in range(MANY)})
    else:
        for _ in range(MANY):
            value.add()


@pytest.mark.parametrize(
    ("path", "field", "part"),
    [one for one in FIELDS if one[1].is_repeated],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_repeated_field_has_a_limit_that_is_looked_at_first(
    path: str, field: FieldDescriptor, part: Part
) -> None:
    big = request()
    fill(field, part(big))
    started = time.thread_time()
    with pytest.raises(FluoroError) as caught:
        validate(big, "owner")
    assert caught.value.reason == Reason.INVALID_ARGUMENT
    assert [violation.field for violation in caught.value.violations] == [path]
    assert time.thread_time() - started < 0.01


@pytest.mark.parametrize(
    ("path", "field", "part"),
    [one for one in FIELDS if one[1].type in TEXTS],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_text_has_a_limit(path: str, field: FieldDescriptor, part: Part) -> None:
    big = request()
    target, text = part(big), TEXTS[field.type]
    if field.is_repeated:
        getattr(target, field.name)[:] = [text]
    else:
        setattr(target, field.name, text)
    with pytest.raises(FluoroError) as caught:
        validate(big, "owner")
    assert any(one.field.startswith(path) for one in caught.value.violations)
    assert len(str(caught.value)) < 1000


def test_labels_have_short_keys_and_values() -> None:
    for key, value in (("x" * LONG, ""), ("", "x" * LONG)):
        big = request()
        big.job.labels[key] = value
        with pytest.raises(FluoroError, match="256 characters"):
            validate(big, "owner")


def test_fields_that_this_release_does_not_know_count_as_part_of_the_operation() -> None:
    big = request()
    big.job.steps[0].inspect_dicom.MergeFromString(b"\xfa\x7f" + b"\x80\x80\x40" + bytes(2**20))
    with pytest.raises(FluoroError, match="too large"):
        validate(big, "owner")


def test_tasks_are_counted_before_they_are_made() -> None:
    big = request(steps=100, inputs=10_000)
    for step in big.job.steps:
        step.max_inputs_per_task = 1
    started = time.thread_time()
    with pytest.raises(FluoroError, match="10000 tasks"):
        validate(big, "owner")
    assert time.thread_time() - started < 0.25, "making a million tasks takes seconds"


def test_a_refusal_names_the_first_bad_fields_and_counts_the_others() -> None:
    bad = request()
    bad.job.inputs[:] = ["nope"] * 10_000
    with pytest.raises(FluoroError, match="10000 bad field") as caught:
        validate(bad, "owner")
    assert (len(caught.value.violations), caught.value.more_violations) == (20, 9980)


def test_the_largest_job_there_may_be_is_taken() -> None:
    large = request(steps=100, inputs=10_000)
    names = [step.name for step in large.job.steps]
    for number, step in enumerate(large.job.steps):
        step.after.extend(names[:number])
        step.max_inputs_per_task = 1000
    large.job.labels.update({f"{number:0256}": "x" * 256 for number in range(64)})
    submission = validate(large, "owner")
    assert [len(step.tasks) for step in submission.steps] == [10] + 99 * [0], "the others wait"


def test_steps_that_were_refused_take_no_memory() -> None:
    def submit(number: int) -> None:
        step = job_pb2.Step(name=f"s{number}")
        points = step.export_infographic.charts.add().series.add().points
        for _ in range(200):
            points.add(label="\x01")
        with pytest.raises(FluoroError):
            validate(job_service_pb2.SubmitJobRequest(job=job_pb2.Job(steps=[step])), "ada")

    submit(0)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(1, 101):
            submit(number)
        gc.collect()
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 100 * 2**10, "less than a step weighs, for each"
