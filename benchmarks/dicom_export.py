"""A SEG of a 300-slice label map by ExportDicom, and by highdicom called plainly.

300 CT slices of 512 x 512 with a label map each, from files to a file. We read headers within
limits, clean them, check each map against its image, and derive UIDs; the peer reads the same files
with pydicom and calls highdicom. Each round in a fresh process.

Last line: `ratio` = our seconds / theirs (aim ≤ 1.1), `ratio_cpu` the same of processor time, which
other programs on the machine disturb less, `ratio_memory` of MiB above idle (aim ≤ 1.1).
"""

import multiprocessing
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import highdicom
import numpy as np
from export_worker.dicom import export as _warm  # noqa: F401 - imports are not what is measured
from export_worker.dicom.codes import coded
from export_worker.findings import Class
from export_worker.operations.dicom import export_dicom
from export_worker.testing import CLASSES, Study, ct_slices
from fluoro.v1.export_pb2 import ExportDicom
from fluoro_jobs.worker.context import Upstream
from highdicom.seg import Segmentation, SegmentDescription
from pydicom import dcmread
from pydicom.sr.codedict import codes
from rig.figures import quick, ratio, say

Work = Callable[[Path, list[Upstream]], None]
FILES: Final = "files.pickle"


def status_mib(field: str) -> float:
    """A field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def ours(folder: Path, upstream: list[Upstream]) -> None:
    """The operation, from blobs to a blob."""
    names = pickle.loads((folder / FILES).read_bytes())
    attempt = Study(folder, [], []).attempt_on(names, upstream)
    export_dicom(ExportDicom(kinds=[ExportDicom.KIND_SEGMENTATION]), attempt.context)


def theirs(folder: Path, _upstream: list[Upstream]) -> None:
    """Pydicom and highdicom, from files to a file."""
    paths = sorted((folder / "plain").glob("*.dcm"))
    headers = [dcmread(path, stop_before_pixels=True) for path in paths]
    maps = [np.load(path.with_suffix(".npy")) for path in paths]
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="peer", family=codes.cid7162.ArtificialIntelligence, version="1"
    )
    described = [
        SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=coded(Class(name, number)).category,
            segmented_property_type=coded(Class(name, number)).type,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, (name, _) in enumerate(CLASSES)
        if number
    ]
    Segmentation(
        source_images=headers,
        pixel_array=np.concatenate(maps),
        segmentation_type="BINARY",
        segment_descriptions=described,
        series_instance_uid=highdicom.UID(),
        series_number=1,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="peer",
        manufacturer_model_name="peer",
        software_versions="1",
        device_serial_number="1",
    ).save_as(folder / "peer.dcm")


def measured(work: Work, folder: Path, upstream: list[Upstream]) -> tuple[float, float, float]:
    """Seconds, seconds of processors, MiB above idle. To be called in a fresh process."""
    idle = status_mib("VmRSS")
    began, ran = time.perf_counter(), time.process_time()
    work(folder, upstream)
    seconds, cpu = time.perf_counter() - began, time.process_time() - ran
    return seconds, cpu, status_mib("VmHWM") - idle


def main() -> None:
    """Measures both in turn."""
    rounds, slices, size = (1, 6, 64) if quick(__doc__) else (5, 300, 512)
    with tempfile.TemporaryDirectory(prefix="fluoro-dicom-") as name:
        folder = Path(name)
        study = Study.of_slices(folder, ct_slices(slices, size))
        upstream = [study.analyze()]
        (folder / "plain").mkdir()
        for number, (file, labels) in enumerate(zip(study.files, study.maps, strict=True)):
            (folder / "plain" / f"{number:04}.dcm").write_bytes(file)
            assert labels is not None
            np.save(folder / "plain" / f"{number:04}.npy", labels)
        (folder / FILES).write_bytes(pickle.dumps(study.stored()))
        del study
        found: dict[str, list[tuple[float, float, float]]] = {"ours": [], "theirs": []}
        for _ in range(rounds):
            for who, work in (("ours", ours), ("theirs", theirs)):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    figures = pool.apply(measured, (work, folder, upstream))
                found[who].append(figures)
                seconds, cpu, peak = figures
                say("dicom_export", who=who, seconds=seconds, cpu_seconds=cpu, memory_mib=peak)
    say(
        "dicom_export",
        slices=slices,
        **{
            name: ratio(*([one[place] for one in found[who]] for who in ("ours", "theirs")))
            for place, name in enumerate(("ratio", "ratio_cpu", "ratio_memory"))
        },
    )


if __name__ == "__main__":
    main()
