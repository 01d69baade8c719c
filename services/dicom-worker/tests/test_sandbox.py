"""A codec that crashes costs its item, whatever the codec is."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_worker.limits import MIB
from dicom_worker.pixels.codecs import FrameSpec
from dicom_worker.pixels.decoders import uncertified_frames
from dicom_worker.pixels.sandbox import Sandbox
from dicom_worker.reading import open_dicom
from dicom_worker.testing import Render, edited, outcome, wheel_file
from fluoro_jobs.errors import FluoroError, Reason
from imagecodecs import jpegls_encode
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames

DATASET = dcmread(wheel_file("MR_small_RLE"))
SPEC = FrameSpec(
    syntax=DATASET.file_meta.TransferSyntaxUID,
    rows=64,
    columns=64,
    samples=1,
    bits=16,
    precision=16,
    signed=True,
    dct=False,
    colour="MONOCHROME2",
)
FRAME = next(generate_frames(DATASET.PixelData, number_of_frames=1))
JPEG_LS = jpegls_encode(DATASET.pixel_array.view(np.uint16))


@pytest.fixture
def sandbox() -> Sandbox:
    return Sandbox()


def decode(sandbox: Sandbox, frame: bytes = FRAME) -> tuple[int, ...]:
    return sandbox.decode("packbits", SPEC, frame).shape


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


def test_a_decoder_that_gives_another_shape_than_the_header_says_is_refused(
    sandbox: Sandbox,
) -> None:
    with pytest.raises(FluoroError) as caught:
        sandbox.decode("charls", SPEC._replace(rows=32), JPEG_LS)
    assert caught.value.reason == Reason.PIXELS_UNDECODABLE
    with pytest.raises(FluoroError) as caught:
        sandbox.decode("charls", SPEC._replace(rows=1, columns=1), JPEG_LS)
    assert caught.value.reason == Reason.PIXELS_UNDECODABLE
    sandbox.close()


def test_pixels_survive_the_next_frame_and_large_ones_leave_no_memory_behind(
    sandbox: Sandbox,
) -> None:
    first = sandbox.decode("packbits", SPEC, FRAME)
    before = first.copy()
    large = np.zeros((4096, 2560), np.uint16)
    spec = SPEC._replace(rows=4096, columns=2560)
    assert np.array_equal(sandbox.decode("charls", spec, jpegls_encode(large)), large)
    assert np.array_equal(first, before)
    descriptors = [memory.descriptor for memory in sandbox._memories]
    blocks = sum(Path(f"/proc/self/fd/{each}").stat().st_blocks for each in descriptors)
    assert blocks * 512 < large.nbytes
    sandbox.close()


def test_frames_are_decoded_ahead_and_each_gets_its_own_pixels(sandbox: Sandbox) -> None:
    pictures = [np.full((64, 64), number, np.uint16) for number in range(5)]
    large = np.full((4096, 2560), 9, np.uint16)
    spec = SPEC._replace(rows=4096, columns=2560)
    tickets = [sandbox.begin("charls", SPEC, jpegls_encode(each)) for each in pictures[:4]]
    last = sandbox.begin("charls", spec, jpegls_encode(large))
    tickets.append(sandbox.begin("charls", SPEC, jpegls_encode(pictures[4])))
    assert np.array_equal(sandbox.samples(last, spec), large)
    for ticket, picture in reversed(list(zip(tickets, pictures, strict=True))):
        assert np.array_equal(sandbox.samples(ticket, SPEC), picture)
    sandbox.close()


def test_a_crash_fails_the_frame_that_was_decoded_and_not_the_ones_around(
    sandbox: Sandbox,
) -> None:
    before = sandbox.begin("packbits", SPEC, FRAME)
    assert sandbox.samples(before, SPEC).shape == (64, 64)
    os.kill(child(sandbox), signal.SIGSEGV)
    crashed = sandbox.begin("packbits", SPEC, FRAME)
    after = sandbox.begin("packbits", SPEC, FRAME)
    with pytest.raises(FluoroError, match="crashed"):
        sandbox.samples(crashed, SPEC)
    assert sandbox.samples(after, SPEC).shape == (64, 64)
    sandbox.close()


def test_a_frame_that_nobody_waits_for_any_more_holds_nothing_up(sandbox: Sandbox) -> None:
    sandbox.begin("packbits", SPEC, FRAME)
    assert decode(sandbox) == (64, 64)
    os.kill(child(sandbox), signal.SIGSTOP)
    stopped = sandbox.begin("packbits", SPEC, FRAME)
    pid = child(sandbox)
    sandbox.close()
    assert not Path(f"/proc/{pid}").exists()
    del stopped
    assert decode(sandbox) == (64, 64)
    sandbox.close()


def test_a_bad_frame_hides_none_that_come_before_it(tmp_path: Path) -> None:
    dataset = dcmread(wheel_file("SC_rgb_rle_2frame"))
    frames = list(generate_frames(dataset.PixelData, number_of_frames=2))
    data = edited("SC_rgb_rle_2frame", PixelData=encapsulate([frames[0], frames[1][:64]]))
    path = tmp_path / "two.dcm"
    path.write_bytes(data)
    found = uncertified_frames(open_dicom(path, tmp_path))
    assert np.array_equal(next(found).values, dataset.pixel_array[0])
    with pytest.raises(FluoroError, match="PIXELS_UNDECODABLE"):
        next(found)


def test_a_frame_that_there_is_no_memory_for_costs_no_later_one(sandbox: Sandbox) -> None:
    decode(sandbox)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    kept = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 16 * MIB, kept[1]))
    try:
        with pytest.raises(OSError, match="memory"):
            sandbox.decode("packbits", SPEC._replace(rows=8192, columns=8192), FRAME)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, kept)
    assert decode(sandbox) == (64, 64)
    sandbox.close()


NO_ROOM = """
import resource
from pathlib import Path

import numpy as np
from dicom_worker.pixels.codecs import FrameSpec
from dicom_worker.pixels.sandbox import Sandbox
from imagecodecs import jpegls_encode

sandbox, pixels = Sandbox(), np.ones((8192, 4096), np.uint16)
spec = FrameSpec("", *pixels.shape, 1, 16, 16, signed=True, dct=False, colour="MONOCHROME2")
large = sandbox.begin("charls", spec, jpegls_encode(pixels))
del pixels
sandbox.begin("charls", spec._replace(rows=1, columns=1), jpegls_encode(np.ones((1, 1), np.uint16)))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
kept = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, kept[1]))
try:
    sandbox._free(2**28)
finally:
    resource.setrlimit(resource.RLIMIT_AS, kept)
try:
    sandbox.samples(large, spec)
except MemoryError:
    print("no memory")
sandbox.close()
"""
"""In a process of its own: one that has run tests may have the memory, freed and not given back."""


def test_pixels_that_there_is_no_memory_for_are_not_the_files_fault() -> None:
    command = [sys.executable, "-c", NO_ROOM]
    assert subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout == b"no memory\n"


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
