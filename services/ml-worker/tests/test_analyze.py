"""AnalyzeImages from upstream artifacts to findings, on the shipped model."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread, Timer
from typing import Any

import numpy as np
import pydicom
import pytest
from fluoro.v1 import dicom_pb2, job_pb2, ml_pb2
from fluoro_jobs.errors import CancelledAttempt, FluoroError, Reason
from fluoro_jobs.testing import Attempt
from fluoro_jobs.worker.context import Upstream
from ml_worker import registry
from ml_worker.operations import HANDLERS
from ml_worker.operations.analyze import analyze
from ml_worker.registry import Registry
from ml_worker.sessions import Model
from numpy.typing import NDArray
from PIL import Image

Models = Registry
Render = Callable[..., Upstream]
After = Callable[..., Attempt]

EDGES = [-1024, -950, -190, -29, 151, 3072]
NAMES = ["unclassified", "air", "lung", "fat", "soft tissue", "bone"]
CT_TISSUE = ml_pb2.AnalyzeImages(model="ct-tissue")
SUCCEEDED, SKIPPED, FAILED = (
    job_pb2.Item.STATE_SUCCEEDED,
    job_pb2.Item.STATE_SKIPPED,
    job_pb2.Item.STATE_FAILED,
)


@dataclass
class Limited:
    """Models whose runs may have so many bytes."""

    models: Registry
    run_memory_bytes: int

    def find(self, name: str, version: str = "") -> Model:
        return replace(self.models.find(name, version), run_memory_bytes=self.run_memory_bytes)


def oracle(values: NDArray[Any]) -> NDArray[Any]:
    """The same labels by NumPy: the last bin and NaN are unclassified."""
    labels: NDArray[Any] = np.digitize(values, EDGES)
    labels[labels == len(EDGES)] = 0
    return labels


def read_npy(attempt: Attempt, name: str) -> NDArray[Any]:
    array: NDArray[Any] = np.load(io.BytesIO(attempt.read(name)), allow_pickle=False)
    return array


def ct_small() -> tuple[NDArray[Any], pydicom.Dataset]:
    """A real slice in Hounsfield units, as one frame."""
    file = pydicom.data.get_testdata_file("CT_small.dcm")
    assert isinstance(file, str)
    dataset = pydicom.dcmread(file)
    values = dataset.pixel_array.astype(np.int16) * np.int16(dataset.RescaleSlope) + np.int16(
        dataset.RescaleIntercept
    )
    return values[np.newaxis].astype("<i2"), dataset


def test_counts_of_a_real_slice_equal_those_of_numpy(
    models: Models, render: Render, attempt: After
) -> None:
    values, dataset = ct_small()
    upstream = render(
        values, pixel_spacing_mm=dataset.PixelSpacing, slice_thickness_mm=dataset.SliceThickness
    )
    run = attempt(upstream)
    result = analyze(CT_TISSUE, run.context, models)
    labels = oracle(values)
    assert np.array_equal(read_npy(run, "label-map-0000.npy"), labels)
    (finding,) = result.findings
    voxel_ml = (
        float(dataset.PixelSpacing[0] * dataset.PixelSpacing[1] * dataset.SliceThickness) / 1000
    )
    for label, measurement in enumerate(finding.measurements):
        inside = values[labels == label]
        assert measurement.voxels == inside.size
        assert measurement.fraction == inside.size / values.size
        assert measurement.volume_ml == pytest.approx(inside.size * voxel_ml)
        assert measurement.HasField("mean_value") == (inside.size > 0)
        if inside.size:
            assert measurement.mean_value == pytest.approx(inside.mean(dtype=np.float64), rel=1e-12)
    assert [measurement.display_name for measurement in finding.measurements] == NAMES


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<i4", "<f4", "<f8"])
def test_each_side_of_every_threshold_gets_its_label(
    models: Models, render: Render, attempt: After, dtype: str
) -> None:
    values = np.array([edge + step for edge in EDGES for step in (-1, 0, 1)], dtype=dtype).reshape(
        1, 3, 6
    )
    run = attempt(render(values))
    analyze(CT_TISSUE, run.context, models)
    assert np.array_equal(read_npy(run, "label-map-0000.npy"), oracle(values))


def test_values_that_are_no_number_are_unclassified_and_have_no_mean(
    models: Models, render: Render, attempt: After
) -> None:
    values = np.array([[[np.nan, np.inf, -np.inf, 40.0]]], dtype="<f4")
    run = attempt(render(values))
    (finding,) = analyze(CT_TISSUE, run.context, models).findings
    assert read_npy(run, "label-map-0000.npy").tolist() == [[[0, 0, 0, 4]]]
    assert not finding.measurements[0].HasField("mean_value")
    assert finding.measurements[4].mean_value == 40.0


def test_known_boxes_give_known_volumes_and_means(
    models: Models, render: Render, attempt: After
) -> None:
    values = np.full((4, 10, 10), -1000, dtype="<i2")
    values[:, :5, :] = 60
    values[0, 0, :4] = 1000
    run = attempt(render(values, pixel_spacing_mm=[0.5, 2.0], slice_thickness_mm=5.0))
    (finding,) = analyze(CT_TISSUE, run.context, models).findings
    by_name = {measurement.display_name: measurement for measurement in finding.measurements}
    assert (by_name["air"].voxels, by_name["air"].volume_ml, by_name["air"].mean_value) == (
        200,
        1.0,
        -1000.0,
    )
    assert (by_name["soft tissue"].voxels, by_name["soft tissue"].mean_value) == (196, 60.0)
    assert (by_name["bone"].voxels, by_name["bone"].fraction, by_name["bone"].color) == (
        4,
        0.01,
        "#7fd1ae",
    )
    assert by_name["air"].color == ""
    assert sum(measurement.fraction for measurement in finding.measurements) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "geometry", [{}, {"pixel_spacing_mm": [1.0, 1.0]}, {"slice_thickness_mm": 1.0}]
)
def test_without_spacing_or_thickness_there_is_no_volume(
    models: Models, render: Render, attempt: After, geometry: dict[str, Any]
) -> None:
    run = attempt(render(np.zeros((1, 4, 4), "<i2"), **geometry))
    (finding,) = analyze(CT_TISSUE, run.context, models).findings
    assert not any(measurement.HasField("volume_ml") for measurement in finding.measurements)


def test_the_result_names_the_model_that_ran_and_every_artifact(
    models: Models, render: Render, attempt: After
) -> None:
    run = attempt(render(np.zeros((1, 4, 4), "<i2"), np.zeros((2, 3, 5), "<i2")))
    result = analyze(CT_TISSUE, run.context, models)
    assert (result.model.name, result.model.version, result.model.execution_provider) == (
        "ct-tissue",
        "1.0.0",
        "CPUExecutionProvider",
    )
    assert len(result.model.sha256) == 32
    assert result.model.runtime_version.startswith("1.31")
    assert [(finding.input, finding.label_map, finding.overlay) for finding in result.findings] == [
        (0, "label-map-0000.npy", "overlay-0000.png"),
        (1, "label-map-0001.npy", "overlay-0001.png"),
    ]
    roles = {
        name: (artifact.role, artifact.media_type, artifact.input)
        for name, artifact in run.context.artifacts.items()
    }
    assert roles["label-map-0001.npy"] == ("label-map", "application/x-npy", 1)
    assert roles["overlay-0001.png"] == ("overlay", "image/png", 1)
    assert read_npy(run, "label-map-0001.npy").shape == (2, 3, 5)
    assert read_npy(run, "label-map-0001.npy").dtype == np.uint8
    assert run.progress[-1].fraction == 1.0


def test_the_overlay_shows_the_first_frame_grey_where_nothing_is_drawn_and_coloured_elsewhere(
    models: Models, render: Render, attempt: After
) -> None:
    values = np.full((2, 2, 2), -1000, dtype="<i2")
    values[0, 0, 0], values[0, 0, 1] = 40, 1000
    values[1] = 40
    run = attempt(render(values))
    analyze(CT_TISSUE, run.context, models)
    picture = Image.open(io.BytesIO(run.read("overlay-0000.png")))
    assert (picture.mode, picture.size) == ("RGB", (2, 2))
    shown = np.asarray(picture)
    # 0.55 of the grey and 0.45 of the colour: soft tissue at the window's centre, bone above the
    # window, air below it and not drawn.
    assert shown[0, 0].tolist() == [168, 108, 106]
    assert shown[0, 1].tolist() == [197, 234, 219]
    assert shown[1].tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:-1],
        lambda _: b"",
        lambda _: b"no array at all",
        lambda data: data.replace(b"'<i2'", b"'>i2'"),
        lambda data: data.replace(b"(1, 4, 6)", b"(1, 6, 4)"),
        lambda data: data.replace(b"'<i2'", b"'|O' "),
    ],
    ids=[
        "a flipped bit",
        "a missing byte",
        "empty",
        "not NPY",
        "another byte order",
        "another shape",
        "objects",
    ],
)
def test_pixels_unlike_their_certificate_fail_alone_and_never_reach_the_model(
    endless: Models, render: Render, attempt: After, spoil: Callable[[bytes], bytes]
) -> None:
    # The model never returns once it sees a voxel above 0: an end without the fuse means it saw
    # none.
    run = attempt(render(np.ones((1, 4, 6), "<i2"), spoil=spoil))
    fuse = Timer(20, run.context.cancelled.set)
    fuse.start()
    result = analyze(ml_pb2.AnalyzeImages(model="endless"), run.context, endless)
    fuse.cancel()
    assert (run.context.items[0].state, run.context.items[0].reason) == (
        FAILED,
        Reason.PIXELS_NOT_CERTIFIED,
    )
    assert not result.findings
    assert not run.context.artifacts


def test_one_bad_image_does_not_hide_the_good_ones(
    models: Models, render: Render, attempt: After
) -> None:
    upstream = render(*[np.zeros((1, 4, 4), "<i2")] * 3)
    assert isinstance(upstream.result, dicom_pb2.RenderDicomResult)
    upstream.result.images[1].certificate.sha256 = bytes(32)
    run = attempt(upstream)
    result = analyze(CT_TISSUE, run.context, models)
    assert [run.context.items[number].state for number in range(3)] == [
        SUCCEEDED,
        FAILED,
        SUCCEEDED,
    ]
    assert [finding.input for finding in result.findings] == [0, 2]


def test_an_array_that_nobody_vouches_for_fails_its_item(
    models: Models, render: Render, attempt: After
) -> None:
    upstream = render(*[np.zeros((1, 4, 4), "<i2")] * 2)
    assert isinstance(upstream.result, dicom_pb2.RenderDicomResult)
    upstream.result.images[0].pixels = "pixels-0009.npy"
    run = attempt(upstream)
    analyze(CT_TISSUE, run.context, models)
    assert run.context.items[0].reason == Reason.PIXELS_NOT_CERTIFIED
    assert run.context.items[1].state == SUCCEEDED


@pytest.mark.parametrize(
    ("array", "fields"),
    [
        (np.zeros((1, 4, 4), "<i2"), {"modality": "MR", "unit": "1"}),
        (np.zeros((1, 4, 4), "<i2"), {"modality": "PT"}),
        (np.zeros((1, 4, 4), "<i2"), {"unit": "1"}),
        (np.zeros((1, 4, 4, 3), "|u1"), {}),
        (np.zeros((1, 4, 4), "<c8"), {}),
    ],
    ids=["MR", "Hounsfield of no CT", "CT of no Hounsfield", "colour", "complex"],
)
def test_images_the_model_is_not_made_for_are_skipped(
    models: Models, render: Render, attempt: After, array: NDArray[Any], fields: dict[str, Any]
) -> None:
    run = attempt(render(array, **fields))
    result = analyze(CT_TISSUE, run.context, models)
    assert (run.context.items[0].state, run.context.items[0].reason) == (
        SKIPPED,
        Reason.MODEL_NOT_APPLICABLE,
    )
    assert not result.findings


def test_an_unknown_model_is_refused_with_the_names_there_are(
    models: Models, render: Render, attempt: After
) -> None:
    with pytest.raises(FluoroError, match="ct-tissue") as caught:
        analyze(
            ml_pb2.AnalyzeImages(model="ct-organs"),
            attempt(render(np.zeros((1, 2, 2), "<i2"))).context,
            models,
        )
    assert caught.value.reason == Reason.MODEL_UNKNOWN


def test_an_input_that_two_steps_rendered_is_analysed_once(
    models: Models, render: Render, attempt: After
) -> None:
    array = np.zeros((1, 4, 4), "<i2")
    run = attempt(render(array), render(array + 100, name="again"))
    (finding,) = analyze(CT_TISSUE, run.context, models).findings
    assert finding.measurements[4].mean_value == 0, "the first step's pixels"


def test_what_is_found_is_named_by_the_key_of_the_item_and_not_by_a_number_of_an_input(
    models: Models, render: Render, attempt: After
) -> None:
    array = np.zeros((1, 4, 4), "<i2")
    # No gateway takes a group for this operation; this is the shortest way to such a key.
    run = attempt(render(array, array), group=True)
    (finding,) = analyze(CT_TISSUE, run.context, models).findings
    assert finding.measurements[4].voxels == array.size
    assert (finding.item, finding.input) == ("all", -1)
    assert finding.label_map == "label-map-all.npy"
    assert run.context.artifacts[finding.label_map].key == "all"


def test_a_frame_that_needs_more_memory_than_a_run_may_have_fails_its_item(
    models: Models, render: Render, attempt: After
) -> None:
    run = attempt(render(np.zeros((1, 64, 64), "<i2")))
    analyze(CT_TISSUE, run.context, Limited(models, 1024))
    assert run.context.items[0].reason == Reason.IMAGE_TOO_LARGE


def test_chunks_of_any_size_give_the_same_bytes(
    models: Models, render: Render, attempt: After
) -> None:
    volume = np.random.default_rng(7).integers(-1100, 3200, (7, 16, 16), dtype=np.int16)
    upstream = render(volume)
    found = []
    for frames in (1, 3, 100):
        memory = frames * 16 * 16 * models.find("ct-tissue").manifest.batch.bytes_per_voxel
        run = attempt(upstream)
        result = analyze(CT_TISSUE, run.context, Limited(models, memory))
        found.append(
            (
                run.read("label-map-0000.npy"),
                run.read("overlay-0000.png"),
                result.SerializeToString(),
            )
        )
    assert found[0] == found[1] == found[2]


@pytest.mark.timeout(60)
def test_a_cancel_stops_a_run_that_would_never_end(
    endless: Models, render: Render, attempt: After
) -> None:
    run = attempt(render(np.ones((1, 4, 4), "<i2")))
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            analyze(ml_pb2.AnalyzeImages(model="endless"), run.context, endless)
        except CancelledAttempt as cancelled:
            outcome.append(cancelled)

    thread = Thread(target=work, daemon=True)
    thread.start()
    while not list(run.context.scratch.glob("*/label-map.npy")):
        assert thread.is_alive()
        thread.join(0.01)
    thread.join(0.2)
    assert thread.is_alive()
    run.context.cancelled.set()
    thread.join(20)
    assert not thread.is_alive()
    assert isinstance(outcome[0], CancelledAttempt)
    assert not run.context.artifacts


def test_threads_share_a_model_and_each_gets_its_own_answer(
    models: Models, render: Render, attempt: After
) -> None:
    volumes = [
        np.full((3, 32, 32), value, "<i2") for value in (-1000, -500, -100, 0, 500, 60, -60, 1000)
    ]
    runs = [attempt(render(volume)) for volume in volumes]
    results: dict[int, ml_pb2.AnalyzeImagesResult] = {}

    def work(number: int) -> None:
        results[number] = analyze(CT_TISSUE, runs[number].context, models)

    threads = [Thread(target=work, args=(number,)) for number in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number, volume in enumerate(volumes):
        label = int(oracle(volume).flat[0])
        assert results[number].findings[0].measurements[label].voxels == volume.size


def test_the_handler_opens_the_models_the_environment_names(
    endless: Models,
    render: Render,
    attempt: After,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("FLUORO_ML_MODELS_FOLDER", str(tmp_path / "models"))
    (handler,) = (one for one in HANDLERS if one.operation.field == "analyze_images")
    assert handler.operation.task_name == "ml.analyze"
    run = attempt(render(np.zeros((1, 4, 4), "<i2")))
    try:
        found = handler(ml_pb2.AnalyzeImages(model="endless"), run.context)
        assert found.model.manifest_sha256 == endless.find("endless").manifest_sha256
        assert found.findings[0].measurements[0].voxels == 16
        assert handler(CT_TISSUE, run.context).model.name == "ct-tissue"
    finally:
        registry.models().close()
        registry._opened.cache_clear()
