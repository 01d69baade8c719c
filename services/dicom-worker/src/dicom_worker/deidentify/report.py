"""The report of one de-identified instance: attributes, actions and counts, no values."""

import json
from typing import Any, Final

from pydicom.datadict import keyword_for_tag

from dicom_worker.deidentify.actions import PRIVATE
from dicom_worker.deidentify.burned_in import Plan
from dicom_worker.deidentify.instance import Cleaned
from dicom_worker.deidentify.profile import edition, row_key, table
from dicom_worker.deidentify.pseudonyms import Key

ACTIONS: Final = {
    "X": "removed",
    "Z": "emptied, or a pseudonym",
    "D": "replaced by a dummy",
    "U": "UIDs replaced",
    "K": "kept by an option",
    "C": "cleaned",
    "R": "an identifier was found in it and removed",
}


def report(cleaned: Cleaned, key: Key, project: str) -> bytes:
    """UTF-8 JSON. Nothing in it identifies anybody."""
    content: dict[str, Any] = {
        "profile": {
            "edition": edition(),
            "table": "E.1-1",
            "codes": [
                {"value": value, "scheme": "DCM", "meaning": meaning}
                for value, meaning in cleaned.options.codes
            ],
            "dates": cleaned.options.dates,
        },
        "project": project,
        "key_id": key.id,
        "sop_instance_uid": cleaned.sop_instance,
        "actions": ACTIONS,
        "attributes": [
            {
                "tag": shown(tag),
                "name": name(tag),
                "in": keyword_for_tag(parent) if parent else "",
                "rule": rule,
                "action": action,
                "count": count,
            }
            for (tag, parent, rule, action), count in sorted(cleaned.done.items())
        ],
        "removed_from_pixel_data": dict(sorted(cleaned.removed.items())),
        "pixels": {"burned_in_annotation": cleaned.burned_in, **pixels(cleaned.pixels)},
        "proof": {
            "searched_identifiers": cleaned.searched,
            "too_short_to_search": cleaned.short,
            "residual_identifiers": 0,
        },
    }
    return json.dumps(content, indent=1).encode()


def pixels(plan: Plan | None) -> dict[str, Any]:
    """What was masked in which frame; no word of the text. Boxes: left, top, right, bottom."""
    if plan is None:
        return {"cleaned": False}
    return {
        "cleaned": True,
        "device_rule": plan.rule,
        "masked_regions": plan.regions,
        "masked_pixels": plan.pixels,
        "residual_regions": 0,
        "frames": [
            {
                "frame": number,
                "masked_by_device_rule": frame.by_rule,
                "regions": len(frame.outlines),
                "boxes": frame.boxes,
                "masked_pixels": frame.pixels,
                "unreadable_regions_left": frame.unconfirmed,
            }
            for number, frame in enumerate(plan.frames, 1)
        ],
    }


def shown(tag: int) -> str:
    """A tag as the table has it."""
    key = "private" if tag == PRIVATE else row_key(tag)
    return key if key == "private" else f"({key[:4]},{key[4:]})"


def name(tag: int) -> str:
    """The keyword of an attribute; "" if the standard has none."""
    row = table().get("private" if tag == PRIVATE else row_key(tag))
    return row.name if row is not None else keyword_for_tag(tag)
