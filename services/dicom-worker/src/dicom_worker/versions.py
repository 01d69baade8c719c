"""Versions of one instance: files of one SOP Instance UID that are not the same."""

from collections import defaultdict
from collections.abc import Mapping, MutableSequence
from typing import TypeVar

from fluoro.v1.convert_pb2 import ConvertedInstance
from fluoro.v1.deidentify_pb2 import DeidentifiedInstance
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext, StepItem

Entry = TypeVar("Entry", ConvertedInstance, DeidentifiedInstance)


def refuse_versions(
    entries: MutableSequence[Entry], items: Mapping[str, StepItem], context: StepContext, stage: str
) -> None:
    """Fails the items that left different files under one UID, and removes their entries.

    Nobody knows which version is right, so none stays. items: those of the entries, by key.
    stage: the one that the items were worked on in.
    """
    contents: dict[str, set[bytes]] = defaultdict(set)
    for entry in entries:
        contents[entry.sop_instance_uid].add(context.artifacts[entry.instance].sha256)
    refused = {entry.item for entry in entries if len(contents[entry.sop_instance_uid]) > 1}
    for key in refused:
        items[key].fail(
            FluoroError(Reason.SOP_INSTANCE_CONFLICT, "Two files are versions of one instance.")
        )
    if refused:
        kept = [entry for entry in entries if entry.item not in refused]
        # In place, because the list is a field of the result's message.
        del entries[:]
        entries.extend(kept)
        # The loop over the items has told watchers that they are good.
        context.progress(stage, len(context.inputs), len(context.inputs))
