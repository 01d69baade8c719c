"""What a report says of de-identification: counts, codes and editions, nothing of a patient."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from fluoro.v1 import deidentify_pb2
from fluoro_jobs.worker.context import Upstream

from export_worker import wording
from export_worker.images import results
from export_worker.model import Deidentification
from export_worker.words import Words

METHODS: Final = {
    "113101": "Clean Pixel Data",
    "113103": "Clean Graphics",
    "113104": "Clean Structured Content",
    "113105": "Clean Descriptors",
    "113106": "Retain Longitudinal Temporal Information, Full Dates",
    "113107": "Retain Longitudinal Temporal Information, Modified Dates",
    "113108": "Retain Patient Characteristics",
    "113109": "Retain Device Identity",
    "113110": "Retain UIDs",
    "113111": "Retain Safe Private",
    "113112": "Retain Institution Identity",
}
"""Options of PS3.15 by their codes in PS3.16 CID 7050. 113100 is the profile itself."""
PROFILE_CODE: Final = "113100"
ACTIONS: Final = {
    "X": "removed",
    "Z": "emptied, or replaced by a pseudonym",
    "D": "replaced by a dummy",
    "U": "UID replaced",
    "C": "cleaned of words that may identify",
    "R": "an identifier was found and removed",
    "K": "kept by an option",
}
"""PS3.15 table E.1-1a, and `R`, which is ours."""
KEYS: Final = 4
"""Most IDs of keys that are printed. There is one, as a rule."""


def deidentification(upstream: Sequence[Upstream], words: Words) -> Deidentification | None:
    """What the steps that de-identify did, in all; None if there is none."""
    found = list(results(upstream, deidentify_pb2.DeidentifyDicomResult))
    if not found:
        return None
    instances = [instance for result in found for instance in result.instances]
    return {
        "cleaned": words.count(len(instances)),
        "changed": words.count(sum(each.changed_values for each in instances)),
        "masked": words.count(sum(each.masked_pixels for each in instances)),
        "left": words.count(sum(each.residual_identifiers for each in instances)),
        "facts": [
            ["Profile", _profile(found)],
            ["Options", _options(instances)],
            ["Proof", _proof(instances)],
            ["Pixels", _pixels(instances)],
            ["Key", _several(each.key_id for each in instances)],
        ],
        "actions": _actions(instances),
    }


def _profile(found: Iterable[deidentify_pb2.DeidentifyDicomResult]) -> str:
    editions = _several(result.profile_edition for result in found)
    return f"DICOM PS3.15 {editions}, Basic Application Level Confidentiality Profile, table E.1-1"


def _options(instances: Iterable[deidentify_pb2.DeidentifiedInstance]) -> str:
    """Those of any instance; one without an image has no clean pixels."""
    codes = {code for each in instances for code in each.method_codes} - {PROFILE_CODE}
    named = [f"{METHODS.get(code, 'option')} ({wording.printable(code, 16)})" for code in codes]
    return "; ".join(sorted(named)) or "None"


def _proof(instances: Sequence[deidentify_pb2.DeidentifiedInstance]) -> str:
    searched = [each.searched_identifiers for each in instances]
    # min and max of nothing raise, and every file may have been refused.
    if not searched:
        return "No file was written"
    low, high = min(searched), max(searched)
    span = wording.count(low) if low == high else f"{wording.count(low)} to {wording.count(high)}"
    return f"Each written file was read back and searched for {span} identifiers"


def _pixels(instances: Sequence[deidentify_pb2.DeidentifiedInstance]) -> str:
    looked = [each for each in instances if each.pixels_cleaned]
    if not looked:
        return "Not searched for text"
    of = f"{wording.count(len(looked))} of {wording.count(len(instances))}"
    regions = wording.count(sum(each.masked_regions for each in looked))
    masked = wording.count(sum(each.masked_pixels > 0 for each in looked))
    return f"{of} instances searched for text; {regions} regions of text, masks in {masked}"


def _actions(instances: Iterable[deidentify_pb2.DeidentifiedInstance]) -> list[list[str]]:
    """Code, meaning, values."""
    counted: Counter[str] = Counter()
    for instance in instances:
        for action in instance.actions:
            counted[action.code] += action.values
    return [
        [code, meaning, wording.count(counted[code])]
        for code, meaning in ACTIONS.items()
        if counted[code]
    ]


def _several(values: Iterable[str]) -> str:
    """Each value once, the first few of them."""
    # Sorted, because a set has no order of its own, and reports are to have the same bytes.
    once = sorted({wording.printable(value, 32) for value in values if value})
    more = ["…"] if len(once) > KEYS else []
    return ", ".join(once[:KEYS] + more) or wording.NONE
