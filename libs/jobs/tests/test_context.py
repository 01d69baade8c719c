"""What an operation sees: items that fail alone, names made of keys, inputs from earlier steps."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fluoro.v1 import dicom_pb2, job_pb2
from fluoro_jobs.errors import CancelledAttempt, FluoroError, Reason
from fluoro_jobs.testing import Attempt, step_context
from fluoro_jobs.worker import context
from fluoro_jobs.worker.context import Upstream

SUCCEEDED, SKIPPED, FAILED = (
    job_pb2.Item.STATE_SUCCEEDED,
    job_pb2.Item.STATE_SKIPPED,
    job_pb2.Item.STATE_FAILED,
)


def states(attempt: Attempt) -> list[int]:
    return [item.state for item in attempt.context.items.values()]


def copies(attempt: Attempt, role: str = "instance") -> Upstream:
    """What a step leaves that copies each input."""
    for item in attempt.context.each("copy"):
        with item:
            item.put("copy", ".bin", role, "application/octet-stream", item.fetch())
    return attempt.as_upstream(dicom_pb2.RenderDicomResult())


def unpacked(folder: Path, *series: int) -> Upstream:
    """What a step leaves that finds the members of one archive, in so many series."""
    attempt = step_context(folder, [b"archive"], step="unpack")
    for item in attempt.context.each("unpack"):
        with item:
            for number, of in enumerate(series):
                key = f"series-{of}/{number:04}"
                item.put("member", ".dcm", "instance", "application/dicom", b"%d" % number, key)
    return attempt.as_upstream(dicom_pb2.RenderDicomResult())


def test_items_that_fail_or_do_not_apply_are_told_and_the_others_go_on(tmp_path: Path) -> None:
    attempt = step_context(tmp_path, [b"0", b"1", b"2", b"3"])
    for item in attempt.context.each("work"):
        with item:
            match item.key:
                case "0":
                    raise FluoroError(Reason.NOT_DICOM, "Not DICOM.")
                case "1":
                    item.skip(Reason.NO_PIXEL_DATA, "No image.")
                case "2":
                    raise ValueError("text of the file")
    assert states(attempt) == [FAILED, SKIPPED, FAILED, SUCCEEDED]
    assert [(item.key, item.input) for item in attempt.context.items.values()] == [
        (str(number), number) for number in range(4)
    ]
    assert attempt.context.items[2].reason == Reason.INTERNAL
    assert "text" not in attempt.context.items[2].message
    assert [(report.fraction, report.items.failed) for report in attempt.progress] == [
        (0, 0),
        (0.25, 1),
        (0.5, 1),
        (0.75, 2),
        (1, 2),
    ]


def test_an_item_that_fails_after_its_end_leaves_nothing(tmp_path: Path) -> None:
    attempt = step_context(tmp_path, [b"0", b"1"])
    items = []
    for item in attempt.context.each("work"):
        with item:
            item.put("left", ".bin", "instance", "application/octet-stream", b"data")
            items.append(item)
    items[0].fail(FluoroError(Reason.SOP_INSTANCE_CONFLICT, "Two versions."))
    assert states(attempt) == [FAILED, SUCCEEDED]
    assert attempt.context.items[0].reason == Reason.SOP_INSTANCE_CONFLICT
    assert list(attempt.context.artifacts) == ["left-0001.bin"]
    counts = attempt.context.item_counts()
    assert (counts.total, counts.succeeded, counts.failed) == (2, 1, 1)


@pytest.mark.parametrize(
    "error",
    [FluoroError(Reason.BLOB_STORE_UNAVAILABLE, "Away."), OSError(28, "full"), MemoryError()],
)
def test_what_another_attempt_may_mend_ends_the_attempt(tmp_path: Path, error: Exception) -> None:
    attempt = step_context(tmp_path, [b"0"])

    def work() -> None:
        for item in attempt.context.each("work"):
            with item:
                raise error

    with pytest.raises(type(error)):
        work()
    assert not attempt.context.items


def test_an_item_that_fails_or_is_skipped_leaves_no_artifact(tmp_path: Path) -> None:
    attempt = step_context(tmp_path, [b"0", b"1", b"2"])
    for item in attempt.context.each("work"):
        with item:
            item.put("copy", ".bin", "instance", "application/octet-stream", b"x")
            if item.key == "0":
                raise FluoroError(Reason.NOT_DICOM, "Not DICOM.")
            if item.key == "1":
                item.skip(Reason.NO_PIXEL_DATA, "No image.")
    assert list(attempt.context.artifacts) == ["copy-0002.bin"]


def test_an_item_has_a_folder_of_its_own_that_goes_with_it(tmp_path: Path) -> None:
    attempt = step_context(tmp_path, [b"0", b"1"])
    seen = []
    for item in attempt.context.each("work"):
        with item:
            assert item.fetch().read_bytes() == item.key.encode()
            seen.append(item.folder)
            assert len(list(attempt.context.scratch.iterdir())) == 1
            raise FluoroError(Reason.NOT_DICOM, "Not DICOM.")
    assert len(set(seen)) == 2
    assert not any(folder.exists() for folder in seen)


def test_a_cancelled_attempt_stops_before_its_next_item(tmp_path: Path) -> None:
    attempt = step_context(tmp_path, [b"0", b"1"])

    def work() -> None:
        for item in attempt.context.each("work"):
            with item:
                attempt.context.cancelled.set()

    with pytest.raises(CancelledAttempt):
        work()
    assert list(attempt.context.items) == [0]


def test_a_loop_without_its_with_is_told_at_once(tmp_path: Path) -> None:
    attempt = step_context(tmp_path, [b"0"])
    with pytest.raises(RuntimeError, match="with item"):
        list(attempt.context.each("work"))


@pytest.mark.parametrize("key", ["../etc", "3/", "", "Doe^Jane", "x" * 129])
def test_a_hostile_key_is_refused_and_fails_its_item_alone(tmp_path: Path, key: str) -> None:
    attempt = step_context(tmp_path, [b"0", b"1"])
    for item in attempt.context.each("work"):
        with item:
            own = key if item.key == "0" else None
            item.put("member", ".bin", "member", "application/octet-stream", b"x", own)
    assert states(attempt) == [FAILED, SUCCEEDED]
    assert list(attempt.context.artifacts) == ["member-0001.bin"]
    if key:
        with pytest.raises(ValueError, match="A key is"):
            attempt.context.put("a", "member", "application/octet-stream", b"x", key=key)


def test_a_name_used_twice_is_refused(tmp_path: Path) -> None:
    attempt = step_context(tmp_path, [b"0"])
    for item in attempt.context.each("work"):
        with item:
            item.put("copy", ".bin", "instance", "application/octet-stream", b"x")
            with pytest.raises(ValueError, match="exists already"):
                item.put("copy", ".bin", "instance", "application/octet-stream", b"y")
    assert attempt.read("copy-0000.bin") == b"x"


def test_two_attempts_give_artifacts_the_same_names_and_keys(tmp_path: Path) -> None:
    def left() -> list[tuple[str, str]]:
        artifacts = unpacked(tmp_path, 1, 2, 1).artifacts
        return [(artifact.name, artifact.key) for artifact in artifacts]

    assert left() == left()
    assert left()[0] == ("member-series-1~0000.dcm", "series-1/0000")


def test_an_item_that_would_leave_more_than_a_task_may_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "MAX_ARTIFACTS", 3)
    attempt = step_context(tmp_path, [b"2", b"2", b"1"])
    for item in attempt.context.each("copy"):
        with item:
            for number in range(int(item.fetch().read_bytes())):
                key = f"{item.key}/{number}"
                item.put("copy", "", "instance", "application/octet-stream", b"x", key)
    assert states(attempt) == [SUCCEEDED, FAILED, SUCCEEDED]
    assert attempt.context.items[1].reason == Reason.RESULT_TOO_LARGE
    assert [left.key for left in attempt.context.artifacts.values()] == ["0/0", "0/1", "2/0"]
    with pytest.raises(FluoroError, match="max_inputs_per_task"):
        attempt.context.put("all", "report", "text/plain", b"x")


def test_what_shares_a_key_is_one_input_with_several_parts(tmp_path: Path) -> None:
    picture = copies(step_context(tmp_path, [b"0", b"1"], step="picture"), "pixels")
    mask = copies(step_context(tmp_path, [b"a", b"b"], step="mask"), "label-map")
    attempt = step_context(tmp_path, (), [picture, mask], reads=["pixels", "label-map"])
    read = []
    for item in attempt.context.each("measure"):
        with item:
            read.append((item.fetch("pixels").read_bytes(), item.fetch("label-map").read_bytes()))
            assert [part.step for part in item.parts] == ["picture", "mask"]
            with pytest.raises(FluoroError, match="role overlay"):
                item.part("overlay")
    assert read == [(b"0", b"a"), (b"1", b"b")]
    assert [item.input for item in attempt.context.items.values()] == [0, 1]


def test_grouping_gives_one_item_per_series_with_its_parts_in_order(tmp_path: Path) -> None:
    upstream = [unpacked(tmp_path, 2, 1, 2, 2)]
    attempt = step_context(tmp_path, (), upstream, reads=["instance"], group=True)
    volumes = {}
    for item in attempt.context.each("volume"):
        with item:
            volumes[item.key] = [item.fetch(part).read_bytes() for part in item.parts]
            if item.key == "series-2":
                raise FluoroError(Reason.DICOM_INVALID, "A slice is missing.")
    assert volumes == {"series-2": [b"0", b"2", b"3"], "series-1": [b"1"]}
    assert states(attempt) == [FAILED, SUCCEEDED], "a series fails alone"


def test_what_comes_from_several_inputs_of_the_job_names_none(tmp_path: Path) -> None:
    upstream = [copies(step_context(tmp_path, [b"0", b"1"]))]
    attempt = step_context(tmp_path, (), upstream, reads=["instance"], group=True)
    copies(attempt)
    (item,) = attempt.context.items.values()
    (artifact,) = attempt.context.artifacts.values()
    assert (item.key, item.input) == ("all", -1)
    assert (artifact.key, artifact.HasField("input")) == ("all", False)


def test_finding_artifacts_by_name_looks_through_them_once(tmp_path: Path) -> None:
    looks = []

    class Looked(list[job_pb2.Artifact]):
        def __iter__(self) -> Iterator[job_pb2.Artifact]:
            looks.append(1)
            return super().__iter__()

    left = copies(step_context(tmp_path, [b"0", b"1", b"2"]))
    upstream = Upstream("copy", left.result, left.items, Looked(left.artifacts))
    assert [upstream.artifact(one.name) for one in left.artifacts] == left.artifacts
    with pytest.raises(KeyError):
        upstream.artifact("none")
    assert len(looks) == 1
