"""The whole of ExportDicom: reads the items, then writes one object after the other."""

import filecmp
from collections import Counter
from collections.abc import Sequence
from typing import Final

from fluoro.v1 import embedding_pb2, job_pb2, ml_pb2
from fluoro.v1.export_pb2 import ExportDicom, ExportDicomResult, ExportedObject
from fluoro.v1.model_pb2 import Model
from fluoro_jobs.blame import blame_file
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.operations import DICOM_FILES
from fluoro_jobs.worker.context import Part, StepContext, StepItem
from highdicom import SOPClass

from export_worker.dicom.capture import capture
from export_worker.dicom.document import encapsulated
from export_worker.dicom.encoding import saved
from export_worker.dicom.images import (
    Image,
    Stack,
    findings_of,
    overlaid_by,
    references,
    stacks_of,
    take_maps,
    told_by,
    units_of,
    volumes_by,
)
from export_worker.dicom.measurements import measurement_report
from export_worker.dicom.origin import Origin, identity, least_cleared, use_of
from export_worker.dicom.segmentation import segmentation
from export_worker.dicom.selection import key_images, key_object_selection
from export_worker.dicom.sources import START_BYTES, Known, read_source
from export_worker.dicom.statements import statement_report, statements_of
from export_worker.images import models_behind

DEFAULT_KINDS: Final = (ExportDicom.KIND_SEGMENTATION, ExportDicom.KIND_MEASUREMENTS)
PICTURES: Final = ("preview", "overlay")
VECTORS: Final = (embedding_pb2.EmbedImagesResult, embedding_pb2.FindSimilarResult)
"""Results that are no findings in an image."""
STEMS: Final = {
    ExportDicom.KIND_SEGMENTATION: "segmentation",
    ExportDicom.KIND_MEASUREMENTS: "measurements",
    ExportDicom.KIND_DOCUMENT: "document",
    ExportDicom.KIND_KEY_IMAGES: "key-images",
}
"""Of names and keys of objects that are made of several items."""

UNWRITABLE: Final = (
    "The headers of these images do not go together, so no object was made of them. "
    "Inspect the files."
)


APART: Final = "It is compared with an image of another study or patient, or one not exported."


def dicom_of(item: StepItem) -> Part:
    """The DICOM file of an item."""
    file = next((part for part in item.parts if part.role in DICOM_FILES), None)
    if file is None:
        raise FluoroError(
            Reason.NO_APPLICABLE_INPUT,
            "There is no DICOM file beside what steps made of it. Name the files in `inputs`.",
        )
    return file


def conflict() -> FluoroError:
    """Nobody knows which of two files is right."""
    return FluoroError(Reason.SOP_INSTANCE_CONFLICT, "Two files are versions of one instance.")


class Export:
    """One attempt."""

    def __init__(self, request: ExportDicom, context: StepContext) -> None:
        """Reads nothing of the items yet."""
        self._kinds = frozenset(request.kinds or DEFAULT_KINDS)
        self._type = request.segmentation_type
        self._context = context
        self._origin = Origin.of(context)
        # Findings come from steps that left inputs, and from those in `after`.
        results = {**context.results, **{step.step: step.result for step in context.upstream}}
        self._results = results
        self._findings = findings_of(results)
        self._overlaid = overlaid_by(results)
        self._told = told_by(results) if ExportDicom.KIND_MEASUREMENTS in self._kinds else {}
        self._references = references(self._told.values())
        self._made = [
            (step, model) for step, result in results.items() for model in models_behind(result)
        ]
        self._volumes = volumes_by(results)
        self._units = units_of(context)
        self._known = Known()
        self._result = ExportDicomResult()
        self._numbers: Counter[int] = Counter()

    def run(self) -> ExportDicomResult:
        """Writes everything."""
        self._refuse_vectors()
        images = self._compare(self._read())
        stacks = list(stacks_of(images))
        # An image that fails in one object is in none of the later ones: its item has ended.
        lost: set[str] = set()
        for done, stack in enumerate(stacks):
            self._context.progress("write", done, len(stacks))
            try:
                self._write_stack(stack)
            except FluoroError as error:
                self._fail(stack.images, error)
                lost |= {image.key for image in stack.images}
        # A report must not refer to an image whose objects were taken back.
        images = [image for image in images if image.key not in lost]
        images = self._write_statements(images)
        if ExportDicom.KIND_KEY_IMAGES in self._kinds:
            self._write_key_images(images)
        if ExportDicom.KIND_DOCUMENT in self._kinds and images:
            self._write_documents(images)
        self._context.progress("write", 1, 1)
        return self._result

    def _refuse_vectors(self) -> None:
        """FluoroError CHOICE_UNAVAILABLE if there are but vectors of images to measure."""
        if (
            self._kinds <= set(DEFAULT_KINDS)
            and any(isinstance(result, VECTORS) for result in self._results.values())
            and not (self._told or self._findings)
        ):
            raise FluoroError(
                Reason.CHOICE_UNAVAILABLE,
                "Vectors of images, and images like others, are no measurements, so there is no "
                "DICOM object of them. Export them as JSON.",
            )

    def _read(self) -> list[Image]:
        """What can be exported of the items, each instance once.

        Instances of which there are two versions fail.
        """
        images: dict[str, Image] = {}
        blobs: dict[str, str] = {}
        conflicts: set[str] = set()
        for input_, item in zip(self._context.inputs, self._context.each("read"), strict=True):
            with item:
                file = dicom_of(item)
                image = self._read_item(item, file, input_.number)
                uid = image.source.instance
                if uid in conflicts or not self._is_same(item, blobs.setdefault(uid, file.blob)):
                    # Noted, because a third version may be equal to the first.
                    conflicts.add(uid)
                    raise conflict()
                if uid in images:
                    item.skip(Reason.NO_APPLICABLE_INPUT, "Another input is the same instance.")
                elif (
                    # At once, and not with the other objects: the pictures lie in the item's
                    # folder, which goes with it.
                    self._write_pictures(item, image)
                    or self._exports(image)
                    or image.key in self._references
                ):
                    images[uid] = image
                else:
                    item.skip(
                        Reason.NO_APPLICABLE_INPUT,
                        "Earlier steps left nothing of this file that the step writes.",
                    )
        # The first version was taken in before the second one was seen.
        self._fail([images.pop(uid) for uid in conflicts if uid in images], conflict())
        return list(images.values())

    def _is_same(self, item: StepItem, first: str) -> bool:
        """Whether the file of an item has the bytes of this blob."""
        file = dicom_of(item)
        # The same file may have been uploaded twice, and is then two blobs.
        return file.blob == first or filecmp.cmp(
            self._context.fetch(first, item.folder), item.fetch(file), shallow=False
        )

    def _read_item(self, item: StepItem, file: Part, number: int) -> Image:
        start = self._context.piece(file.blob, 0, START_BYTES)
        source = read_source(start, lambda: item.fetch(file), self._known)
        image = Image(number, item.key, source)
        image.input = item.input
        image.unit = self._units.get(item.key, "")
        image.told = self._told.get(item.key, {})
        take_maps(item, image, self._findings, self._context)
        return image

    def _exports(self, image: Image) -> bool:
        """Whether an object beside its pictures will be made of it."""
        if ExportDicom.KIND_DOCUMENT in self._kinds:
            return True
        wanted = set(self._kinds) - {ExportDicom.KIND_PICTURES}
        if not image.source.may_be_segmented:
            # highdicom needs the place of every frame, and would refuse the whole series.
            wanted.discard(ExportDicom.KIND_SEGMENTATION)
        return bool((wanted and image.found) or image.told)

    def _write_pictures(self, item: StepItem, image: Image) -> bool:
        """Whether there are any."""
        if ExportDicom.KIND_PICTURES not in self._kinds:
            return False
        pictures = [part for part in item.parts if part.role in PICTURES]
        for n, part in enumerate(pictures):
            self._context.check()
            model = self._overlaid.get((part.step, part.name))
            with blame_file(Reason.DICOM_INVALID, UNWRITABLE):
                written = capture(
                    item.fetch(part),
                    part.role,
                    part.step,
                    image.number + 1,
                    image.source,
                    model,
                    self._origin,
                )
                path = saved(written, item.folder)
            # The step is in the name: two models may have drawn overlays of one image.
            stem, key = f"{part.role}-{part.step}", f"{item.key}/{n}"
            name = item.put(stem, ".dcm", "instance", "application/dicom", path, key)
            image.artifacts.append(name)
            self._tell(name, ExportDicom.KIND_PICTURES, written, 1, part.step, model)
        return bool(pictures)

    def _write_stack(self, stack: Stack) -> None:
        segments = None
        with blame_file(Reason.DICOM_INVALID, UNWRITABLE):
            if (
                ExportDicom.KIND_SEGMENTATION in self._kinds
                and stack.images[0].source.may_be_segmented
            ):
                segments = segmentation(stack, self._origin, self._type)
            report = (
                measurement_report(stack, segments, self._origin, self._volumes)
                if ExportDicom.KIND_MEASUREMENTS in self._kinds
                else None
            )
        for kind, written in (
            (ExportDicom.KIND_SEGMENTATION, segments),
            (ExportDicom.KIND_MEASUREMENTS, report),
        ):
            if written is not None:
                self._put(kind, written, len(stack.images), stack.step, stack.model)

    def _compare(self, images: Sequence[Image]) -> list[Image]:
        """Leaves out what compares an image with one of another study or patient, or with none.

        Returns the images of which there is something to write; the others are skipped.
        """
        # A comparison across patients would put the name of one into the file of the other.
        subjects = {image.key: image.source.subject for image in images}
        for image in images:
            subject = image.source.subject
            kept = {
                # A reference that could not be read has no subject, and no object can name it.
                step: [one for one in told if subjects.get(one.reference or image.key) == subject]
                for step, told in image.told.items()
            }
            image.told = {step: told for step, told in kept.items() if told}
        used = references(image.told for image in images)
        there = []
        for image in images:
            if image.artifacts or self._exports(image) or image.key in used:
                there.append(image)
            else:
                self._end(image, job_pb2.Item.STATE_SKIPPED, Reason.NO_APPLICABLE_INPUT, APART)
        return there

    def _write_statements(self, images: Sequence[Image]) -> list[Image]:
        """Returns the images that did not fail."""
        lost: set[str] = set()
        for said in statements_of(images):
            try:
                with blame_file(Reason.DICOM_INVALID, UNWRITABLE):
                    written = statement_report(said, images, self._origin, self._context.check)
                told = least_cleared(said.models)
                self._put(ExportDicom.KIND_MEASUREMENTS, written, len(said.images), said.step, told)
            except FluoroError as error:
                self._fail(said.images, error)
                lost |= {image.key for image in said.images}
        return [image for image in images if image.key not in lost]

    def _write_key_images(self, images: Sequence[Image]) -> None:
        together: dict[tuple[str, bytes, *tuple[str, ...]], list[Image]] = {}
        for image in images:
            for step in image.found:
                made = identity(image.found[step].model)
                # By patient as well: a selection that names images of two is in the file of one.
                together.setdefault((step, made, *image.source.subject), []).append(image)
        for (step, *_), ones in together.items():
            if chosen := key_images(ones, step):
                model = ones[0].found[step].model
                with blame_file(Reason.DICOM_INVALID, UNWRITABLE):
                    written = key_object_selection(chosen, step, model, self._origin)
                count = len({source.instance for _, source in chosen})
                self._put(ExportDicom.KIND_KEY_IMAGES, written, count, step, model)

    def _write_documents(self, images: Sequence[Image]) -> None:
        sources = [image.source for image in images]
        reports = [
            (step.step, artifact)
            for step in self._context.upstream
            for artifact in step.artifacts
            if artifact.role == "report" and artifact.media_type == "application/pdf"
        ]
        for number, (step, artifact) in enumerate(reports, 1):
            with blame_file(Reason.DICOM_INVALID, UNWRITABLE):
                written = encapsulated(
                    self._context.fetch(artifact.blob), number, sources, self._made, self._origin
                )
            # A document shows what all of them found, so the least cleared one decides what is said
            # of it.
            told = least_cleared([model for _, model in self._made])
            self._put(ExportDicom.KIND_DOCUMENT, written, len(sources), step, told)

    def _put(
        self,
        kind: "ExportDicom.Kind.ValueType",
        written: SOPClass,
        sources: int,
        step: str,
        model: ml_pb2.ModelReference | None,
    ) -> None:
        """Stores an object of several items."""
        stem, number = STEMS[kind], self._numbers[kind]
        self._numbers[kind] += 1
        name = f"{stem}-{number:04}.dcm"
        path = saved(written, self._context.scratch)
        self._context.put(name, "instance", "application/dicom", path, key=f"{stem}/{number:04}")
        # A segmentation may have hundreds of megabytes, and the store has it now.
        path.unlink()
        self._tell(name, kind, written, sources, step, model)

    def _tell(
        self,
        name: str,
        kind: "ExportDicom.Kind.ValueType",
        written: SOPClass,
        sources: int,
        step: str,
        model: ml_pb2.ModelReference | None,
    ) -> None:
        self._result.objects.append(
            ExportedObject(
                artifact=name,
                kind=kind,
                sop_class_uid=written.SOPClassUID,
                sop_instance_uid=written.SOPInstanceUID,
                series_instance_uid=written.SeriesInstanceUID,
                study_instance_uid=written.StudyInstanceUID,
                sources=sources,
                step=step,
                intended_use=use_of(model) if model else Model.INTENDED_USE_UNSPECIFIED,
            )
        )

    def _fail(self, images: Sequence[Image], error: FluoroError) -> None:
        """The images of an object fail together, and leave nothing. Others go on."""
        gone = {name for image in images for name in image.artifacts}
        for name in gone:
            # The item fails, and a failed item leaves nothing.
            del self._context.artifacts[name]
        kept = [one for one in self._result.objects if one.artifact not in gone]
        del self._result.objects[:]
        self._result.objects.extend(kept)
        for image in images:
            image.artifacts.clear()
            self._end(image, job_pb2.Item.STATE_FAILED, error.reason, error.message)

    def _end(
        self, image: Image, state: "job_pb2.Item.State.ValueType", reason: Reason, message: str
    ) -> None:
        self._context.end(
            image.number,
            job_pb2.Item(
                input=image.input, key=image.key, state=state, reason=reason, message=message
            ),
        )
