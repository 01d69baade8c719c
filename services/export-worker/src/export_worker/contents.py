"""What stands in a report: the results of earlier steps as plain data for `templates/report.typ`.

Strings are final: the template only lays them out. Nothing in them identifies a patient or an
instance.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Final

from fluoro.v1 import deidentify_pb2, dicom_pb2, job_pb2, ml_pb2, photograph_pb2
from fluoro_jobs.operations import OPERATIONS
from fluoro_jobs.worker.context import NO_INPUT, Upstream

from export_worker import wording
from export_worker.deidentification import deidentification
from export_worker.images import Image, images_of, in_order, key_of, key_of_item, pictured, results
from export_worker.pictures import image_block, measurement, model_name
from export_worker.uids import SOP_CLASSES, TRANSFER_SYNTAXES

REPORTABLE: Final = (
    deidentify_pb2.DeidentifyDicomResult,
    dicom_pb2.InspectDicomResult,
    dicom_pb2.RenderDicomResult,
    photograph_pb2.ImportImagesResult,
    ml_pb2.AnalyzeImagesResult,
)
"""Results that a report can show."""

LISTED: Final = 200
"""Most rows, or images, in one table: a CT of 2,000 slices would fill 270 pages and a gibibyte.

`result.json` has them all.
"""

STATES: Final[dict[int, str]] = {
    job_pb2.Item.STATE_FAILED: "failed",
    job_pb2.Item.STATE_SKIPPED: "skipped",
}

Fields = dict[str, object]


def has_results(upstream: Sequence[Upstream]) -> bool:
    """Whether there is anything to write about."""
    return any(isinstance(step.result, REPORTABLE) for step in upstream)


def picture_blobs(upstream: Sequence[Upstream]) -> list[str]:
    """Names of the blobs of all pictures the report shows, each once."""
    return list(
        dict.fromkeys(
            picture.blob for image in pictured(images_of(upstream)) for picture in image.pictures
        )
    )


def contents(
    title: str, job: str, inputs: int, upstream: Sequence[Upstream], files: Mapping[str, str]
) -> Fields:
    """The whole report.

    inputs: how many the job has. files: path below typst's root for each blob of `picture_blobs`.
    """
    images = images_of(upstream)
    shown = pictured(images)
    created = wording.job_time(job)
    return {
        "title": wording.printable(title, wording.TITLE_CHARACTERS) or "Imaging report",
        "job": job,
        "short_job": wording.short_job(job),
        "created": [
            created.year,
            created.month,
            created.day,
            created.hour,
            created.minute,
            created.second,
        ],
        "created_text": f"{created.day} {created:%B %Y, %H:%M} UTC",
        "counts": _counts(inputs, upstream),
        "naming": _naming(upstream),
        "steps": [_step(step) for step in upstream if isinstance(step.result, REPORTABLE)],
        "deidentification": deidentification(upstream),
        "problems": _listed(list(_problems(upstream))),
        "images": [image_block(image, files) for image in shown],
        "images_total": len(images),
        "other_findings": _listed(list(_other_findings(images, shown))),
        "instances": _listed(
            [
                _instance(one)
                for result in results(upstream, dicom_pb2.InspectDicomResult)
                for one in result.instances
            ]
        ),
        "models": _models(upstream),
        "certificates": _listed(
            [_certificate(image.rendered) for image in images if image.rendered]
        ),
        "software": [["export-worker", version("export-worker")], ["typst", version("typst")]],
    }


def _listed(rows: Sequence[object]) -> Fields:
    """A table, and what to say below it of the rows that it leaves out."""
    total = wording.count(len(rows))
    note = (
        f"The first {LISTED} of {total} are listed. "
        "The job itself and the report as JSON have them all."
        if len(rows) > LISTED
        else ""
    )
    return {"rows": rows[:LISTED], "note": note}


def _counts(inputs: int, upstream: Sequence[Upstream]) -> Fields:
    """Inputs by the worst that became of each in any step.

    An input of the job that no item comes from is one that never reached these steps. That is not
    known if an item comes from several.
    """
    worst: dict[str, int] = {}
    reached: set[int] = set()
    for step in upstream:
        for item in step.items:
            key = key_of_item(item)
            worst[key] = max(worst.get(key, 0), item.state)
            reached.add(item.input)
    states = list(worst.values())
    missed = 0 if NO_INPUT in reached else max(inputs - len(reached), 0)
    return {
        "inputs": len(worst) + missed,
        "succeeded": states.count(job_pb2.Item.STATE_SUCCEEDED),
        "skipped": states.count(job_pb2.Item.STATE_SKIPPED),
        "failed": states.count(job_pb2.Item.STATE_FAILED),
        "not_reached": missed,
    }


def _naming(upstream: Sequence[Upstream]) -> str:
    """What the names of inputs mean."""
    numbers = "Inputs are numbered from 0, in the order in which they were submitted."
    if all(key_of_item(item).isdecimal() for step in upstream for item in step.items):
        return numbers
    return f"{numbers} Names like 3/0007 or series-2 come from a step that split or joined inputs."


def _step(step: Upstream) -> list[str]:
    """Name, task, and items succeeded, skipped, failed."""
    states = [item.state for item in step.items]
    task = next(
        operation.task_name for operation in OPERATIONS if isinstance(step.result, operation.result)
    )
    outcomes = (job_pb2.Item.STATE_SUCCEEDED, job_pb2.Item.STATE_SKIPPED, job_pb2.Item.STATE_FAILED)
    return [step.step, task, *(wording.count(states.count(outcome)) for outcome in outcomes)]


def _problems(upstream: Sequence[Upstream]) -> Iterator[Fields]:
    """One row per input and cause.

    What fails in one step because of the file fails in the other steps for the same reason.
    """
    steps: dict[tuple[str, int, str, str], list[str]] = {}
    for step in upstream:
        for item in step.items:
            if item.state in STATES:
                cause = key_of_item(item), int(item.state), item.reason, item.message
                steps.setdefault(cause, []).append(step.step)
    for key, state, reason, message in sorted(steps, key=lambda cause: (in_order(cause[0]), cause)):
        names = steps[key, state, reason, message]
        yield {
            "input": wording.key(key),
            "steps": ", ".join(names),
            "state": STATES[state],
            "reason": wording.printable(reason, 64),
            "message": wording.printable(message) or wording.NONE,
        }


def _other_findings(images: Sequence[Image], shown: Sequence[Image]) -> Iterator[Fields]:
    """Measurements of the images without pictures."""
    seen = {image.key for image in shown}
    for image in images:
        if image.key not in seen:
            for finding in image.findings:
                rows = [measurement(entry) for entry in finding.measurements]
                yield {
                    "input": wording.key(image.key),
                    "model": model_name(finding.model),
                    "rows": rows,
                }


def _instance(instance: dicom_pb2.DicomInstance) -> list[str]:
    """Input, modality, body part, size, bits, photometric interpretation, syntax, SOP class."""
    size = (
        wording.size((instance.rows, instance.columns, instance.number_of_frames))
        if instance.rows
        else wording.NONE
    )
    return [
        wording.key(key_of(instance)),
        wording.printable(instance.modality, 16) or wording.NONE,
        wording.printable(instance.body_part_examined, 16) or wording.NONE,
        size,
        str(instance.bits_stored or wording.NONE),
        wording.printable(instance.photometric_interpretation, 16) or wording.NONE,
        TRANSFER_SYNTAXES.get(
            instance.transfer_syntax_uid, wording.printable(instance.transfer_syntax_uid, 64)
        )
        or wording.NONE,
        SOP_CLASSES.get(instance.sop_class_uid, wording.printable(instance.sop_class_uid, 64))
        or wording.NONE,
    ]


def _models(upstream: Sequence[Upstream]) -> list[list[list[str]]]:
    """Per model, once: names and values of what one needs to run it again."""
    models: list[list[list[str]]] = []
    for result in results(upstream, ml_pb2.AnalyzeImagesResult):
        model = [
            ["Model", model_name(result.model)],
            ["Model SHA-256", result.model.sha256.hex()],
            ["Runtime", f"ONNX Runtime {wording.printable(result.model.runtime_version, 64)}"],
            ["Provider", wording.printable(result.model.execution_provider, 64)],
        ]
        if model not in models:
            models.append(model)
    return models


def _certificate(image: dicom_pb2.RenderedImage) -> list[str]:
    """Input, array, range, decoder, SHA-256 in hexadecimal."""
    certificate = image.certificate
    unit = wording.unit(certificate.unit)
    minimum, maximum = wording.short(certificate.minimum), wording.short(certificate.maximum)
    return [
        wording.key(key_of(image)),
        f"{wording.size(certificate.shape)} {wording.printable(certificate.dtype, 16)}".strip(),
        f"{minimum} to {maximum} {unit}".strip(),
        wording.printable(certificate.decoder, 64) or wording.NONE,
        certificate.sha256.hex(),
    ]
