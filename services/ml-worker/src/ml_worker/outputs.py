"""What the outputs of a graph may be: a closed list of kinds, each with the shape that it needs."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Axis = Annotated[int, Field(ge=1)] | Annotated[str, Field(min_length=1, max_length=200)]
Floating = Literal["float16", "float32", "float64"]


class _Output(BaseModel):
    """An output of the graph. Its shape begins with the axis of samples."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=200)
    shape: tuple[Axis, ...] = Field(min_length=1, max_length=5)

    def _ranked(self, *ranks: int) -> Iterator[str]:
        if len(self.shape) not in ranks:
            wanted = " or ".join(map(str, ranks))
            yield f"output {self.name} must have {wanted} axes"

    def _last_is(self, length: int, what: str) -> Iterator[str]:
        if self.shape[-1] != length:
            yield f"the last axis of output {self.name} must be {length}, {what}"


class LabelMap(_Output):
    """The label of each voxel, in the shape of the image."""

    kind: Literal["label_map"]
    dtype: Literal["uint8"]

    def problems(self, labels: int, image: Sequence[int | str]) -> Iterator[str]:
        """What is wrong with it, for so many labels and an input of that shape."""
        if tuple(self.shape) != tuple(image):
            yield f"output {self.name} must have the shape of the image, {list(image)}"
        if not 1 <= labels <= 256:  # noqa: PLR2004 - the values of uint8
            yield "a label_map needs 1 to 256 labels"


class Voxels(_Output):
    """How many voxels each label has in each sample."""

    kind: Literal["voxels"]
    dtype: Literal["int64"]

    def problems(self, labels: int, _image: Sequence[int | str]) -> Iterator[str]:
        """What is wrong with it, for so many labels."""
        yield from self._ranked(2)
        yield from self._last_is(labels, "one per label")


class Sums(_Output):
    """The sum of the values of each label's voxels in each sample."""

    kind: Literal["sums"]
    dtype: Literal["float64"]

    def problems(self, labels: int, _image: Sequence[int | str]) -> Iterator[str]:
        """What is wrong with it, for so many labels."""
        yield from self._ranked(2)
        yield from self._last_is(labels, "one per label")


class Classes(_Output):
    """A score for each label of each sample.

    scores: what they are. exclusive: whether one label at most is true. calibrated: whether of a
    hundred samples with probability 0.8, about eighty are of the class, as the card shows.
    """

    kind: Literal["classes"]
    dtype: Floating
    scores: Literal["probabilities", "logits"] = "probabilities"
    exclusive: bool = True
    calibrated: bool = False

    def problems(self, labels: int, _image: Sequence[int | str]) -> Iterator[str]:
        """What is wrong with it, for so many labels."""
        yield from self._ranked(2)
        yield from self._last_is(labels, "one per label")
        if labels == 0:
            yield "classes need labels"


class Novelty(_Output):
    """How unlike the training data each sample is.

    threshold: from which on the model should not be asked.
    """

    kind: Literal["novelty"]
    dtype: Floating
    threshold: float

    def problems(self, _labels: int, _image: Sequence[int | str]) -> Iterator[str]:
        """What is wrong with it."""
        yield from self._ranked(1)


class Mask(_Output):
    """A score for each voxel, with an axis of labels (or 1) after that of samples.

    scores: what they are. threshold: from which probability a voxel belongs to the label.
    """

    kind: Literal["mask"]
    dtype: Floating
    scores: Literal["probabilities", "logits"] = "probabilities"
    threshold: float = Field(0.5, gt=0, lt=1)

    def problems(self, labels: int, _image: Sequence[int | str]) -> Iterator[str]:
        """What is wrong with it, for so many labels."""
        yield from self._ranked(4, 5)
        if len(self.shape) > 1 and self.shape[1] not in {1, labels}:
            yield f"the second axis of output {self.name} must be 1 or {labels}, one per label"


class Embedding(_Output):
    """A vector for each sample. l2_normalised: whether the graph makes its length 1."""

    kind: Literal["embedding"]
    dtype: Floating
    l2_normalised: bool = False

    def problems(self, _labels: int, _image: Sequence[int | str]) -> Iterator[str]:
        """What is wrong with it."""
        yield from self._ranked(2)
        if not isinstance(self.shape[-1], int):
            yield f"the last axis of output {self.name} must be a number"


class Boxes(_Output):
    """Four numbers for each box of each sample.

    order: of x (columns) and y (rows), or of the centre and the size. unit: of the tensor's pixels,
    or shares of its size. overlap: share of two boxes' union from which on they are one object; 1
    if the graph has seen to that.
    """

    kind: Literal["boxes"]
    dtype: Floating
    order: Literal["xyxy", "yxyx", "xywh"] = "xyxy"
    unit: Literal["pixels", "shares"] = "pixels"
    overlap: float = Field(0.5, gt=0, le=1)

    def problems(self, _labels: int, _image: Sequence[int | str]) -> Iterator[str]:
        """What is wrong with it."""
        yield from self._ranked(3)
        yield from self._last_is(4, "the sides of a box")


class BoxScores(_Output):
    """How sure each box is, 0 to 1: one number, or one for each label. threshold: of an object.

    What is below the threshold is no object, so a number below 0 may fill up the boxes.
    """

    kind: Literal["box_scores"]
    dtype: Floating
    threshold: float = Field(0.5, gt=0, le=1)

    def problems(self, labels: int, _image: Sequence[int | str]) -> Iterator[str]:
        """What is wrong with it, for so many labels."""
        yield from self._ranked(2, 3)
        if len(self.shape) == 3:  # noqa: PLR2004 - samples, boxes, labels
            yield from self._last_is(labels, "one per label")


class BoxLabels(_Output):
    """The label of each box."""

    kind: Literal["box_labels"]
    dtype: Literal["int32", "int64"]

    def problems(self, _labels: int, _image: Sequence[int | str]) -> Iterator[str]:
        """What is wrong with it."""
        yield from self._ranked(2)


class BoxLandmarks(_Output):
    """Points of each box: two numbers each, in the unit of boxes.

    The first number is the row if the order of boxes is yxyx, else the column. names: what they
    are.
    """

    kind: Literal["box_landmarks"]
    dtype: Floating
    names: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        min_length=1, max_length=64
    )

    def problems(self, _labels: int, _image: Sequence[int | str]) -> Iterator[str]:
        """What is wrong with it."""
        yield from self._ranked(3)
        yield from self._last_is(2 * len(self.names), "two per name")


class Regions(_Output):
    """How likely each pixel belongs to an object of each label, 0 to 1: objects are its regions.

    pixel_threshold: from which on a pixel belongs to a region. threshold: least score of a region.
    least_side: of its smallest rectangle, in pixels of the map. unclip: how far the map shrank the
    objects; boxes grow by as much (`regions_in`).
    """

    kind: Literal["regions"]
    dtype: Floating
    pixel_threshold: float = Field(0.3, gt=0, lt=1)
    threshold: float = Field(0.5, gt=0, le=1)
    least_side: float = Field(3, ge=1)
    unclip: float = Field(0, ge=0, le=10)

    def problems(self, labels: int, image: Sequence[int | str]) -> Iterator[str]:
        """What is wrong with it, for so many labels and an input of that shape."""
        yield from self._ranked(4)
        if labels == 0 or self.shape[1:2] != (labels,):
            yield f"the second axis of output {self.name} must be {labels or 1}, one per label"
        if self.shape[2:] != tuple(image)[1:]:
            yield f"output {self.name} must have the rows and columns of the image"


class Picture(_Output):
    """An image for each sample, channels first. values: black and white."""

    kind: Literal["image"]
    dtype: Literal["float16", "float32", "float64", "uint8"]
    values: tuple[float, float] = (0, 1)

    def problems(self, _labels: int, _image: Sequence[int | str]) -> Iterator[str]:
        """What is wrong with it."""
        yield from self._ranked(4)
        if len(self.shape) > 1 and self.shape[1] not in {1, 3}:
            yield f"the second axis of output {self.name} must be 1 or 3 channels"


Output = Annotated[
    LabelMap
    | Voxels
    | Sums
    | Classes
    | Novelty
    | Mask
    | Embedding
    | Boxes
    | BoxScores
    | BoxLabels
    | BoxLandmarks
    | Regions
    | Picture,
    Field(discriminator="kind"),
]


def problems_of_boxes(outputs: Sequence[Output], labels: int) -> Iterator[str]:
    """What is wrong with the outputs that tell of boxes, taken together."""
    of_boxes = {one.kind: one for one in outputs if one.kind.startswith("box")}
    if any(one.kind == "regions" for one in outputs) and of_boxes:
        yield "a model gives boxes or regions, not both"
    if not of_boxes:
        return
    if not {"boxes", "box_scores"} <= of_boxes.keys() or labels == 0:
        yield "outputs that tell of boxes need boxes, box_scores and labels"
        return
    if len({one.shape[1:2] for one in of_boxes.values()}) > 1:
        yield "outputs that tell of boxes must have the same second axis"
    label_each = len(of_boxes["box_scores"].shape) == len(("samples", "boxes", "labels"))
    if label_each and "box_labels" in of_boxes:
        yield "box_labels belong to box_scores of one number per box"
    if labels > 1 and not label_each and "box_labels" not in of_boxes:
        yield "several labels need box_labels, or box_scores of a number per label"
