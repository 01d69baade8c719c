"""The volumes of an item, as artifacts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from shutil import rmtree

from fluoro.v1.convert_pb2 import ConvertDicom, ConvertDicomResult, ConvertedVolume, LeftOut, Shear
from fluoro.v1.dicom_pb2 import FrameCertificate, PixelCertificate
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepItem

from dicom_worker.convert.arrays import Array, arrays_of, check_size
from dicom_worker.convert.gather import EIGHT_BITS, Gathered, Source, gather
from dicom_worker.convert.geometry import as_json, geometry
from dicom_worker.convert.nifti import check_sides, ras, write_nifti
from dicom_worker.pixels.decoders import decoder_name
from dicom_worker.reading import UID_SYNTAX
from dicom_worker.studies.slices import told
from dicom_worker.studies.volumes import Left, Volume, irregular, study_of

OTHERS = frozenset((Reason.NOT_DICOM, Reason.NO_PIXEL_DATA))
"""Reasons of files that do not belong to any volume."""


def volumes(item: StepItem, request: ConvertDicom, check: Callable[[], None]) -> ConvertDicomResult:
    """Leaves `volume-KEY.nii.gz` or `.npy` and `geometry-KEY.json` for each volume.

    A series that makes none is left out and told about. FluoroError if there is no other.
    """
    found = gather(item, check)
    study = study_of(found.slices)
    left = found.left + study.left
    usable = [each for each in study.volumes if fits(each, found.sources, request, left)]
    # Given out before anything is decoded, so that they do not depend on what fails later.
    keys = iter(keys_of(item.key, len(usable)))
    result = ConvertDicomResult()
    for series, members in groupby(usable, lambda volume: volume.series):
        group = list(members)
        own = [next(keys) for _ in group]
        folder = item.folder / "arrays"
        folder.mkdir()
        try:
            arrays = arrays_of(group, found.sources, folder, check)
        except FluoroError as error:
            # To leave the series out would be final, and another attempt may make it.
            if error.may_retry:
                raise
            count = sum(len(volume.slices) for volume in group)
            left.append(Left(series, count, error.reason, error.message))
            arrays = []
        # There are no arrays if the series failed; its keys stay unused, so that those of others do
        # not depend on it.
        for key, volume, array in zip(own, group, arrays, strict=False):
            result.volumes.append(keep(item, key, volume, array, found, request, check))
        # Before the next series, so that the disk holds the arrays of one.
        rmtree(folder)
    if not result.volumes:
        nothing(item, left)
    result.left_out.extend(
        LeftOut(
            item=item.key,
            series_instance_uid=uid_or_nothing(each.series),
            count=each.count,
            reason=each.reason,
            message=each.message,
        )
        for each in left
    )
    return result


def fits(
    volume: Volume, sources: Mapping[int, Source], request: ConvertDicom, left: list[Left]
) -> bool:
    """Whether the volume can be made; if not, `left` has why."""
    nifti = request.WhichOneof("target") == "nifti"
    shear = request.nifti.shear if nifti else request.npy.shear
    try:
        volume.check()
        check_alike([sources[number] for number in {each.file for each in volume.slices}])
        if volume.shear_degrees and shear == Shear.SHEAR_REFUSE:
            raise irregular(
                f"The volume is sheared by {volume.shear_degrees:.1f} degrees, as by a tilted "
                "gantry, and the request refuses that."
            )
        # One slice may have no step; of several, `affine` is always there.
        _ = volume.affine
        check_size([volume])
        if nifti:
            check_colours(sources[volume.slices[0].file])
            check_sides((len(volume.slices), volume.plane.rows, volume.plane.columns))
    except FluoroError as error:
        left.append(Left(volume.series, len(volume.slices), error.reason, error.message))
        return False
    return True


def check_alike(sources: Sequence[Source]) -> None:
    """VOLUME_IRREGULAR if one volume would hold values of different meaning."""
    if len({(each.kind, each.photometric, each.values, each.rescaled) for each in sources}) > 1:
        raise irregular(
            "Modality, Photometric Interpretation, the depth of colours or the presence of a "
            "rescale differ between slices."
        )


def check_colours(source: Source) -> None:
    """CHOICE_UNAVAILABLE for colours that NIfTI-1 has no type for."""
    if source.values not in {"grey", EIGHT_BITS}:
        raise FluoroError(
            Reason.CHOICE_UNAVAILABLE,
            "NIfTI-1 has colours of 8 bits alone, and these have another depth. Ask for NPY.",
        )


def nothing(item: StepItem, left: Sequence[Left]) -> None:
    """Skips an item without any image. FluoroError if there are images, but no volume."""
    for each in left:
        if each.reason not in OTHERS:
            raise FluoroError(each.reason, each.message)
    item.skip(Reason.NO_PIXEL_DATA, "No file of it has an image.")


def uid_or_nothing(found: str) -> str:
    """A UID; "" for what is none and may be anything."""
    return found if UID_SYNTAX.fullmatch(found) else ""


def keys_of(key: str, count: int) -> list[str]:
    """A key for each of so many things that are made of one item."""
    return [key] if count == 1 else [f"{key}/{number:04}" for number in range(count)]


def keep(
    item: StepItem,
    key: str,
    volume: Volume,
    array: Array,
    found: Gathered,
    request: ConvertDicom,
    check: Callable[[], None],
) -> ConvertedVolume:
    """Stores a volume and its geometry, and says what they are."""
    first = found.sources[volume.slices[0].file]
    facts = geometry(volume, array, first.kind, first.thickness)
    if request.WhichOneof("target") == "nifti":
        path = array.writer.path.with_suffix(".nii.gz")
        write_nifti(
            array.writer, path, volume.affine, sheared=volume.shear_degrees > 0, check=check
        )
        name = item.put("volume", ".nii.gz", "volume", "application/gzip", path, key)
        path.unlink()
    else:
        path = array.writer.path
        name = item.put("volume", ".npy", "volume", "application/x-npy", path, key)
    array.writer.path.unlink()
    return ConvertedVolume(
        input=item.input,
        item=item.key,
        key=key,
        volume=name,
        geometry=item.put("geometry", ".json", "geometry", "application/json", as_json(facts), key),
        series_instance_uid=uid_or_nothing(volume.series),
        modality=first.kind,
        spacing_mm=facts["spacing_mm"][::-1],
        affine=ras(volume.affine).ravel(),
        shear_degrees=volume.shear_degrees,
        certificate=certificate(volume, array, found),
        phase=told(volume.phase),
        repeated_files=found.repeated,
    )


def certificate(volume: Volume, array: Array, found: Gathered) -> PixelCertificate:
    """What the decoders vouch for about the array."""
    sources = [found.sources[number] for number in {each.file for each in volume.slices}]
    syntaxes = sorted({source.file.transfer_syntax for source in sources})
    writer = array.writer
    return PixelCertificate(
        sha256=array.sha256,
        shape=(writer.frames, *writer.shape),
        dtype=writer.dtype.str if writer.dtype else "",
        unit=array.unit,
        minimum=writer.minimum,
        maximum=writer.maximum,
        # Files of one volume may have several, and none of them would be true of all.
        transfer_syntax_uid=syntaxes[0] if len(syntaxes) == 1 else "",
        decoder=", ".join(sorted({decoder_name(syntax) for syntax in syntaxes})),
        bits_stored=max(source.bits for source in sources),
        frames=[FrameCertificate(**asdict(each)) for each in array.certificates],
    )
