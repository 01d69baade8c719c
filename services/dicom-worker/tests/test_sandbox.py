"""A codec that crashes costs its item, whatever the codec is."""

import os
import signal
from pathlib import Path

import pytest
from dicom_worker.pixels.sandbox import Sandbox
from dicom_worker.testing import Render, edited, outcome, wheel_file
from fluoro_jobs.errors import FluoroError, Reason
from pydicom import dcmread
from pydicom.encaps import generate_frames

OPTIONS = {
    "pixel_keyword": "PixelData",
    "rows": 64,
    "columns": 64,
    "number_of_frames": 1,
    "samples_per_pixel": 1,
    "photometric_interpretation": "MONOCHROME2",
    "bits_allocated": 16,
    "bits_stored": 16,
    "pixel_representation": 1,
}
DATASET = dcmread(wheel_file("MR_small_RLE"))
FRAME = next(generate_frames(DATASET.PixelData, number_of_frames=1))


@pytest.fixture
def sandbox() -> Sandbox:
    return Sandbox()


def decode(sandbox: Sandbox, frame: bytes = FRAME) -> tuple[int, ...]:
    array, _ = sandbox.decode(DATASET.file_meta.TransferSyntaxUID, "pylibjpeg", OPTIONS, frame)
    return array.shape


def child(sandbox: Sandbox) -> int:
    assert sandbox._child
    return sandbox._child.pid


@pytest.mark.parametrize("crash", [signal.SIGSEGV, signal.SIGABRT, signal.SIGALRM])
def test_a_crash_is_the_files_fault_and_the_next_frame_is_decoded(
    sandbox: Sandbox, crash: signal.Signals
) -> None:
    assert decode(sandbox) == (64, 64)
    os.kill(child(sandbox), crash)
    with pytest.raises(FluoroError) as caught:
        decode(sandbox)
    assert (caught.value.reason, caught.value.may_retry) == (Reason.PIXELS_UNDECODABLE, False)
    assert decode(sandbox) == (64, 64)
    sandbox.close()


def test_a_kill_from_outside_is_not_the_files_fault_and_may_be_retried(sandbox: Sandbox) -> None:
    decode(sandbox)
    os.kill(child(sandbox), signal.SIGKILL)
    with pytest.raises(FluoroError) as caught:
        decode(sandbox)
    assert (caught.value.reason, caught.value.may_retry) == (Reason.WORKER_LOST, True)


def test_a_refused_frame_leaves_the_child_alive(sandbox: Sandbox) -> None:
    with pytest.raises(FluoroError) as caught:
        decode(sandbox, b"no RLE")
    assert caught.value.reason == Reason.PIXELS_UNDECODABLE
    before = child(sandbox)
    assert decode(sandbox) == (64, 64)
    assert child(sandbox) == before
    sandbox.close()


def test_the_child_has_no_environment_and_ends_with_its_input(sandbox: Sandbox) -> None:
    decode(sandbox)
    pid = child(sandbox)
    assert b"FLUORO" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert b"PATH=" not in Path(f"/proc/{pid}/environ").read_bytes()
    sandbox.close()
    assert not Path(f"/proc/{pid}").exists()


def broken(name: str, at: float, value: int) -> bytes:
    """The file with one byte of its code stream changed."""
    dataset = dcmread(wheel_file(name))
    data = bytearray(dataset.PixelData)
    data[int(len(data) * at)] ^= value
    return edited(name, PixelData=bytes(data))


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_jpeg_gdcm",
        "MR_small_RLE",
        "MR_small_jp2klossless",
        "MR_small_jpeg_ls_lossless",
        "SC_rgb_jpeg_dcmtk",
    ],
)
def test_flipped_bits_in_a_code_stream_never_bring_the_worker_down(
    name: str, render: Render
) -> None:
    inputs = [broken(name, at / 40, value) for at in range(2, 39) for value in (0x01, 0xFF)]
    _, attempt = render(*inputs)
    outcomes = {outcome(attempt, number) for number in range(len(inputs))}
    assert outcomes <= {
        "SUCCEEDED",
        "FAILED PIXELS_UNDECODABLE",
        "FAILED DICOM_TRUNCATED",
        "FAILED DICOM_INVALID",
    }
