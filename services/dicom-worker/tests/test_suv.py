"""Standardized uptake values by body weight: computed, taken from the file, or refused."""

from typing import Any

import numpy as np
import pytest
from dicom_worker.testing import Render, array_of, outcome, preview_of, saved, wheel_file
from fluoro.v1.dicom_pb2 import RenderDicom
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

SUV = RenderDicom.VALUES_SUV_BODY_WEIGHT
HALF_LIFE = 6586.2
"""Of fluorine-18, seconds."""
STORED: np.ndarray = dcmread(wheel_file("MR_small")).pixel_array


def pet(**changes: Any) -> Dataset:
    """A slice in Bq/ml of a patient of 70 kg, scanned one half-life after 350 MBq."""
    dataset = dcmread(wheel_file("MR_small"))
    tracer = Dataset()
    tracer.RadionuclideTotalDose = "350000000"
    tracer.RadionuclideHalfLife = str(HALF_LIFE)
    tracer.RadiopharmaceuticalStartTime = "100000"
    attributes = {
        "Modality": "PT",
        "RescaleSlope": "2",
        "RescaleIntercept": "0",
        "Units": "BQML",
        "CorrectedImage": ["DECY", "ATTN", "SCAT"],
        "DecayCorrection": "START",
        "PatientWeight": "70",
        "SeriesDate": "20200101",
        "SeriesTime": "114946.2",
        "AcquisitionDate": "20200101",
        "AcquisitionTime": "114946.2",
        "RadiopharmaceuticalInformationSequence": Sequence([tracer]),
    }
    for keyword, value in (attributes | changes).items():
        target = tracer if keyword.startswith("Radio") and keyword not in attributes else dataset
        if value is None:
            delattr(target, keyword)
        else:
            setattr(target, keyword, value)
    return dataset


@pytest.mark.parametrize(
    ("changes", "dose"),
    [
        ({}, 175e6),
        ({"RadiopharmaceuticalStartDateTime": "20200101100000"}, 175e6),
        ({"DecayCorrection": "ADMIN"}, 350e6),
    ],
)
def test_activity_becomes_suv_by_weight_and_decayed_dose(
    changes: dict[str, str], dose: float, render: Render
) -> None:
    result, attempt = render(saved(pet(**changes)), values=SUV)
    assert np.allclose(array_of(attempt)[0], STORED * 2.0 * 70_000 / dose, rtol=1e-6)
    image = result.images[0]
    assert image.certificate.unit == "{SUVbw}g/ml"
    assert (image.window.center, image.window.width) == (5, 10)
    shown = np.rint(np.clip(array_of(attempt)[0].astype(float) / 10, 0, 1) * 255)
    assert np.abs(preview_of(attempt) - shown).max() <= 1


def test_without_being_asked_for_the_array_has_activity(render: Render) -> None:
    result, attempt = render(saved(pet()))
    assert np.array_equal(array_of(attempt)[0], STORED.astype(int) * 2)
    assert result.images[0].certificate.unit == "1"


def test_values_that_are_suv_already_stay(render: Render) -> None:
    _, attempt = render(saved(pet(Units="GML", SUVType="BW", PatientWeight=None)), values=SUV)
    assert np.array_equal(array_of(attempt)[0], STORED * 2)


def mapping(**changes: Any) -> Sequence:
    made, units = Dataset(), Dataset()
    units.CodeValue, units.CodingSchemeDesignator = "{SUVbw}g/ml", "UCUM"
    units.CodeMeaning = "Standardized Uptake Value body weight"
    made.MeasurementUnitsCodeSequence = Sequence([units])
    made.add_new("RealWorldValueFirstValueMapped", "SS", -32768)
    made.add_new("RealWorldValueLastValueMapped", "SS", 32767)
    made.RealWorldValueSlope, made.RealWorldValueIntercept = 0.25, 1.0
    for keyword, value in changes.items():
        setattr(made, keyword, value)
    return Sequence([made])


def test_a_real_world_value_map_of_the_file_wins(render: Render) -> None:
    data = saved(pet(RealWorldValueMappingSequence=mapping(), PatientWeight=None))
    _, attempt = render(data, values=SUV)
    assert np.allclose(array_of(attempt)[0], STORED * 0.25 + 1)


def test_a_real_world_value_map_of_other_values_does_not_count(render: Render) -> None:
    too_short = mapping(RealWorldValueLastValueMapped=5)
    _, attempt = render(saved(pet(RealWorldValueMappingSequence=too_short)), values=SUV)
    assert np.allclose(array_of(attempt)[0], STORED * 2.0 * 70_000 / 175e6)


@pytest.mark.parametrize(
    "changes",
    [
        {"Modality": "CT"},
        {"PatientWeight": None},
        {"PatientWeight": "0"},
        {"Units": "CNTS"},
        {"Units": "GML", "SUVType": "LBM"},
        {"CorrectedImage": ["DECY"]},
        {"DecayCorrection": "NONE"},
        {"SeriesTime": "130000"},
        {"SeriesDate": None},
        {"AcquisitionTime": None},
        {"RadiopharmaceuticalStartTime": "120000"},
        {"RadiopharmaceuticalStartTime": None},
        {"RadiopharmaceuticalStartDateTime": "20191201100000"},
        {"RadiopharmaceuticalStartDateTime": "20200101100000+0100"},
        {"RadionuclideTotalDose": None},
        {"RadionuclideTotalDose": "350"},
        {"RadionuclideHalfLife": None},
    ],
    ids=lambda changes: " ".join(f"{keyword}={value}" for keyword, value in changes.items()),
)
def test_without_what_suv_take_the_item_is_refused(changes: dict[str, Any], render: Render) -> None:
    _, attempt = render(saved(pet(**changes)), values=SUV)
    assert outcome(attempt) == "FAILED CHOICE_UNAVAILABLE"
