"""Standardized uptake values of PET by body weight, or a refusal.

Where the file has a Real World Value Mapping to SUVbw (PS3.3 C.7.6.16.2.11), that counts. Else they
are computed as QIBA's vendor-neutral pseudo-code does: SUV = activity · weight / dose, the dose
decayed to the time that the activity is corrected to.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, DT, TM

from dicom_worker.attributes import decimals, item, text, value
from dicom_worker.blame import blame_file
from dicom_worker.pixels.modality import Modality, modality_of

UNIT: Final = "{SUVbw}g/ml"
"""UCUM, as in DICOM's context group 85."""
MAPPING: Final = "RealWorldValueMappingSequence"
LEAST_DOSE_BQ: Final = 1e5
"""Doses below are in another unit than becquerel: some writers put megabecquerel."""


def suv_of(header: Dataset, frame: int, stored: NDArray[Any], *, little_endian: bool) -> Modality:
    """What makes SUV of this frame's (0-based) stored values.

    FluoroError CHOICE_UNAVAILABLE if the file does not have what it takes.
    """
    if text(header, "Modality") != "PT":
        raise unavailable("Only PET images have standardized uptake values.")
    # The mapping counts first: it needs no assumption about doses and times.
    for mapping in mappings(header, frame):
        if is_suv(mapping) and (mapped := linear_mapping(mapping, stored)):
            return mapped
    modality = modality_of(header, frame, little_endian=little_endian)
    if modality.lut:
        raise unavailable("A Modality LUT gives no activity.")
    factor = suv_factor(header)
    return Modality(modality.slope * factor, modality.intercept * factor, unit=UNIT)


def mappings(header: Dataset, frame: int) -> Iterator[Dataset]:
    """The Real World Value Mappings of a frame: its own, the shared ones, those of the header."""
    with blame_file(Reason.DICOM_INVALID, "The Real World Value Mappings cannot be read."):
        per_frame = (value(header, "PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
        shared = (value(header, "SharedFunctionalGroupsSequence") or [])[:1]
        found = [
            mapping
            for source in (*per_frame, *shared, header)
            for mapping in (value(source, MAPPING) or [])
        ]
    yield from found


def is_suv(mapping: Dataset) -> bool:
    """Whether it maps to SUV by body weight."""
    units = item(mapping, "MeasurementUnitsCodeSequence")
    return units is not None and text(units, "CodeValue") == UNIT


def linear_mapping(mapping: Dataset, stored: NDArray[Any]) -> Modality | None:
    """Its slope and intercept; None if it has a table, or does not cover all of these values."""
    slope = decimals(mapping, "RealWorldValueSlope")
    intercept = decimals(mapping, "RealWorldValueIntercept")
    first, last = (
        decimals(mapping, f"RealWorldValue{end}ValueMapped")
        or decimals(mapping, f"DoubleFloatRealWorldValue{end}ValueMapped")
        for end in ("First", "Last")
    )
    if not (len(slope) == len(intercept) == len(first) == len(last) == 1):
        return None
    if stored.min() < first[0] or stored.max() > last[0]:
        return None
    return Modality(slope[0], intercept[0], unit=UNIT)


def suv_factor(header: Dataset) -> float:
    """SUV per modality value. FluoroError CHOICE_UNAVAILABLE."""
    units = text(header, "Units")
    if units == "GML":
        # GML without SUV Type is by body weight (PS3.3 C.8.9.1).
        if text(header, "SUVType") not in ("", "BW"):
            raise unavailable("The values are standardized by another measure than body weight.")
        return 1.0
    if units != "BQML":
        raise unavailable("SUV are computed of values in BQML, or taken in GML.")
    corrections = value(header, "CorrectedImage") or []
    # Without both corrections the values are not activity at a known time, and the SUV would be off
    # by an unknown factor.
    if not {"ATTN", "DECY"} <= set([corrections] if isinstance(corrections, str) else corrections):
        raise unavailable("The image is not corrected for attenuation and decay.")
    tracer = item(header, "RadiopharmaceuticalInformationSequence")
    if tracer is None:
        raise unavailable("Radiopharmaceutical Information is missing.")
    weight = positive(header, "PatientWeight")
    dose = positive(tracer, "RadionuclideTotalDose")
    # A dose in megabecquerel would make every SUV a million times too large.
    if dose < LEAST_DOSE_BQ:
        raise unavailable("Radionuclide Total Dose is not in becquerel.")
    correction = text(header, "DecayCorrection")
    if correction == "START":
        half_life = timedelta(seconds=positive(tracer, "RadionuclideHalfLife"))
        dose *= 0.5 ** (since_injection(header, tracer) / half_life)
    # NONE leaves each frame at a time of its own, and no one factor is right.
    elif correction != "ADMIN":
        raise unavailable("Decay Correction is neither START nor ADMIN.")
    # Patient's Weight is in kilograms, SUV in grams per millilitre.
    return weight * 1000 / dose


def since_injection(header: Dataset, tracer: Dataset) -> timedelta:
    """From the injection to the start of the scan, to which START corrects.

    A series time after the acquisition is that of a later reconstruction, and tells nothing.
    """
    started = moment(header, "Series")
    if started > moment(header, "Acquisition"):
        raise unavailable(
            "Series Time is after Acquisition Time: the start of the scan is unknown."
        )
    with blame_file(Reason.DICOM_INVALID, "A date or time cannot be read."):
        if at := text(tracer, "RadiopharmaceuticalStartDateTime"):
            injected = datetime.fromisoformat(DT(at).isoformat())
        else:
            time = TM(text(tracer, "RadiopharmaceuticalStartTime"))
            if time is None:
                raise unavailable("The time of the injection is missing.")
            injected = datetime.combine(started.date(), time)
    if injected.tzinfo:
        raise unavailable("The time of the injection has a time zone, and the series has none.")
    # A time of injection without a date gets that of the series. For a scan past midnight it lies
    # after the scan: a refusal is better than a guess by a day.
    if not timedelta(0) <= started - injected < timedelta(days=1):
        raise unavailable("The injection was not within a day before the scan.")
    return started - injected


def moment(header: Dataset, of: str) -> datetime:
    """`{of}Date` and `{of}Time`. FluoroError CHOICE_UNAVAILABLE if one is missing."""
    with blame_file(Reason.DICOM_INVALID, "A date or time cannot be read."):
        date, time = DA(text(header, f"{of}Date")), TM(text(header, f"{of}Time"))
    if date is None or time is None:
        raise unavailable(f"{of} Date or {of} Time is missing.")
    return datetime.combine(date, time)


def positive(source: Dataset, keyword: str) -> float:
    """A number above 0. FluoroError CHOICE_UNAVAILABLE if it is missing or another."""
    found = decimals(source, keyword)
    if len(found) != 1 or found[0] <= 0:
        raise unavailable(f"{keyword} is missing or not above 0.")
    return found[0]


def unavailable(message: str) -> FluoroError:
    """The file does not have what SUV are computed from."""
    return FluoroError(Reason.CHOICE_UNAVAILABLE, message)
