"""What a task reads of the large results of earlier steps."""

from pathlib import Path

from fluoro.v1 import dicom_pb2, ml_pb2
from fluoro_blobs import BlobStore
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger.planning import ALL
from fluoro_jobs.ledger.read import StoredResult
from fluoro_jobs.worker.results import LargeResults, joined
from google.protobuf.message import Message

Image = dicom_pb2.RenderedImage


def store_of(folder: Path) -> BlobStore:
    return BlobStore.from_url(folder.as_uri())


def kept(blobs: BlobStore, *results: Message, operation: str = "render_dicom") -> StoredResult:
    parts = [new_id() for _ in results]
    for part, result in zip(parts, results, strict=True):
        blobs.put(f"blobs/{part}", result.SerializeToString())
    return StoredResult("step", operation, list(parts))


def rendered(*items: str) -> dicom_pb2.RenderDicomResult:
    return dicom_pb2.RenderDicomResult(images=[Image(item=item) for item in items])


def items_of(result: Message) -> list[str]:
    assert isinstance(result, dicom_pb2.RenderDicomResult)
    return [image.item for image in result.images]


def test_tasks_that_work_on_what_one_task_left_read_its_result_once_and_get_their_own_entries(
    tmp_path: Path,
) -> None:
    blobs, large = store_of(tmp_path), LargeResults()
    stored = kept(blobs, rendered(*map(str, range(10_000))))
    assert items_of(large.about(blobs, stored, ["7"])) == ["7"]
    # The blob is gone, and what was read of it is not.
    blobs.delete(f"blobs/{stored.parts[0]}")
    for number in range(10_000):
        assert items_of(large.about(blobs, stored, [str(number)])) == [str(number)]
    assert len(items_of(large.about(blobs, stored, [ALL]))) == 10_000


def test_a_task_gets_the_entries_of_what_its_inputs_come_from_and_are_made_of(
    tmp_path: Path,
) -> None:
    blobs, large = store_of(tmp_path), LargeResults()
    stored = kept(blobs, rendered("0", "0-1", "0/0", "0/0/1", "0/1", "00", ""), rendered("1"))
    assert sorted(items_of(large.about(blobs, stored, ["0/0"]))) == ["", "0", "0/0", "0/0/1"]
    assert items_of(large.about(blobs, stored, ["1"])) == ["", "1"]
    findings = [ml_pb2.ImageFinding(item=str(n)) for n in range(3)]
    model = ml_pb2.AnalyzeImagesResult(model={"name": "one"}, findings=findings)
    stored = kept(blobs, model, operation="analyze_images")
    found = large.about(blobs, stored, ["2/0007"])
    assert found == ml_pb2.AnalyzeImagesResult(model={"name": "one"}, findings=findings[2:])


def test_what_a_process_keeps_of_large_results_has_a_bound(tmp_path: Path) -> None:
    blobs = store_of(tmp_path)
    results = [rendered(str(n), "x" * 100) for n in range(4)]
    large = LargeResults(most_bytes=2 * results[0].ByteSize())
    stored = [kept(blobs, result) for result in results]
    for number, one in enumerate(stored):
        assert items_of(large.about(blobs, one, [str(number)])) == [str(number)]
    assert len(large._kept) == 2
    assert joined(blobs, kept(blobs, *results)).ByteSize() == sum(r.ByteSize() for r in results)
