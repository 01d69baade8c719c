"""ImportImages: photographs through the same door as DICOM, without metadata."""

from dataclasses import asdict
from typing import Final

from fluoro.v1.dicom_pb2 import FrameCertificate, PixelCertificate, RenderedImage
from fluoro.v1.photograph_pb2 import (
    ImportedImage,
    ImportImages,
    ImportImagesResult,
    MaskedFace,
    RemovedMetadata,
)
from fluoro_jobs.worker.context import StepContext, StepItem
from fluoro_jobs.worker.handler import handles

from dicom_worker.photographs.importing import Photograph, take_in

MODALITY: Final = "XC"
"""External-camera Photography (PS3.3 C.7.3.1.1.1)."""


@handles(ImportImages)
def import_images(request: ImportImages, context: StepContext) -> ImportImagesResult:
    """Leaves `preview-0000.png` and `pixels-0000.npy` for each input that is a photograph."""
    result = ImportImagesResult()
    for item in context.each("import"):
        with item:
            array = item.folder / "pixels.npy"
            photograph = take_in(
                item.fetch(), array, context.check, without_faces=request.mask_faces
            )
            result.images.append(keep(item, photograph, searched=request.mask_faces))
    return result


def keep(item: StepItem, photograph: Photograph, *, searched: bool) -> ImportedImage:
    """Stores the artifacts and says what is in them."""
    found = photograph.found
    return ImportedImage(
        rendered=RenderedImage(
            input=item.input,
            item=item.key,
            preview=item.put("preview", ".png", "preview", "image/png", photograph.preview),
            preview_frame=1,
            pixels=item.put("pixels", ".npy", "pixels", "application/x-npy", photograph.array),
            certificate=certificate(photograph),
            modality=MODALITY,
        ),
        format=ImportedImage.Format.Value(f"FORMAT_{found.format}"),
        removed=[
            RemovedMetadata(kind=RemovedMetadata.Kind.Value(f"KIND_{kind}"), count=count)
            for kind, count in sorted(found.removed.items())
        ],
        orientation=found.orientation,
        colors_converted=photograph.converted,
        laid_on_white=photograph.on_white,
        faces_searched=searched,
        faces=[MaskedFace(frame=picture + 1, **asdict(face)) for picture, face in photograph.faces],
    )


def certificate(photograph: Photograph) -> PixelCertificate:
    """What is vouched for about the array."""
    return PixelCertificate(
        sha256=photograph.sha256,
        shape=photograph.shape,
        dtype=photograph.dtype,
        unit="1",
        minimum=photograph.minimum,
        maximum=photograph.maximum,
        decoder=photograph.decoder,
        bits_stored=photograph.found.bits,
        frames=[FrameCertificate(**asdict(frame)) for frame in photograph.certificates],
    )
