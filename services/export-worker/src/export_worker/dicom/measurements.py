"""Comprehensive 3D SR with a measurement report (PS3.16 TID 1500) of a stack."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

from fluoro.v1 import ml_pb2
from highdicom.seg import Segmentation
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    SourceImageForSegmentation,
    SourceSeriesForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SegmentationStorage

from export_worker.dicom.codes import FRACTION, VOXELS, coded
from export_worker.dicom.images import Stack, Volumes
from export_worker.dicom.origin import (
    DEVICE_UID,
    MANUFACTURER,
    MODEL_NAME,
    TRACKED_BYTES,
    Origin,
    algorithm_name,
    equipment_fields,
    least_cleared,
    lo,
    series_description,
    statement,
)
from export_worker.dicom.segmentation import tracking_uid
from export_worker.findings import class_of

SERIES_NUMBER: Final = 9002
"""Series Number (0020,0011) of ours, far from those of a scanner."""

Group = (
    VolumetricROIMeasurementsAndQualitativeEvaluations
    | PlanarROIMeasurementsAndQualitativeEvaluations
    | MeasurementsAndQualitativeEvaluations
)

NAMED_SOURCES: Final = 100
"""Most source images that each group names: of more, the evidence of the report has them."""

PERCENT: Final = CodedConcept("%", "UCUM", "Percent")
COUNT: Final = CodedConcept("1", "UCUM", "no units")
MILLILITRE: Final = CodedConcept("ml", "UCUM", "milliliter")
HOUNSFIELD: Final = CodedConcept("[hnsf'U]", "UCUM", "Hounsfield unit")
SUV: Final = CodedConcept("{SUVbw}g/ml", "UCUM", "Standardized Uptake Value body weight")
MEANS: Final = {
    "HU": (codes.DCM.AttenuationCoefficient, HOUNSFIELD),
    "{SUVbw}g/ml": (CodedConcept("126401", "DCM", "SUVbw"), SUV),
}
"""Name and unit of a mean, by the unit of the values. Of other values the mean has no code."""


def measurement_report(
    stack: Stack, segmentation: Segmentation | None, origin: Origin, volumes: Volumes
) -> Comprehensive3DSR:
    """One group per class that is there, with volume, mean, share and count of voxels.

    segmentation: of the same stack; groups refer to its segments. Without it, or to a label map,
    they refer to the images. volumes: what models measured in whole series.

    ValueError, or another of highdicom's, if the sources do not go together.
    """
    headers = [source.header for source in stack.sources]
    if segmentation is not None and segmentation.SOPClassUID != SegmentationStorage:
        segmentation = None  # dciodvfy refuses segments of a label map in a report
    known = stack.volume_ml(volumes)
    return report_of(
        [group_of(stack, total, headers, segmentation, origin) for total in totals(stack, known)],
        [*headers, *([segmentation] if segmentation is not None else [])],
        [stack.model],
        stack.step,
        series_number=SERIES_NUMBER,
        series_instance_uid=origin.uid(
            "reports", stack.step, *stack.sources[0].subject, stack.sources[0].series
        ),
        sop_instance_uid=origin.instance_uid(
            "report",
            [stack.step],
            segmentation.SOPInstanceUID if segmentation else "",
            *stack.digest,
            *([repr(sorted(known.items()))] if known else []),
        ),
        what="Measurements",
        origin=origin,
    )


def report_of(
    groups: Sequence[Group],
    evidence: Sequence[Dataset],
    models: Sequence[ml_pb2.ModelReference],
    step: str,
    *,
    series_number: int,
    series_instance_uid: str,
    sop_instance_uid: str,
    what: str,
    origin: Origin,
) -> Comprehensive3DSR:
    """A measurement report of these groups. step: that ran the models.

    evidence: what the groups refer to, an image first.
    """
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer()),
        procedure_reported=CodedConcept("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    written = Comprehensive3DSR(
        evidence=evidence,
        content=content[0],
        series_instance_uid=series_instance_uid,
        series_number=series_number,
        sop_instance_uid=sop_instance_uid,
        instance_number=1,
        is_complete=True,
        contributing_equipment=origin.equipment([(step, model) for model in models]),
        series_description=series_description(what, least_cleared(models)),
        **equipment_fields(),
    )
    origin.stamp(written, evidence[0].get("TimezoneOffsetFromUTC", ""))
    return written


def algorithm_of(models: Sequence[ml_pb2.ModelReference]) -> AlgorithmIdentification:
    """TID 4019: the model; of several, their number, and each as a parameter."""
    # A group has room for one algorithm (TID 4019).
    if len(models) == 1:
        [model] = models
        return AlgorithmIdentification(
            name=algorithm_name(model),
            version=lo(model.version),
            parameters=[f"sha256={model.sha256.hex()}"],
        )
    return AlgorithmIdentification(
        name=f"{len(models)} models together",
        version=version("export-worker"),
        parameters=[
            f"{algorithm_name(model)} {lo(model.version)} sha256={model.sha256.hex()}"
            for model in models
        ],
    )


def observer() -> ObserverContext:
    """This worker."""
    return ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=DEVICE_UID,
            name=MODEL_NAME,
            manufacturer_name=MANUFACTURER,
            model_name=MODEL_NAME,
        ),
    )


def totals(stack: Stack, volume_ml: Mapping[int, float]) -> list[ml_pb2.Measurement]:
    """Of each class with voxels, over all images. volume_ml: by label, where it is known better.

    The mean counts each image by its voxels. A volume or mean that one image lacks is unknown.
    """
    classes: dict[int, list[ml_pb2.Measurement]] = {}
    for found in stack.found:
        for measured in found.finding.measurements:
            classes.setdefault(measured.label, []).append(measured)
    # Shares are of all voxels, the background among them.
    everything = sum(one.voxels for ones in classes.values() for one in ones)
    summed = []
    for label, ones in classes.items():
        there = [one for one in ones if one.voxels]
        # Label 0 is the background, which is no finding.
        if label == 0 or not there:
            continue
        voxels = sum(one.voxels for one in there)
        total = ml_pb2.Measurement(
            label=label,
            display_name=ones[0].display_name,
            voxels=voxels,
            fraction=voxels / everything,
            codes=ones[0].codes,
        )
        # A model that saw the volume counts what lies between slices, too.
        if label in volume_ml:
            total.volume_ml = volume_ml[label]
        elif all(one.HasField("volume_ml") for one in there):
            total.volume_ml = sum(one.volume_ml for one in there)
        if all(one.HasField("mean_value") for one in there):
            # By voxels, because a slice at the edge has few, and counts as little.
            total.mean_value = sum(one.mean_value * one.voxels for one in there) / voxels
        summed.append(total)
    return summed


def group_of(
    stack: Stack,
    total: ml_pb2.Measurement,
    headers: list[Dataset],
    segmentation: Segmentation | None,
    origin: Origin,
) -> Group:
    """TID 1411 with a segment, TID 1501 without."""
    model, code = stack.model, coded(class_of(total))
    fields: dict[str, Any] = {
        "tracking_identifier": TrackingIdentifier(
            uid=tracking_uid(stack, origin, total.label),
            identifier=lo(f"{stack.step} {total.label} {total.display_name}", TRACKED_BYTES),
        ),
        "finding_category": code.category,
        "finding_type": code.type,
        "algorithm_id": algorithm_of([model]),
        "measurements": list(measured(total, stack.images[0].unit)),
    }
    group: Group
    if segmentation is None:
        group = MeasurementsAndQualitativeEvaluations(
            source_images=[
                SourceImageForMeasurementGroup.from_source_image(header)
                for header in (headers if len(headers) <= NAMED_SOURCES else ())
            ],
            **fields,
        )
    else:
        group = VolumetricROIMeasurementsAndQualitativeEvaluations(
            referenced_segment=ReferencedSegment(
                sop_class_uid=segmentation.SOPClassUID,
                sop_instance_uid=segmentation.SOPInstanceUID,
                segment_number=total.label,
                **source_of(headers),
            ),
            **fields,
        )
    if told := statement(model):
        # TID 1411 and TID 1501 are extensible: this stands where a reader sees the numbers.
        group[0].ContentSequence.append(
            TextContentItem(
                name=codes.DCM.Comment,
                value=told,
                relationship_type=RelationshipTypeValues.CONTAINS,
            )
        )
    return group


def source_of(headers: list[Dataset]) -> dict[str, Any]:
    """The images that were segmented; of many, their series."""
    if len(headers) > NAMED_SOURCES:
        return {"source_series": SourceSeriesForSegmentation(headers[0].SeriesInstanceUID)}
    images = [SourceImageForSegmentation.from_source_image(header) for header in headers]
    return {"source_images": images}


def measured(total: ml_pb2.Measurement, unit: str) -> Iterator[Measurement]:
    """What is known of a class. unit: of its mean, UCUM."""
    if total.HasField("volume_ml"):
        yield Measurement(name=codes.SCT.Volume, value=total.volume_ml, unit=MILLILITRE)
    # A mean without a unit is a number that anybody may misread.
    if total.HasField("mean_value") and unit in MEANS:
        name, of_unit = MEANS[unit]
        yield Measurement(
            name=name, value=total.mean_value, unit=of_unit, derivation=codes.SCT.Mean
        )
    yield Measurement(name=FRACTION, value=100 * total.fraction, unit=PERCENT)
    yield Measurement(name=VOXELS, value=total.voxels, unit=COUNT)
