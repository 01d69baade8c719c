"""Who wrote an object, when, and under which UIDs: the same in every attempt of a step."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from importlib.metadata import version
from typing import Any, Final, Self
from uuid import NAMESPACE_OID, UUID, uuid5

from fluoro.v1 import ml_pb2
from fluoro.v1.model_pb2 import Model
from fluoro_jobs.ledger.origins import JobInput, StepRun
from fluoro_jobs.worker.context import StepContext
from highdicom import ContributingEquipment
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.valuerep import DA, DT, TM

from export_worker.wording import job_time

MANUFACTURER: Final = "Fluoro"
MODEL_NAME: Final = "Fluoro export-worker"
SERIAL_NUMBER: Final = "none"
"""DeviceSerialNumber is Type 1 in what highdicom writes, and software has none."""
DEVICE_UID: Final = f"2.25.{uuid5(NAMESPACE_OID, 'fluoro/export-worker').int}"
"""Device Observer UID: of the software, not of one installation."""

STATEMENTS: Final = {
    Model.INTENDED_USE_DEMONSTRATION: "Made by a demonstration model. Not for diagnosis.",
    Model.INTENDED_USE_RESEARCH: "Made by a research model. Not for diagnosis.",
    Model.INTENDED_USE_CLINICAL: "",
}
"""Stands in every object that shows what a model found, by the model's intended use."""

MARKS: Final = {
    Model.INTENDED_USE_DEMONSTRATION: "DEMONSTRATION",
    Model.INTENDED_USE_RESEARCH: "RESEARCH",
    Model.INTENDED_USE_CLINICAL: "",
}
"""The same in a word, where there is room for no more."""

DT_FORMAT: Final = "%Y%m%d%H%M%S.%f+0000"
"""VR DT of a time in UTC (PS3.5 6.2)."""
LO_BYTES: Final = 64
"""Longest value of VR LO (PS3.5 6.2). The standard counts characters, and some readers bytes."""
TRACKED_BYTES: Final = 256
"""Of a Tracking Identifier in a report: the longest name of a step, and a name behind it."""
CUT: Final = "..."
"""End of a value that is cut."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The step that writes.

    inputs: of the job. runs: of the steps that it comes after, by name.
    """

    job: str
    step: str
    inputs: Sequence[JobInput] = ()
    runs: Mapping[str, StepRun] = field(default_factory=dict)

    @classmethod
    def of(cls, context: StepContext) -> Self:
        """That of an attempt."""
        known = context.origins
        return cls(context.job, context.step, known.inputs, {run.step: run for run in known.runs})

    def uid(self, kind: str, *of: str | bytes) -> str:
        """A UID derived from a UUID (PS3.5 B.2) that only the same things of the same step have.

        of: what the object is made of. A step that is retried on other inputs writes another
        object, and no archive sees one UID with two contents.
        """
        digest = hashlib.sha256()
        for part in (self.step, kind, *of):
            data = part.encode() if isinstance(part, str) else part
            # With its length, so that `ab`, `c` is another object than `a`, `bc`.
            digest.update(len(data).to_bytes(8, "big") + data)
        # The job is the namespace: the same findings in another job are another instance.
        return f"2.25.{uuid5(UUID(self.job.removeprefix('jobs/')), digest.hexdigest()).int}"

    def instance_uid(self, kind: str, steps: Iterable[str], *of: str | bytes) -> str:
        """A UID of an instance that shows what these steps found: it tells when they ran."""
        ran = (
            # A step that ran again may have found something else in the same inputs.
            part
            for step in steps
            if (run := self.runs.get(step))
            for part in (step, utc(run.end_time), str(run.attempts))
        )
        return self.uid(kind, *of, self.inputs_said, *ran)

    @property
    def inputs_said(self) -> str:
        """How many inputs the job has, and their SHA-256; empty if none is known."""
        digests = [one.sha256 for one in self.inputs]
        match digests:
            case []:
                return ""
            case [digest]:
                return f"The job has one input, SHA-256 {digest.hex()}."
            case _:
                whole = hashlib.sha256(b"".join(digests)).hexdigest()
                return f"The job has {len(digests)} inputs, SHA-256 of their SHA-256 {whole}."

    def equipment(
        self, made: Iterable[tuple[str, ml_pb2.ModelReference]] = ()
    ) -> list[ContributingEquipment]:
        """Contributing Equipment: this worker, and each model with the step that ran it."""
        wrote = f"Wrote this object in step {self.step} of {self.job}. {self.inputs_said}".strip()
        return [
            ContributingEquipment(
                manufacturer=MANUFACTURER,
                manufacturer_model_name=MODEL_NAME,
                software_versions=version("export-worker"),
                purpose_of_reference=codes.DCM.ProcessingEquipment,
                contribution_description=wrote,
            ),
            *(self._contributed(step, model) for step, model in made),
        ]

    def _contributed(self, step: str, model: ml_pb2.ModelReference) -> ContributingEquipment:
        run = self.runs.get(step)
        said = f"Model with SHA-256 {model.sha256.hex()}. Ran in step {step}"
        return ContributingEquipment(
            manufacturer=MANUFACTURER,
            manufacturer_model_name=lo(model.name),
            software_versions=lo(model.version),
            purpose_of_reference=codes.DCM.ProcessingEquipment,
            contribution_datetime=utc(run.end_time) if run else None,
            contribution_description=f"{said}, attempts: {run.attempts}." if run else f"{said}.",
        )

    def stamp(self, dataset: Dataset, offset: str) -> None:
        """Puts the time of the job in place of the clock's, in the time zone of the source.

        offset: Timezone Offset From UTC (0008,0201) of the source; empty for UTC.
        """
        # Dates of a study are those of its scanner's clock: in another zone a result may seem older
        # than its image.
        moment = in_zone(job_time(self.job), offset)
        for keyword in ("InstanceCreation", "Content"):
            if f"{keyword}Date" in dataset:
                setattr(dataset, f"{keyword}Date", DA(moment.date()))
                setattr(dataset, f"{keyword}Time", TM(moment.time().replace(microsecond=0)))
        for item in dataset.get("ContributingEquipmentSequence", ()):
            # highdicom names itself with the time of the clock, and another attempt would write
            # other bytes.
            if "ContributionDateTime" in item and item.Manufacturer != MANUFACTURER:
                item.ContributionDateTime = DT(moment.strftime("%Y%m%d%H%M%S%z"))
        if offset:
            dataset.TimezoneOffsetFromUTC = offset


def utc(moment: datetime) -> str:
    """The moment as VR DT."""
    return moment.astimezone(UTC).strftime(DT_FORMAT)


def in_zone(moment: datetime, offset: str) -> datetime:
    """The moment in a zone such as `+0100`; in UTC if there is none."""
    if not offset:
        return moment.astimezone(UTC)
    minutes = int(offset[1:3]) * 60 + int(offset[3:5])
    return moment.astimezone(timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes)))


def equipment_fields() -> dict[str, Any]:
    """Enhanced General Equipment (PS3.3 C.7.5.2), as highdicom's arguments."""
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MODEL_NAME,
        "software_versions": version("export-worker"),
        "device_serial_number": SERIAL_NUMBER,
    }


def subject_fields(header: Dataset) -> dict[str, Any]:
    """Patient and study of a source, as highdicom's arguments."""
    return {
        "study_instance_uid": header.StudyInstanceUID,
        "patient_id": header.PatientID,
        "patient_name": header.PatientName,
        "patient_birth_date": header.PatientBirthDate,
        "patient_sex": header.PatientSex,
        "study_id": header.StudyID,
        "study_date": header.StudyDate,
        "study_time": header.StudyTime,
        "accession_number": header.AccessionNumber,
        "referring_physician_name": header.ReferringPhysicianName,
        "specific_character_set": "ISO_IR 192",
    }


def reference(header: Dataset) -> Dataset:
    """SOP Instance Reference Macro (PS3.3 10.8) to a source."""
    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    return item


def identity(model: ml_pb2.ModelReference) -> bytes:
    """What objects say of a model, as a part of their UIDs."""
    copy = ml_pb2.ModelReference(
        name=model.name, version=model.version, sha256=model.sha256, intended_use=use_of(model)
    )
    # Without fields that say where it ran: another device that finds the same writes the same
    # object.
    return copy.SerializeToString(deterministic=True)


def use_of(model: ml_pb2.ModelReference) -> "Model.IntendedUse.ValueType":
    """What a model is for. One of which nobody says so is taken for a demonstration."""
    return model.intended_use or Model.INTENDED_USE_DEMONSTRATION


def least_cleared(models: Sequence[ml_pb2.ModelReference]) -> ml_pb2.ModelReference | None:
    """The model that is least fit for care: what is said of it holds for all they made together."""
    return min(models, key=use_of, default=None)


def statement(model: ml_pb2.ModelReference | None) -> str:
    """What an object that shows findings of the model says of it; empty if nothing."""
    return STATEMENTS[use_of(model)] if model is not None else ""


def algorithm_name(model: ml_pb2.ModelReference) -> str:
    """Name of the model, and what it is for unless that is care."""
    mark = MARKS[use_of(model)].lower()
    return lo(f"{model.name}, {mark}" if mark else model.name)


def series_description(what: str, model: ml_pb2.ModelReference | None) -> str:
    """Series Description (0008,103E): what it is, the model, and what that is for."""
    if model is None:
        return lo(what)
    name = f"{what}, {model.name} {model.version}"
    mark = MARKS[use_of(model)]
    end = f", {mark}" if mark else ""
    # The name is cut, never the mark behind it: that says that it is not for diagnosis.
    return lo(name, LO_BYTES - len(end)) + end


def lo(text: str, most_bytes: int = LO_BYTES) -> str:
    r"""Text as LO may hold it: of limited length, no backslash."""
    # A backslash separates values (PS3.5 6.2), so one in a name would make two of it.
    line = " ".join("".join(c if c.isprintable() and c != "\\" else " " for c in text).split())
    data = line.encode()
    if len(data) <= most_bytes:
        return line
    # The cut may go through the middle of a character.
    return data[: most_bytes - len(CUT)].decode(errors="ignore").rstrip() + CUT
