"""Segmentation (PS3.3 A.51) of a stack of label maps."""

from typing import Final

from fluoro.v1 import export_pb2
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationFractionalTypeValues,
    SegmentationTypeValues,
    SegmentDescription,
)
from PIL import ImageColor
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.valuerep import DS

from export_worker.dicom.codes import coded
from export_worker.dicom.images import VOXELS_LIMIT, Stack
from export_worker.dicom.origin import (
    Origin,
    algorithm_name,
    equipment_fields,
    lo,
    series_description,
    statement,
)
from export_worker.findings import class_of

TYPES: Final = {
    export_pb2.ExportDicom.SEGMENTATION_TYPE_UNSPECIFIED: SegmentationTypeValues.BINARY,
    export_pb2.ExportDicom.SEGMENTATION_TYPE_BINARY: SegmentationTypeValues.BINARY,
    export_pb2.ExportDicom.SEGMENTATION_TYPE_LABEL_MAP: SegmentationTypeValues.LABELMAP,
    export_pb2.ExportDicom.SEGMENTATION_TYPE_FRACTIONAL: SegmentationTypeValues.FRACTIONAL,
}
VOXELS_LIMITS: Final = {SegmentationTypeValues.FRACTIONAL: VOXELS_LIMIT // 8}
"""Most voxels of types that need more memory than the others."""

SERIES_NUMBER: Final = 9001
"""Series Number (0020,0011) of ours, far from those of a scanner."""


def segmentation(
    stack: Stack,
    origin: Origin,
    kind: "export_pb2.ExportDicom.SegmentationType.ValueType",
) -> Segmentation:
    """One segment per class but 0, which is the background.

    ValueError, or another of highdicom's, if the sources do not go together.
    """
    sources = stack.sources
    headers = [source.header for source in sources]
    for header in headers:
        # highdicom copies it into the functional groups of the frames.
        set_spacing(header, stack.spacing_mm)
    written = Segmentation(
        source_images=headers,
        pixel_array=stack.label_map(VOXELS_LIMITS.get(TYPES[kind], VOXELS_LIMIT)),
        segmentation_type=TYPES[kind],
        fractional_type=SegmentationFractionalTypeValues.OCCUPANCY,
        segment_descriptions=segments_of(stack, origin),
        series_instance_uid=origin.uid(
            "segmentations", stack.step, *sources[0].subject, sources[0].series
        ),
        series_number=SERIES_NUMBER,
        sop_instance_uid=origin.instance_uid(
            "segmentation", [stack.step], str(kind), *stack.digest
        ),
        instance_number=1,
        content_label="SEGMENTATION",
        content_description=lo(f"Classes of {stack.model.name}"),
        contributing_equipment=origin.equipment([(stack.step, stack.model)]),
        series_description=series_description("Segmentation", stack.model),
        **equipment_fields(),
    )
    if not sources[0].frame_of_reference:
        written.PatientOrientation = None  # Type 2C where no plane is in space (PS3.3 C.7.6.1)
    # highdicom draws this UID by chance, and another attempt would write other bytes.
    organization = origin.uid("dimensions", written.SOPInstanceUID)
    for item in (*written.DimensionOrganizationSequence, *written.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    origin.stamp(written, headers[0].get("TimezoneOffsetFromUTC", ""))
    return written


def set_spacing(header: Dataset, spacing_mm: float | None) -> None:
    """Spacing Between Slices (0018,0088) as the places of the images have it.

    Scanners state another, and readers such as dcmqi place frames by it. Frames of a multi-frame
    image have it in their functional groups.
    """
    if spacing_mm is not None:
        header.SpacingBetweenSlices = DS(spacing_mm, auto_format=True)
    elif "SpacingBetweenSlices" in header:
        del header.SpacingBetweenSlices


def segments_of(stack: Stack, origin: Origin) -> list[SegmentDescription]:
    """Segment Sequence (0062,0002). Numbers are the values in the label map."""
    model = stack.model
    algorithm = AlgorithmIdentificationSequence(
        name=algorithm_name(model),
        family=codes.cid7162.ArtificialIntelligence,
        version=lo(model.version),
        source="Fluoro",
        parameters={"sha256": model.sha256.hex()},
    )
    described = []
    for measured in stack.found[0].finding.measurements:
        # Label 0 is the background, and segments are numbered from 1.
        if measured.label == 0:
            continue
        code = coded(class_of(measured))
        segment = SegmentDescription(
            segment_number=measured.label,
            segment_label=lo(measured.display_name),
            segmented_property_category=code.category,
            segmented_property_type=code.type,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=tracking_uid(stack, origin, measured.label),
            tracking_id=lo(f"{stack.step} {measured.label}"),
            display_color=cielab(measured.color),
        )
        if told := statement(model):
            segment.SegmentDescription = told
        described.append(segment)
    return described


def tracking_uid(stack: Stack, origin: Origin, label: int) -> str:
    """Of one class in one stack: the same in the segmentation and in the measurements."""
    return origin.uid("tracking", str(label), *stack.digest)


def cielab(color: str) -> CIELabColor | None:
    """`#rrggbb` as Recommended Display CIELab Value (0062,000D)."""
    return CIELabColor.from_rgb(*ImageColor.getrgb(color)[:3]) if color else None
