"""Regenerates the Python code of the public API: `python libs/protos/generate.py [DESTINATION]`.

DESTINATION is `libs/protos/src` unless given. Everything that it writes is committed and nothing of
it is edited; tests/architecture regenerates it and compares the bytes.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PROTOS: Final = ROOT / "protos"
PACKAGES: Final = ("fluoro", "buf", "open_inference")
"""Ours; protovalidate's, the rules that ours are written with; the Open Inference Protocol."""


def generate(destination: Path) -> None:
    """Writes the packages into `destination`, in place of those there.

    CalledProcessError if protoc refuses the protos.
    """
    for package in PACKAGES:
        shutil.rmtree(destination / package, ignore_errors=True)
        (destination / package).mkdir(parents=True)
    plugins = Path(sysconfig.get_path("scripts"))
    sources = sorted(PROTOS.rglob("*.proto"))
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}"),
        *(
            f"--plugin={name}={plugins / name}"
            for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
        ),
        *(
            f"--{output}_out={destination}"
            for output in ("python", "mypy", "grpc_python", "mypy_grpc")
        ),
        *map(str, sources),
    ]
    subprocess.run(command, check=True)
    for source in sources:
        if "\nservice " not in source.read_text():
            _delete_empty_service_code(destination / source.relative_to(PROTOS))
    for folder in {
        *(destination / package for package in PACKAGES),
        *(destination / source.parent.relative_to(PROTOS) for source in sources),
    }:
        (folder / "__init__.py").touch()
    for package in PACKAGES:
        (destination / package / "py.typed").touch()


def _delete_empty_service_code(source: Path) -> None:
    """Deletes what protoc writes for a file without a service: a service module that holds none."""
    for suffix in (".py", ".pyi"):
        source.with_name(f"{source.stem}_pb2_grpc{suffix}").unlink()


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "libs/protos/src")
