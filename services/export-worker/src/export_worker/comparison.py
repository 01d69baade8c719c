"""What models found, in variants or at time points, beside each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fluoro.v1 import job_pb2, ml_pb2
from fluoro.v1.export_pb2 import Difference

from export_worker import wording
from export_worker.images import NO_CLASS_NAME, Finding, Image
from export_worker.model import Compared, Comparison, Picture, Subject
from export_worker.pictures import model_name, picture
from export_worker.words import Words

MOST_VARIANTS: Final = 4
"""As many as fit side by side on paper."""
SUBJECTS: Final = 100
"""Most subjects with their tables in a report. The result in JSON has all."""
PICTURED: Final = 12
"""Most of them with pictures."""

Quantity = Difference.Quantity


@dataclass(frozen=True, slots=True)
class Row:
    """A class: its values in the variants, None where one has none."""

    name: str
    quantity: "Quantity.ValueType"
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Pair:
    """One subject: an image in several steps, or a step's finding in several images."""

    name: str
    findings: Sequence[Finding | None]
    pictures: Sequence[job_pb2.Artifact | None]
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Compare:
    """What is compared with what. variants: names of steps, or keys of images."""

    variants: Sequence[str]
    of_images: bool
    pairs: Sequence[Pair]


def analyses(images: Sequence[Image]) -> list[str]:
    """Names of the steps that found anything, in order."""
    return list(dict.fromkeys(finding.step for image in images for finding in image.findings))


def compare(images: Sequence[Image], steps: Sequence[str], items: Sequence[str]) -> Compare:
    """Steps side by side, or images if `items` names any.

    Subjects with a single finding are left out.
    """
    # Only what nobody chose is cut: more variants have no room on paper.
    steps = list(steps) or analyses(images)[:MOST_VARIANTS]
    if items:
        by_key = {image.key: image for image in images}
        # An image that failed leaves its column empty; dropped, the others would move under its
        # name.
        chosen = [by_key.get(key) for key in items]
        pairs = [_pair(step, [(image, _of(image, step)) for image in chosen]) for step in steps]
        return Compare(items, True, [pair for pair in pairs if pair])
    pairs = [_pair(image.key, [(image, _of(image, step)) for step in steps]) for image in images]
    return Compare(steps, False, [pair for pair in pairs if pair])


def _of(image: Image | None, step: str) -> Finding | None:
    found = (finding for finding in (image.findings if image else ()) if finding.step == step)
    return next(found, None)


def _pair(name: str, found: Sequence[tuple[Image | None, Finding | None]]) -> Pair | None:
    findings = [finding for _, finding in found]
    # A table with one column of values looks like a comparison that found no difference.
    if sum(finding is not None for finding in findings) < 2:  # noqa: PLR2004 - one is no comparison
        return None
    pictures = [
        (finding.overlay or (image.little if image else None)) if finding else None
        for image, finding in found
    ]
    return Pair(name, findings, pictures, [*_measured(findings), *_classified(findings)])


def _measured(findings: Sequence[Finding | None]) -> list[Row]:
    """By volume if every measurement has one, else by share."""
    tables: list[dict[str, ml_pb2.Measurement]] = [
        {_name(entry): entry for entry in finding.measurements} if finding else {}
        for finding in findings
    ]
    # Volumes of some and shares of others cannot stand in one column.
    volumes = all(entry.HasField("volume_ml") for table in tables for entry in table.values())
    quantity = Quantity.QUANTITY_VOLUME_ML if volumes else Quantity.QUANTITY_FRACTION
    return _rows(
        quantity,
        [
            {name: entry.volume_ml if volumes else entry.fraction for name, entry in table.items()}
            for table in tables
        ],
    )


def _classified(findings: Sequence[Finding | None]) -> list[Row]:
    """Probabilities of the first frame."""
    return _rows(
        Quantity.QUANTITY_PROBABILITY,
        [
            {
                _name(score): score.probability
                for score in finding.classes
                if score.frame == finding.classes[0].frame
            }
            if finding
            else {}
            for finding in findings
        ],
    )


def _rows(quantity: "Quantity.ValueType", tables: Sequence[Mapping[str, float]]) -> list[Row]:
    names = dict.fromkeys(name for table in tables for name in table)
    return [Row(name, quantity, [table.get(name) for table in tables]) for name in names]


def _name(entry: ml_pb2.Measurement | ml_pb2.ClassScore) -> str:
    return wording.printable(entry.display_name, 64) or str(entry.label)


def differences(compared: Compare) -> list[Difference]:
    """One per subject, class and variant but the reference."""
    found: list[Difference] = []
    for pair in compared.pairs:
        for row in pair.rows:
            # The first variant is the reference, which has no difference from itself.
            for variant, value in zip(compared.variants[1:], row.values[1:], strict=True):
                found.append(
                    Difference(
                        subject=pair.name,
                        display_name=row.name,
                        variant=variant,
                        reference=compared.variants[0],
                        quantity=row.quantity,
                        reference_value=row.values[0],
                        value=value,
                    )
                )
    return found


def picture_artifacts(compared: Compare) -> list[job_pb2.Artifact]:
    """Of the subjects shown with pictures."""
    return [one for pair in compared.pairs[:PICTURED] for one in pair.pictures if one]


def block(compared: Compare, files: Mapping[str, str], words: Words) -> Comparison:
    """For the templates. files: path below typst's root by blob."""
    names = [wording.key(wording.printable(variant, 64)) for variant in compared.variants]
    total = len(compared.pairs)
    return {
        "variants": names,
        "subjects": [
            _subject(pair, compared, names, files if number < PICTURED else {}, words)
            for number, pair in enumerate(compared.pairs[:SUBJECTS])
        ],
        "note": words("rows_left_out", shown=str(SUBJECTS), total=words.count(total))
        if total > SUBJECTS
        else "",
    }


def _subject(
    pair: Pair, compared: Compare, names: Sequence[str], files: Mapping[str, str], words: Words
) -> Subject:
    shown: list[Picture] = [
        picture(files, one, name, model_name(finding.model), words("preview_alt", key=name))
        for name, finding, one in zip(names, pair.findings, pair.pictures, strict=True)
        if one and finding and one.blob in files
    ]
    quantities = {row.quantity for row in pair.rows}
    headings = {
        Quantity.QUANTITY_VOLUME_ML: "volume",
        Quantity.QUANTITY_FRACTION: "share",
        Quantity.QUANTITY_PROBABILITY: "probability",
    }
    return {
        "name": f"{words('step' if compared.of_images else 'input')} "
        f"{wording.key(wording.printable(pair.name, 128))}",
        "quantity": " / ".join(words(headings[each]) for each in sorted(quantities)),
        # With one missing, the others would stand under wrong names.
        "pictures": shown if len(shown) == len(compared.variants) else [],
        "rows": [_compared(row, words) for row in pair.rows],
    }


def _compared(row: Row, words: Words) -> Compared:
    first = row.values[0]
    volume = row.quantity == Quantity.QUANTITY_VOLUME_ML
    # Bars of volumes are drawn relative to the largest; shares have a scale of their own.
    most = max((value for value in row.values if value), default=1.0) if volume else 1.0
    return {
        "name": words("no_class") if row.name == NO_CLASS_NAME else row.name,
        "values": [_written(value, volume, words) for value in row.values],
        "shares": [wording.share((value or 0) / most) if most else 0 for value in row.values],
        "differences": [
            wording.NONE
            if value is None or first is None
            # Without a value on either side there is no difference, and 0 would be one.
            else _signed(value - first, volume, words)
            for value in row.values[1:]
        ],
    }


def _written(value: float | None, volume: bool, words: Words) -> str:
    if value is None:
        return wording.NONE
    return words.number(value, 2) if volume else words.percent(value)


def _signed(value: float, volume: bool, words: Words) -> str:
    """With its sign, as a difference is written. Shares differ by percentage points."""
    text = words.number(value if volume else 100 * value, 2 if volume else 1)
    return f"+{text}" if value > 0 else text
