"""Memory of chunks, in a process of its own: the setting is for good."""

import ctypes
import subprocess
import sys
from typing import Final

import pytest

FAULTS: Final = """
import resource
from gateway.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        chunks = [bytes([1]) * 2**20 for _ in range(4)]
        del chunks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
{setting}
faults()
print(faults())
"""


def faults(setting: str) -> int:
    """Pages that the system hands out anew while 400 MiB pass through."""
    script = FAULTS.format(setting=setting)
    return int(subprocess.check_output([sys.executable, "-c", script], timeout=60))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_chunks_reuse_the_memory_of_those_before_them() -> None:
    assert faults("keep_freed_memory()") * 20 < faults("")
