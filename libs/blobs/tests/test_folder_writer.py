"""What is written past the system's cache is what came, whatever the sizes of its chunks."""

import errno
import fcntl
import hashlib
import os
from pathlib import Path

import pytest
from fluoro_blobs import folder_writer
from fluoro_blobs.folder_writer import GrowingFile

MIB = 1024 * 1024


def written(file: GrowingFile, content: bytes, chunk_bytes: int) -> list[bool]:
    """Appends all of it. Whether the file went past the cache after each chunk."""
    direct = []
    for start in range(0, len(content), chunk_bytes):
        chunk = [content[start : start + chunk_bytes]]
        file.hash(chunk)
        file.append(chunk)
        (flags,) = {
            fcntl.fcntl(int(each.name), fcntl.F_GETFL)
            for each in Path("/proc/self/fd").iterdir()
            if each.exists() and each.samefile(file._growing)
        }
        direct.append(bool(flags & os.O_DIRECT))
    return direct


def takes_direct(folder: Path) -> bool:
    """Whether its file system can do that."""
    try:
        os.close(os.open(folder / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("chunk_bytes", [20_480, MIB, 3 * MIB // 2, 20_000, MIB + 1])
@pytest.mark.parametrize("size", [5 * MIB, 5 * MIB + 1])
def test_a_file_past_the_cache_has_the_bytes_that_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, size: int
) -> None:
    monkeypatch.setattr(folder_writer, "DIRECT_AFTER_BYTES", MIB // 2)
    content, path = os.urandom(size), tmp_path / "a" / "b" / "file"
    path.parent.parent.mkdir()
    file = GrowingFile(path)
    direct = written(file, content, chunk_bytes)
    file.finish()
    assert path.read_bytes() == content
    assert file.sha256() == hashlib.sha256(content).digest()
    assert not direct[0], "the beginning is for those who read soon"
    whole_blocks = chunk_bytes % 4096 == 0
    assert any(direct) >= (whole_blocks and takes_direct(tmp_path)), "the rest is not"


def test_a_file_system_without_a_way_past_the_cache_gets_the_bytes_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.fcntl

    def refusing(descriptor: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETFL and argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", refusing)
    monkeypatch.setattr(folder_writer, "DIRECT_AFTER_BYTES", MIB)
    content, file = os.urandom(4 * MIB), GrowingFile(tmp_path / "file")
    assert not any(written(file, content, MIB))
    file.finish()
    assert (tmp_path / "file").read_bytes() == content
