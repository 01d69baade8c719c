"""For tests, benchmarks and samples: a CT series, and what steps would have left of it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from fluoro.v1 import (
    classify_pb2,
    dermoscopy_pb2,
    dicom_pb2,
    embedding_pb2,
    ml_pb2,
    photograph_pb2,
    visualize_pb2,
)
from fluoro.v1.model_pb2 import Model
from fluoro_jobs.operations import JOB_INPUT
from fluoro_jobs.testing import Attempt, step_context
from fluoro_jobs.worker.context import Input, Part, StepItem, Upstream
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import UID

JOB: Final = "jobs/0198c1f2-7a3b-7c4d-9e5f-0123456789ab"
CLASSES: Final = (
    ("unclassified", ""),
    ("air", ""),
    ("lung", "#4fa3e3"),
    ("fat", "#f2c94c"),
    ("soft tissue", "#d9534f"),
    ("bone", "#7fd1ae"),
)
"""Of the model ct-tissue: names and colours, by value."""
SPACING_MM: Final = 0.75
THICKNESS_MM: Final = 2.5
MODEL: Final = ml_pb2.ModelReference(
    name="ct-tissue",
    version="1.0.0",
    sha256=hashlib.sha256(b"model").digest(),
    execution_provider="CPUExecutionProvider",
    runtime_version="1.31.1",
    intended_use=Model.INTENDED_USE_DEMONSTRATION,
)


def ct_slices(count: int, size: int = 64, **attributes: Any) -> list[Dataset]:
    """A CT series of `count` instances of size x size pixels, with these attributes of all."""
    path = get_testdata_file("CT_small.dcm")
    assert isinstance(path, str)
    slices: list[Dataset] = []
    for number in range(count):
        data = dcmread(path)
        data.SOPInstanceUID = UID(f"1.2.3.4.{number + 1}")
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.InstanceNumber = number + 1
        data.ImagePositionPatient = [-100, -100, number * THICKNESS_MM]
        data.PixelSpacing = [SPACING_MM, SPACING_MM]
        data.SliceThickness = THICKNESS_MM
        data.Rows = data.Columns = size
        data.PixelData = np.full((size, size), 1024 + number % 1000, "<i2").tobytes()
        for keyword, value in attributes.items():
            setattr(data, keyword, value)
        slices.append(data)
    return slices


def written(data: Dataset) -> bytes:
    """The bytes of its file."""
    file = BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def label_map(number: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Balls of all classes around each other that change from slice to slice."""
    frames, rows, columns = shape
    z, y, x = np.ogrid[:frames, :rows, :columns]
    distance = np.hypot(y - rows / 2, x - columns / 2) + (number + z) % 7
    return np.asarray(5 - np.clip(distance * 10 / rows, 0, 5), np.uint8)


def measurements(labels: NDArray[np.uint8]) -> list[ml_pb2.Measurement]:
    """Of each class, as AnalyzeImages gives them."""
    counts = np.bincount(labels.ravel(), minlength=len(CLASSES))
    found = []
    for label, (name, color) in enumerate(CLASSES):
        one = ml_pb2.Measurement(
            label=label,
            display_name=name,
            voxels=int(counts[label]),
            fraction=counts[label] / labels.size,
            volume_ml=counts[label] * SPACING_MM**2 * THICKNESS_MM / 1000,
            color=color,
        )
        if counts[label]:
            one.mean_value = 40 * label - 100
        found.append(one)
    return found


def copied_model() -> ml_pb2.ModelReference:
    """`MODEL`, to be changed."""
    copy = ml_pb2.ModelReference()
    copy.CopyFrom(MODEL)
    return copy


@dataclass
class Study:
    """Files of a job, and the steps that rendered and analysed them.

    maps: label maps by number of the file; None where the model does not apply.
    """

    folder: Path
    files: Sequence[bytes]
    maps: Sequence[NDArray[Any] | None]
    model: ml_pb2.ModelReference = field(default_factory=copied_model)
    unit: str = "HU"

    @classmethod
    def of_slices(cls, folder: Path, slices: Sequence[Dataset]) -> "Study":
        """Each with a label map."""
        maps = [
            label_map(number, (int(data.get("NumberOfFrames", 1)), data.Rows, data.Columns))
            for number, data in enumerate(slices)
        ]
        return cls(folder, [written(data) for data in slices], maps)

    def render(self) -> Upstream:
        """A preview of each file."""
        attempt = self._step("render")
        images = []
        for item, labels in zip(attempt.context.each("render"), self.maps, strict=True):
            with item:
                grey = (np.zeros((64, 64)) if labels is None else labels[0] * 50).astype(np.uint8)
                images.append(
                    dicom_pb2.RenderedImage(
                        input=item.input,
                        item=item.key,
                        preview=item.put("preview", ".png", "preview", "image/png", png(grey)),
                        certificate=dicom_pb2.PixelCertificate(unit=self.unit),
                        modality="CT",
                    )
                )
        return attempt.as_upstream(dicom_pb2.RenderDicomResult(images=images))

    def analyze(self, step: str = "analyze") -> Upstream:
        """A label map and an overlay of each file that has one."""
        attempt = self._step(step)
        findings = []
        for item, labels in zip(attempt.context.each("analyze"), self.maps, strict=True):
            with item:
                if labels is None:
                    continue
                file = BytesIO()
                np.save(file, labels)
                rgb = np.stack([(labels[0] * 50).astype(np.uint8)] * 3, axis=-1)
                findings.append(
                    ml_pb2.ImageFinding(
                        input=item.input,
                        item=item.key,
                        label_map=item.put(
                            "label-map", ".npy", "label-map", "application/x-npy", file.getvalue()
                        ),
                        overlay=item.put("overlay", ".png", "overlay", "image/png", png(rgb)),
                        measurements=measurements(labels),
                    )
                )
        return attempt.as_upstream(ml_pb2.AnalyzeImagesResult(model=self.model, findings=findings))

    def stored(self) -> list[Input]:
        """The files as inputs of a job, in the blob store."""
        return list(step_context(self.folder, self.files).context.inputs)

    def attempt(self, *upstream: Upstream) -> Attempt:
        """Of a step that works on the files and on what these steps left, by key."""
        return self.attempt_on(self.stored(), upstream)

    def attempt_on(self, files: Sequence[Input], upstream: Sequence[Upstream]) -> Attempt:
        """The same, of files that are in the blob store already."""
        attempt = step_context(self.folder, (), upstream, step="export")
        parts: dict[str, list[Part]] = {}
        for step in upstream:
            for one in step.artifacts:
                part = Part(one.blob, one.role, one.name, one.media_type, step.step)
                parts.setdefault(one.key, []).append(part)
        attempt.context.job = JOB
        attempt.context.inputs = [
            Input(one.number, one.key, one.input, [*one.parts, *parts.get(one.key, ())])
            for one in files
        ]
        return attempt

    def _step(self, name: str) -> Attempt:
        attempt = step_context(self.folder, step=name)
        attempt.context.inputs = [
            Input(number, str(number), number, [Part("", JOB_INPUT, "", "", "")])
            for number in range(len(self.files))
        ]
        return attempt


def png(array: NDArray[np.uint8]) -> bytes:
    """The picture as a file."""
    file = BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


SKIN_CLASSES: Final = (
    "nevus",
    "melanoma",
    "basal cell carcinoma",
    "benign keratosis",
    "dermatofibroma",
    "vascular lesion",
)
CLASSIFIER: Final = ml_pb2.ModelReference(
    name="skin-demo",
    version="1.0.0",
    sha256=hashlib.sha256(b"classifier").digest(),
    execution_provider="CPUExecutionProvider",
    runtime_version="1.31.1",
    intended_use=Model.INTENDED_USE_DEMONSTRATION,
)


def lesion(number: int, size: int = 240) -> NDArray[np.uint8]:
    """(size, size, 3) pixels of a brown spot on skin; another number is another spot."""
    chance = np.random.default_rng(number)
    y, x = (np.mgrid[:size, :size] - size / 2) / size
    angle, wide = np.arctan2(y, x), chance.uniform(0.12, 0.3)
    edge = wide * (1 + 0.15 * np.sin(3 * angle + number) + 0.08 * np.sin(7 * angle))
    inside = 1 / (1 + np.exp((np.hypot(x, y * chance.uniform(1, 1.5)) - edge) * 60))
    skin = np.array([226, 182, 158]) + chance.normal(0, 4, (size, size, 1))
    brown = np.array([98, 58, 40]) * chance.uniform(0.7, 1.3) + chance.normal(0, 9, (size, size, 1))
    mixed = skin * (1 - inside[..., None]) + brown * inside[..., None]
    return np.asarray(np.clip(mixed, 0, 255), np.uint8)


def probabilities(number: int) -> list[ml_pb2.ClassScore]:
    """Of one frame, the most probable class first."""
    chances = np.random.default_rng(number).dirichlet(np.full(len(SKIN_CLASSES), 0.5))
    order = np.argsort(-chances)
    return [
        ml_pb2.ClassScore(
            frame=1,
            label=int(label),
            display_name=SKIN_CLASSES[label],
            probability=float(chances[label]),
        )
        for label in order
    ]


def photographs(
    folder: Path, count: int, *, keys: Sequence[str] = (), steps: Sequence[str] = ("classify",)
) -> list[Upstream]:
    """Photographs of spots on skin as ImportImages and AnalyzeImages leave them.

    keys: of the items; numbers if empty. steps: names of those that classify.
    """
    keys = keys or [str(number) for number in range(count)]
    importing = step_context(folder, step="import")
    importing.context.inputs = [Input(n, key, n, ()) for n, key in enumerate(keys)]
    images = []
    for number, item in enumerate(importing.context.each("import")):
        with item:
            pixels = lesion(number)
            picture = item.put("preview", ".png", "preview", "image/png", png(pixels))
            rendered = dicom_pb2.RenderedImage(
                input=item.input,
                item=item.key,
                preview=picture,
                modality="XC",
                certificate=dicom_pb2.PixelCertificate(
                    sha256=hashlib.sha256(pixels.tobytes()).digest(),
                    shape=[1, *pixels.shape],
                    dtype="|u1",
                    unit="1",
                    maximum=255,
                    decoder="Pillow",
                ),
            )
            images.append(photograph_pb2.ImportedImage(rendered=rendered))
    left = [importing.as_upstream(photograph_pb2.ImportImagesResult(images=images))]
    for place, step in enumerate(steps):
        attempt = step_context(folder, step=step)
        attempt.context.inputs = importing.context.inputs
        findings = [
            ml_pb2.ImageFinding(
                input=item.input, item=item.key, classes=probabilities(number + 1000 * place)
            )
            for number, item in enumerate(attempt.context.each("analyze"))
            if _done(item)
        ]
        result = ml_pb2.AnalyzeImagesResult(model=CLASSIFIER, findings=findings)
        left.append(attempt.as_upstream(result))
    return left


def _done(item: StepItem) -> bool:
    with item:
        pass
    return True


def looks(folder: Path, count: int) -> list[Upstream]:
    """A heat map of each photograph, and the photographs like it, as steps leave them."""
    attempt = step_context(folder, step="look")
    attempt.context.inputs = [Input(n, str(n), n, ()) for n in range(count)]
    maps = []
    for number, item in enumerate(attempt.context.each("visualize")):
        with item:
            picture = item.put(
                "heat-map", ".png", "heat-map", "image/png", png(lesion(number, 120))
            )
            explained = probabilities(number)[0]
            maps.append(
                visualize_pb2.SaliencyMap(
                    input=item.input, item=item.key, heat_map=picture, explained=explained
                )
            )
    looked = visualize_pb2.VisualizeImagesResult(model=CLASSIFIER, maps=maps)
    left = [attempt.as_upstream(looked)]
    attempt = step_context(folder, step="similar")
    attempt.context.inputs = [Input(n, str(n), n, ()) for n in range(count)]
    found = []
    for item in attempt.context.each("compare"):
        with item:
            neighbors = [
                embedding_pb2.Neighbor(input=n, item=str(n), frame=1, similarity=0.9 - n / 10)
                for n in range(count)
                if n != item.input
            ]
            found.append(
                embedding_pb2.SimilarImages(
                    input=item.input, item=item.key, frame=1, neighbors=neighbors
                )
            )
    similar = embedding_pb2.FindSimilarResult(found=found, images=count)
    return [*left, attempt.as_upstream(similar)]


ZONES: Final = (("skin", "#d7b8a3"), ("superficial", "#f2c94c"), ("deep", "#d9534f"))
"""Of a model for burns: names and colours, by value."""
ZONE_EDGES: Final = (-190, -140)
"""Where one zone ends and the next begins: values of red, darker ones last."""


def wounds(folder: Path, count: int) -> list[Upstream]:
    """Photographs with the zones of a burn, as ImportImages and AnalyzeImages leave them."""
    attempt = step_context(folder, step="zones")
    attempt.context.inputs = [Input(n, str(n), n, ()) for n in range(count)]
    colors = np.array([[int(color[at : at + 2], 16) for at in (1, 3, 5)] for _, color in ZONES])
    findings = []
    for number, item in enumerate(attempt.context.each("analyze")):
        with item:
            red = lesion(number)[..., 0]
            labels = np.digitize(-red.astype(int), ZONE_EDGES).astype(np.uint8)
            overlay = png(((lesion(number) + colors[labels]) // 2).astype(np.uint8))
            shares = np.bincount(labels.ravel(), minlength=len(ZONES)) / labels.size
            findings.append(
                ml_pb2.ImageFinding(
                    input=item.input,
                    item=item.key,
                    overlay=item.put("overlay", ".png", "overlay", "image/png", overlay),
                    measurements=[
                        ml_pb2.Measurement(
                            label=label,
                            display_name=name,
                            color=color,
                            fraction=shares[label],
                            voxels=int(shares[label] * labels.size),
                        )
                        for label, (name, color) in enumerate(ZONES)
                    ],
                )
            )
    result = ml_pb2.AnalyzeImagesResult(model=CLASSIFIER, findings=findings)
    return [photographs(folder, count)[0], attempt.as_upstream(result)]


Frame = classify_pb2.ClassifiedFrame
JUDGED: Final = (
    (Frame.VERDICT_CLASSIFIED, "nevus", 0.91),
    (Frame.VERDICT_MODELS_DISAGREE, "nevus", 0.48),
    (Frame.VERDICT_CLASSIFIED, "melanoma", 0.62),
    (Frame.VERDICT_OUT_OF_DISTRIBUTION, "nevus", 0.88),
    (Frame.VERDICT_CLASSIFIED, "melanoma", 0.83),
    (Frame.VERDICT_UNCERTAIN, "dermatofibroma", 0.34),
)
"""Of photographs in order: verdict, most probable class, mean probability."""


def verdicts(folder: Path, count: int = len(JUDGED)) -> list[Upstream]:
    """Photographs as ImportImages and ClassifyImages by two models leave them, as `JUDGED`."""
    attempt = step_context(folder, step="ask")
    attempt.context.inputs = [Input(n, str(n), n, ()) for n in range(count)]
    second = ml_pb2.ModelReference()
    second.CopyFrom(CLASSIFIER)
    second.name = "skin-demo-b"
    result = classify_pb2.ClassifyImagesResult()
    for item, (verdict, name, mean) in zip(attempt.context.each("classify"), JUDGED, strict=False):
        with item:
            disagree = verdict == Frame.VERDICT_MODELS_DISAGREE
            frame = Frame(
                frame=1,
                verdict=verdict,
                label=SKIN_CLASSES.index(name),
                display_name=name,
                mean_probability=mean,
                agreement=0.5 if disagree else 1,
            )
            for place, model in enumerate((CLASSIFIER, second)):
                rest = "melanoma" if name == "nevus" else "nevus"
                names = (rest, name) if disagree and place else (name, rest)
                scores = zip(names, (mean, 0.9 * min(mean, 1 - mean)), strict=True)
                opinion = frame.opinions.add(
                    model=model,
                    calibrated=place == 0,
                    classes=[
                        ml_pb2.ClassScore(frame=1, display_name=each, probability=probability)
                        for each, probability in scores
                    ],
                )
                if place == 0:
                    novel = verdict == Frame.VERDICT_OUT_OF_DISTRIBUTION
                    opinion.novelty, opinion.novelty_threshold = 41.5 if novel else 7.25, 30
            result.images.add(input=item.input, item=item.key, frames=[frame])
    return [photographs(folder, count)[0], attempt.as_upstream(result)]


def dermoscopies(folder: Path) -> list[Upstream]:
    """Two photographs as ImportImages and AssessDermoscopy leave them; one has a scale."""
    attempt = step_context(folder, step="assess")
    attempt.context.inputs = [Input(n, str(n), n, ()) for n in range(2)]
    lesions = []
    for number, item in enumerate(attempt.context.each("assess")):
        with item:
            outlined = lesion(number)
            outlined[outlined[..., 0] < -ZONE_EDGES[0], 2] = 200
            found = dermoscopy_pb2.AssessedLesion(
                input=item.input,
                item=item.key,
                model=CLASSIFIER,
                asymmetry=2 - number,
                border=5 - 4 * number,
                colors=["light brown", "dark brown", "blue-grey"][: 3 - number],
                structures=["pigment network", "dots", "globules"][: 3 - number],
                total=2.6 + 0.5 + 1.5 + 1.5 if number == 0 else 1.3 + 0.1 + 1.0 + 1.0,
                verdict=dermoscopy_pb2.AssessedLesion.VERDICT_BENIGN
                if number
                else dermoscopy_pb2.AssessedLesion.VERDICT_HIGHLY_SUSPICIOUS,
                fraction=0.214,
                overlay=item.put("overlay", ".png", "overlay", "image/png", png(outlined)),
            )
            if number == 0:
                found.diameter_mm, found.area_mm2 = 7.4, 38.2
            lesions.append(found)
    rule = dermoscopy_pb2.AbcdRule(
        asymmetry_weight=1.3,
        border_weight=0.1,
        colors_weight=0.5,
        structures_weight=0.5,
        suspicious_from=4.75,
        highly_suspicious_above=5.45,
        source="Nachbar 1994",
        counter_evidence="Ahnlide 2016: specificity 45 % in practice",
    )
    result = dermoscopy_pb2.AssessDermoscopyResult(rule=rule, lesions=lesions)
    return [photographs(folder, 2)[0], attempt.as_upstream(result)]
