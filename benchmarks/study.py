"""A CT study of 300 slices: uploaded, de-identified, rendered, written as RLE, and as one volume.

Ours: a gateway and a dicom-worker with a slot per CPU, from the first byte of the upload until the
job has ended, with all its artifacts. Theirs: a shell that does the same with DCMTK's tools, one
process per CPU at a time, on local files: `dcmodify` (many files at once), `dcm2pnm`, `dcmcrle`,
and dcm2niix for the volume. It deletes 29 attributes and proves nothing, certifies nothing, keeps
nothing.

Last line: `ratio` = instances per second, ours / theirs.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from shutil import rmtree, which
from typing import Final

import numpy as np
from dicom_worker.studies.testing import ct_slice
from dicom_worker.testing import saved
from fluoro.v1.convert_pb2 import ConvertDicom, DicomTarget, NiftiTarget, TargetTransferSyntax
from fluoro.v1.deidentify_pb2 import DeidentifyDicom
from fluoro.v1.dicom_pb2 import RenderDicom
from fluoro.v1.job_pb2 import Job, Step, StepInput
from fluoro_client import Client
from fluoro_client.jobs import step
from rig.figures import quick, ratio, say
from rig.servers import Servers, servers

PROJECT: Final = "bench"
UPLOADS: Final = 4
"""Files that are uploaded at a time."""
PATIENCE_SECONDS: Final = 240
CPUS: Final = len(os.sched_getaffinity(0))
ERASED: Final = (
    *("AccessionNumber", "InstitutionName", "InstitutionAddress", "ReferringPhysicianName"),
    *("StationName", "StudyDescription", "SeriesDescription", "InstitutionalDepartmentName"),
    *("PhysiciansOfRecord", "PerformingPhysicianName", "NameOfPhysiciansReadingStudy"),
    *("OperatorsName", "AdmittingDiagnosesDescription", "OtherPatientNames"),
    *("PatientBirthDate", "PatientBirthTime", "PatientSex", "PatientAge", "PatientSize"),
    *("PatientWeight", "PatientAddress", "EthnicGroup", "Occupation", "PatientComments"),
    *("AdditionalPatientHistory", "DeviceSerialNumber", "ProtocolName", "StudyID", "ImageComments"),
)
SHELL: Final = """
set -eu
cp -r "$1" "$2"
cd "$2"
mkdir png rle nii
ls *.dcm | xargs -P "$3" -n "$4" dcmodify -nb -q -imt $5 -ma PatientName=ANON -ma PatientID=1
ls *.dcm | xargs -P "$3" -I{} dcm2pnm -q +on +Ww 40 400 {} png/{}.png
ls *.dcm | xargs -P "$3" -I{} dcmcrle -q {} rle/{}
"$6" -z y -b y -f volume -o nii . >/dev/null
"""
"""Source, target, processes, files per dcmodify, what it erases, dcm2niix."""


def study(folder: Path, slices: int) -> list[Path]:
    """A cylinder of water in air, with noise, 512 by 512."""
    random = np.random.default_rng(7)
    row, column = np.mgrid[-1:1:512j, -1:1:512j]
    body = np.where(row**2 + column**2 < 0.6, 1040, 24)
    folder.mkdir()
    paths = []
    for number in range(slices):
        noise = random.normal(0, 12, body.shape)
        path = folder / f"{number:04}.dcm"
        dataset = ct_slice(number, pixels=(body + noise).astype(np.int16), pitch=1.25)
        path.write_bytes(saved(dataset))
        paths.append(path)
    return paths


def steps(per_task: int) -> list[Step]:
    """What the job does; each step after the first works on clean files."""
    clean = StepInput(step="clean", role="instance")
    rle = TargetTransferSyntax.TARGET_TRANSFER_SYNTAX_RLE_LOSSLESS
    return [
        step(DeidentifyDicom(project=PROJECT), "clean", max_inputs_per_task=per_task),
        step(RenderDicom(), "render", inputs=[clean], max_inputs_per_task=per_task),
        step(
            ConvertDicom(dicom=DicomTarget(transfer_syntax=rle)),
            "encode",
            inputs=[clean],
            max_inputs_per_task=per_task,
        ),
        step(
            ConvertDicom(nifti=NiftiTarget()),
            "volume",
            inputs=[StepInput(step="clean", role="instance", group=True)],
        ),
    ]


def fluoro(client: Client, paths: Sequence[Path], per_task: int) -> tuple[float, Job]:
    """Seconds from the first byte to the end of the job."""
    began = time.perf_counter()
    with ThreadPoolExecutor(UPLOADS) as pool:
        blobs = list(pool.map(lambda path: client.upload(path).name, paths))
    job = client.submit(Job(inputs=blobs, steps=steps(per_task)))
    ended = client.wait(job.name, timeout_seconds=PATIENCE_SECONDS)
    seconds = time.perf_counter() - began
    if ended.state != Job.STATE_SUCCEEDED:
        raise SystemExit(f"the job is {Job.State.Name(ended.state)}: {ended.message}")
    return seconds, ended


def shell(source: Path, target: Path, per_task: int) -> float:
    """Seconds of the peers' script."""
    erased = " ".join(f"-ea {keyword}" for keyword in ERASED)
    dcm2niix = Path(sys.executable).parent / "dcm2niix"
    # Words of $5 are arguments of their own.
    places = [str(source), str(target)]
    command = ["bash", "-c", SHELL, "study", *places, str(CPUS), str(per_task), erased]
    began = time.perf_counter()
    subprocess.run([*command, str(dcm2niix)], check=True, capture_output=True)
    seconds = time.perf_counter() - began
    counts = {kind: len(list((target / kind).iterdir())) for kind in ("png", "rle", "nii")}
    if counts["png"] != counts["rle"] or counts["nii"] != 2:
        raise SystemExit(f"the shell left {counts}")
    rmtree(target)
    return seconds


def running(run: Servers, stack: ExitStack) -> Client:
    """A client of a gateway with a worker and a scheduler."""
    keys = run.folder / "keys"
    keys.mkdir()
    (keys / PROJECT).write_bytes(b"of the benchmark alone, 32 bytes or more")
    gateway = stack.enter_context(run.service("gateway"))
    stack.enter_context(run.service("scheduler"))
    stack.enter_context(run.service("dicom_worker", slots=CPUS, deidentify_keys_folder=keys))
    return stack.enter_context(Client(f"127.0.0.1:{gateway.port}", owner="bench"))


def main(slices: int, rounds: int) -> None:
    """Rounds in turn, figures at the end."""
    if not which("dcmodify"):
        raise SystemExit("DCMTK is not installed: apt install dcmtk")
    per_task = max(1, slices // (4 * CPUS))
    rates: dict[str, list[float]] = {"ours": [], "shell": []}
    with servers() as run, ExitStack() as stack:
        client = running(run, stack)
        paths = study(run.folder / "study", slices)
        fluoro(client, paths[:CPUS], 1)  # pool children and codecs start
        for number in range(rounds):
            seconds, job = fluoro(client, paths, per_task)
            rates["ours"].append(slices / seconds)
            taken = shell(run.folder / "study", run.folder / f"shell-{number}", per_task)
            rates["shell"].append(slices / taken)
        for name in [each.name for each in job.steps]:
            say(name, busy_ms_per_instance=1000 * busy_seconds(job, name) / slices)
    for side, found in rates.items():
        p50 = 1000 / statistics.median(found)
        say(side, p50_ms_per_instance=p50, instances_per_second=statistics.median(found))
    say("study", ratio=ratio(rates["ours"], rates["shell"]), slices=slices, cpus=CPUS)


def busy_seconds(job: Job, name: str) -> float:
    """What the attempts of a step's tasks took, one after the other."""
    [found] = [each for each in job.steps if each.name == name]
    return sum(
        (attempt.end_time.ToNanoseconds() - attempt.start_time.ToNanoseconds()) / 1e9
        for task in found.tasks
        for attempt in task.attempts
    )


if __name__ == "__main__":
    main(6, 1) if quick(__doc__) else main(300, 3)
