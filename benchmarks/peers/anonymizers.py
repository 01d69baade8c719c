"""dicognito and deid, as they come: `python anonymizers.py NAME OUT`, run by their own Python.

For each line of paths (JSON) on standard input it de-identifies the files into OUT and prints the
seconds that took. Imports nothing of ours: it runs where only the peers are installed.
"""

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

Anonymize = Callable[[str], None]


def dicognito(out: Path) -> Anonymize:
    """Read, anonymize, save."""
    import pydicom  # noqa: PLC0415 - only one of the two is needed
    from dicognito.anonymizer import Anonymizer  # noqa: PLC0415

    anonymizer = Anonymizer(seed="benchmark")

    def run(path: str) -> None:
        dataset = pydicom.dcmread(path)
        anonymizer.anonymize(dataset)
        dataset.save_as(out / Path(path).name)

    return run


def deid(out: Path) -> Anonymize:
    """The recipe that comes with it."""
    from deid.config import DeidRecipe  # noqa: PLC0415
    from deid.dicom import replace_identifiers  # noqa: PLC0415

    recipe = DeidRecipe()

    def run(path: str) -> None:
        replace_identifiers(
            dicom_files=[path], deid=recipe, save=True, output_folder=str(out), overwrite=True
        )

    return run


def main() -> None:
    """Rounds until standard input ends."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    anonymize = {"dicognito": dicognito, "deid": deid}[sys.argv[1]](Path(sys.argv[2]))
    answers = sys.stdout
    sys.stdout = sys.stderr  # both like to talk
    for line in sys.stdin:
        failed = []
        began = time.perf_counter()
        for path in json.loads(line):
            try:
                anonymize(path)
            except Exception:  # noqa: BLE001 - whatever a peer raises, it left no clean file
                failed.append(path)
        print(
            json.dumps({"seconds": time.perf_counter() - began, "failed": failed}),
            file=answers,
            flush=True,
        )


if __name__ == "__main__":
    main()
