"""What stands in a report: the results of earlier steps as a `model.Report`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from importlib.metadata import version
from typing import Final

from fluoro.v1 import deidentify_pb2, dicom_pb2, job_pb2, ml_pb2, photograph_pb2, slide_pb2
from fluoro.v1.model_pb2 import Model
from fluoro_jobs.ledger.origins import JobInput, Origins, StepRun
from fluoro_jobs.operations import OPERATIONS
from fluoro_jobs.worker.context import NO_INPUT, Upstream

from export_worker import comparison, versions, wording
from export_worker.coding import codes_by_model
from export_worker.deidentification import deidentification
from export_worker.images import (
    Image,
    images_of,
    in_order,
    key_of,
    key_of_item,
    models_in,
    pictured,
    results,
    volumes_of,
)
from export_worker.model import (
    Counts,
    Look,
    Other,
    Others,
    Problem,
    Problems,
    Report,
    Rows,
    Thumbnail,
    Thumbnails,
)
from export_worker.pictures import classified, image_block, measurement, model_name
from export_worker.sights import TOLD
from export_worker.uids import SOP_CLASSES, TRANSFER_SYNTAXES
from export_worker.verdicts import in_short, rules
from export_worker.words import Words

REPORTABLE: Final = (
    deidentify_pb2.DeidentifyDicomResult,
    dicom_pb2.InspectDicomResult,
    dicom_pb2.RenderDicomResult,
    photograph_pb2.ImportImagesResult,
    ml_pb2.AnalyzeImagesResult,
    *TOLD,
    slide_pb2.TileSlideResult,
    slide_pb2.AnalyzeSlideResult,
)
"""Results that a report can show."""

LISTED: Final = 200
"""Most rows, or images, in one table: a CT of 2,000 slices would fill 270 pages and a gibibyte.

`result.json` has them all.
"""

THUMBNAILS: Final = 1000
"""Most inputs that are shown in little."""

NO_ORIGINS: Final = Origins([], [])

PROBLEMS: Final = (job_pb2.Item.STATE_FAILED, job_pb2.Item.STATE_SKIPPED)

STATES: Final[dict[int, str]] = {
    job_pb2.Item.STATE_SUCCEEDED: "succeeded",
    job_pb2.Item.STATE_FAILED: "failed",
    job_pb2.Item.STATE_SKIPPED: "skipped",
}


@dataclass(frozen=True, slots=True)
class Pictures:
    """Paths from the attempt's folder by blob: of pictures, and of thumbnails."""

    full: Mapping[str, str] = field(default_factory=dict)
    little: Mapping[str, str] = field(default_factory=dict)


def has_results(upstream: Sequence[Upstream]) -> bool:
    """Whether there is anything to write about."""
    return any(isinstance(step.result, REPORTABLE) for step in upstream)


def contents(
    job: str,
    inputs: int,
    upstream: Sequence[Upstream],
    pictures: Pictures,
    *,
    title: str,
    words: Words,
    look: Look,
    shown: Sequence[Image] | None = None,
    ranked: bool = False,
    compared: comparison.Compare | None = None,
    origins: Origins = NO_ORIGINS,
) -> Report:
    """The whole report.

    inputs: how many the job has. pictures: at least those of the images in `shown` and of
    `compared`. shown: those with pictures; as `images.pictured` if None. ranked: whether the most
    suspicious ones come first.
    """
    images = images_of(upstream)
    # An empty list is a choice: a report without pictures.
    shown = pictured(images) if shown is None else shown
    created = wording.job_time(job)
    use, sentences = uses(upstream, words)
    uncalibrated = [words("uncalibrated")] if _classifies(images) else []
    return {
        "language": words.language,
        "words": words.all,
        "look": look,
        "title": wording.printable(title, wording.TITLE_CHARACTERS) or words("default_title"),
        "job": job,
        "short_job": wording.short_job(job),
        "created": list(created.timetuple()[:6]),
        "created_text": words.date(created),
        "use": use,
        "warnings": [*sentences, *uncalibrated, *versions.warning(upstream, words)],
        "counts": _counts(inputs, upstream),
        "naming": _naming(upstream, words),
        "steps": [_step(step, words) for step in upstream if isinstance(step.result, REPORTABLE)],
        "deidentification": deidentification(upstream, words),
        "problems": _problem_table(upstream, words),
        # Whole series first: they are what the slices below are parts of.
        "images": [
            image_block(image, pictures.full, words) for image in (*volumes_of(upstream), *shown)
        ],
        "images_note": _images_note(len(shown), len(images), words, ranked=ranked),
        "rules": rules(upstream, words),
        "thumbnails": _thumbnail_table(upstream, images, pictures, words),
        "other_findings": _other_table(images, shown, words),
        "comparison": comparison.block(compared, pictures.full, words) if compared else None,
        "instances": _instances(upstream, words),
        "models": _models(upstream, words),
        "certificates": _listed(
            [_certificate(image.rendered, words) for image in images if image.rendered], words
        ),
        "software": [["export-worker", version("export-worker")], ["typst", version("typst")]],
        "runs": _listed([_run(run, words) for run in origins.runs], words),
        "sources": _listed([_source(one, words) for one in origins.inputs], words),
    }


def _classifies(images: Sequence[Image]) -> bool:
    return any(finding.classes for image in images for finding in image.findings)


def use_of(model: ml_pb2.ModelReference) -> int:
    """What the model is for; for demonstration, if nobody says."""
    return model.intended_use or Model.INTENDED_USE_DEMONSTRATION


def uses(upstream: Sequence[Upstream], words: Words) -> tuple[str, list[str]]:
    """The key of the words for every page, and sentences for the first one."""
    models: dict[int, dict[str, None]] = {}
    for model in models_in(upstream):
        models.setdefault(use_of(model), {})[model_name(model)] = None
    keys = {
        Model.INTENDED_USE_DEMONSTRATION: "demonstration",
        Model.INTENDED_USE_RESEARCH: "research",
    }
    found = {key: ", ".join(models[use]) for use, key in keys.items() if use in models}
    sentences = [words(f"{key}_long", models=names) for key, names in found.items()]
    return next(iter(found), ""), sentences


def _note(total: int, words: Words, most: int = LISTED) -> str:
    """What to say below a table of the rows that it leaves out."""
    if total <= most:
        return ""
    return words("rows_left_out", shown=words.count(most), total=words.count(total))


def _listed(rows: list[list[str]], words: Words) -> Rows:
    """A table of the first rows."""
    return {"rows": rows[:LISTED], "note": _note(len(rows), words)}


def _images_note(shown: int, total: int, words: Words, *, ranked: bool) -> str:
    notes = [words("ranked")] if ranked else []
    if shown < total:
        left_out = words("pictures_left_out", shown=words.count(shown), total=words.count(total))
        notes.append(left_out)
    return " ".join(notes)


def _problem_table(upstream: Sequence[Upstream], words: Words) -> Problems:
    rows = list(_problems(upstream))
    return {"rows": rows[:LISTED], "note": _note(len(rows), words)}


def _thumbnail_table(
    upstream: Sequence[Upstream], images: Sequence[Image], pictures: Pictures, words: Words
) -> Thumbnails:
    rows = list(_thumbnails(upstream, images, pictures, words))
    return {"rows": rows[:THUMBNAILS], "note": _note(len(rows), words, THUMBNAILS)}


def _other_table(images: Sequence[Image], shown: Sequence[Image], words: Words) -> Others:
    rows = list(_other_findings(images, shown, words))
    return {"rows": rows[:LISTED], "note": _note(len(rows), words)}


def _instances(upstream: Sequence[Upstream], words: Words) -> Rows:
    found = results(upstream, dicom_pb2.InspectDicomResult)
    return _listed([_instance(one) for result in found for one in result.instances], words)


def worst_states(upstream: Sequence[Upstream]) -> dict[str, int]:
    """The worst that became of each item, by key."""
    worst: dict[str, int] = {}
    for step in upstream:
        for item in step.items:
            key = key_of_item(item)
            # The numbers of states rise from good to bad.
            worst[key] = max(worst.get(key, 0), item.state)
    return worst


def _thumbnails(
    upstream: Sequence[Upstream], images: Sequence[Image], pictures: Pictures, words: Words
) -> Iterator[Thumbnail]:
    """Every item in order of keys, with the verdict or the most probable class, if any."""
    states = worst_states(upstream)
    by_key = {image.key: image for image in images}
    # Both: an item that failed has no picture, and belongs in a list of all.
    for key in sorted({*states, *by_key}, key=in_order):
        image = by_key.get(key)
        findings = image.findings if image else ()
        likely = [one for each in findings for one in classified(each, words)]
        verdict = in_short(image.judged, image.scored, words) if image else None
        first = verdict or (likely[0]["rows"][0] if likely else None)
        name = wording.key(wording.printable(key, 128))
        file = pictures.little.get(image.little.blob, "") if image and image.little else ""
        yield {
            "input": name,
            "file": f"/{file}" if file else "",
            "alt": words("thumbnail_alt", key=name),
            "state": STATES.get(states.get(key, 0), "succeeded"),
            "said": first["name"] if first else "",
            "percent": first["percent"] if first else "",
            "share": first["share"] if first else 0.0,
        }


def _counts(inputs: int, upstream: Sequence[Upstream]) -> Counts:
    """Inputs by the worst that became of each in any step.

    An input of the job that no item comes from is one that never reached these steps. That is not
    known if an item comes from several.
    """
    states = list(worst_states(upstream).values())
    reached = {item.input for step in upstream for item in step.items}
    missed = 0 if NO_INPUT in reached else max(inputs - len(reached), 0)
    return {
        "inputs": len(states) + missed,
        "succeeded": states.count(job_pb2.Item.STATE_SUCCEEDED),
        "skipped": states.count(job_pb2.Item.STATE_SKIPPED),
        "failed": states.count(job_pb2.Item.STATE_FAILED),
        "not_reached": missed,
    }


def _naming(upstream: Sequence[Upstream], words: Words) -> str:
    """What the names of inputs mean."""
    if all(key_of_item(item).isdecimal() for step in upstream for item in step.items):
        return words("naming")
    return f"{words('naming')} {words('naming_keys')}"


def _step(step: Upstream, words: Words) -> list[str]:
    """Name, task, and items succeeded, skipped, failed."""
    states = [item.state for item in step.items]
    task = next(
        operation.task_name for operation in OPERATIONS if isinstance(step.result, operation.result)
    )
    outcomes = (job_pb2.Item.STATE_SUCCEEDED, job_pb2.Item.STATE_SKIPPED, job_pb2.Item.STATE_FAILED)
    return [step.step, task, *(words.count(states.count(outcome)) for outcome in outcomes)]


def _problems(upstream: Sequence[Upstream]) -> Iterator[Problem]:
    """One row per input and cause.

    What fails in one step because of the file fails in the other steps for the same reason.
    """
    steps: dict[tuple[str, int, str, str], list[str]] = {}
    for step in upstream:
        for item in step.items:
            if item.state in PROBLEMS:
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


def _other_findings(
    images: Sequence[Image], shown: Sequence[Image], words: Words
) -> Iterator[Other]:
    """Measurements of the images without pictures."""
    seen = {image.key for image in shown}
    for image in images:
        if image.key not in seen:
            for finding in (each for each in image.findings if each.measurements):
                rows = [measurement(entry, words) for entry in finding.measurements]
                yield {
                    "input": wording.key(image.key),
                    "model": model_name(finding.model),
                    "rows": rows,
                }


def _run(run: StepRun, words: Words) -> list[str]:
    """Step, when it began and ended, number of attempts."""
    began, ended = (moment.astimezone(UTC) for moment in (run.start_time, run.end_time))
    return [
        run.step,
        f"{began:%Y-%m-%d %H:%M:%S}",
        f"{ended:%Y-%m-%d %H:%M:%S}",
        words.count(run.attempts),
    ]


def _source(one: JobInput, words: Words) -> list[str]:
    """Input, bytes, SHA-256 in hexadecimal."""
    return [str(one.number), words.count(one.size_bytes), one.sha256.hex()]


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


def _models(upstream: Sequence[Upstream], words: Words) -> list[list[list[str]]]:
    """Per model, once: names and values of what one needs to run it again."""
    models: list[list[list[str]]] = []
    codes = codes_by_model(upstream)
    for model in models_in(upstream):
        rows = [
            [words("model"), model_name(model)],
            [words("intended_use"), words(f"use_{min(model.intended_use, 3)}")],
            [words("model_sha"), model.sha256.hex()],
            [words("manifest_sha"), model.manifest_sha256.hex()],
            [words("runtime"), f"ONNX Runtime {wording.printable(model.runtime_version, 64)}"],
            [words("provider"), wording.printable(model.execution_provider, 64)],
            [words("codes"), codes.get(model.SerializeToString(deterministic=True), "")],
        ]
        rows = [row for row in rows if row[1]]
        # Several steps may have run one model; another provider makes it another line.
        if rows not in models:
            models.append(rows)
    return models


def _certificate(image: dicom_pb2.RenderedImage, words: Words) -> list[str]:
    """Input, array, range, decoder, SHA-256 in hexadecimal."""
    certificate = image.certificate
    low, high = words.short(certificate.minimum), words.short(certificate.maximum)
    return [
        wording.key(key_of(image)),
        f"{wording.size(certificate.shape)} {wording.printable(certificate.dtype, 16)}".strip(),
        words("range_of", low=low, high=high, unit=wording.unit(certificate.unit)).strip(),
        wording.printable(certificate.decoder, 64) or wording.NONE,
        certificate.sha256.hex(),
    ]
