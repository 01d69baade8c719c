"""model.toml: what a model takes, gives and is for."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal, Self

from fluoro.v1.model_pb2 import Code as CodeProto
from fluoro.v1.model_pb2 import Model as ModelProto
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ml_worker.outputs import Output, problems_of_boxes

NAME: Final = r"^[a-z][a-z0-9-]{0,62}$"
VERSION: Final = r"^(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})$"
FILE: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""Names of files: plain ones, in the model's own folder."""

MOST_LABELS: Final = 256
"""A label map has 8 bits."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Color = Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]
Text = Annotated[str, Field(min_length=1, max_length=2000)]
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Device = Literal["cpu", "cuda"]

INTENDED_USE: Final = {
    "demonstration": ModelProto.INTENDED_USE_DEMONSTRATION,
    "research": ModelProto.INTENDED_USE_RESEARCH,
    "clinical": ModelProto.INTENDED_USE_CLINICAL,
}


class ModelRefusedError(Exception):
    """This model is not served; its text says what to mend."""

    def __init__(self, problem: "ModelProto.Problem.ValueType", message: str) -> None:
        super().__init__(message)
        self.problem = problem


class _Table(BaseModel):
    # A misspelt field would be a setting that is silently ignored, and TOML has `nan` and `inf`.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class VolumeLimits(_Table):
    """Which series make a volume that a model of volumes is made for.

    planes: the fewest. Pairs are the least and the most, in millimetres.
    """

    planes: int = Field(ge=2)
    spacing_mm: tuple[Annotated[float, Field(gt=0)], float] = Field(
        description="Distance of planes, of rows and of columns."
    )
    anisotropy: float = Field(
        ge=1, description="The largest of these distances, relative to the smallest, at most."
    )
    extent_mm: tuple[Annotated[float, Field(gt=0)], float] = Field(
        description="Length of each side of the volume."
    )
    tilt_degrees: float = Field(
        gt=0, lt=45, description="How far a side may point away from an axis of the patient."
    )

    @model_validator(mode="after")
    def _rise(self) -> Self:
        if any(least >= most for least, most in (self.spacing_mm, self.extent_mm)):
            raise ValueError("the least must be below the most")
        return self


class AppliesTo(_Table):
    """Which images the model is made for. Others are skipped, not guessed at."""

    modalities: tuple[Line, ...] = Field(
        max_length=64, description="Modality (0008,0060); none: any."
    )
    unit: str = Field(
        min_length=1, description="Unit of the pixels (UCUM), as in fluoro.v1.PixelCertificate."
    )
    photometric: tuple[Literal["grey", "colour"], ...] = Field(
        default=("grey",), min_length=1, description="Images with one sample per pixel, or three."
    )
    volume: VolumeLimits | None = Field(
        default=None, description="Needed by a model of volumes that AnalyzeImages is to take."
    )


class Values(_Table):
    """A linear map of the image's values, cut off at both ends.

    A window of DICOM with centre c and width w is the range from c - w/2 to c + w/2 (LINEAR_EXACT,
    PS3.3 C.11.2.1.3.2). `full` is what the image can hold: 0 to 2^(Bits Stored) - 1 of integers.
    """

    source: tuple[float, float] | Literal["full"] = Field(alias="from")
    target: tuple[float, float] = Field(alias="to")

    @model_validator(mode="after")
    def _rise(self) -> Self:
        ranges = (self.target, *([] if self.source == "full" else [self.source]))
        if any(low >= high for low, high in ranges):
            raise ValueError("a range must begin below its end")
        return self


class Prepare(_Table):
    """How an image becomes the tensor, in the order of these fields. What is absent is not done."""

    colour: Literal["grey", "rgb", "bgr"] = "grey"
    values: Values | None = None
    spacing_mm: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        default=None,
        description="Resampled to this distance of planes, rows and columns, or the last two.",
    )
    resize: Literal["stretch", "fit", "cover"] | None = Field(
        default=None,
        description="To the tensor's fixed size: `fit` pads with `pad`, `cover` crops the centre; "
        "planes are stretched always.",
    )
    pad: float = 0
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, ...] | None = Field(default=None, description="Subtracted, per channel.")
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        default=None, description="Divided by, per channel."
    )

    @property
    def channels(self) -> int:
        """How many the tensor has."""
        return 1 if self.colour == "grey" else 3

    @model_validator(mode="after")
    def _one_per_channel(self) -> Self:
        for name in ("mean", "std"):
            numbers: tuple[float, ...] | None = getattr(self, name)
            if numbers is not None and len(numbers) != self.channels:
                raise ValueError(f"{name} must have {self.channels} numbers, one per channel")
        return self


class Input(_Table):
    """An input of the graph.

    layout: a letter per axis: N samples, C channels, D planes, H rows, W columns, F features.
    shape: numbers, and names of what differs from run to run. image: absent for plain numbers.
    """

    name: Line
    dtype: Literal["float16", "float32", "float64", "uint8", "uint16", "int32", "int64", "bool"]
    layout: str = Field(pattern=r"^N[CDHWF]{1,4}$")
    shape: tuple[Annotated[int, Field(ge=1)] | Line, ...]
    image: Prepare | None = None

    @model_validator(mode="after")
    def _axes_fit(self) -> Self:
        if len(self.layout) != len(self.shape) or len(set(self.layout)) < len(self.layout):
            raise ValueError("layout must have one letter per axis of shape, each once")
        if self.image is None:
            return self
        if not {"H", "W"} <= set(self.layout) or "F" in self.layout:
            raise ValueError("layout of an image must have H and W, and no F")
        fixed = [isinstance(self.axis(letter), int) for letter in self.spatial]
        # A tensor that is fixed in one direction alone would need to be resized and not at once.
        if any(fixed) != all(fixed):
            raise ValueError("D, H and W must be all numbers or all names")
        # A fixed size without a way to get there would refuse every image of another size.
        if all(fixed) != (self.image.resize is not None):
            raise ValueError("image.resize belongs to a tensor of fixed size, and to no other")
        if "C" in self.layout and self.axis("C") != self.image.channels:
            raise ValueError(f"axis C must be {self.image.channels} for {self.image.colour}")
        if "C" not in self.layout and self.image.channels > 1:
            raise ValueError("layout of a colour image must have C")
        spacing = self.image.spacing_mm
        if spacing is not None and len(spacing) != len(self.spatial):
            raise ValueError(f"image.spacing_mm must have {len(self.spatial)} numbers")
        return self

    @property
    def spatial(self) -> str:
        """Its axes in space, in the order D, H, W."""
        return "".join(letter for letter in "DHW" if letter in self.layout)

    @property
    def spatial_order(self) -> str:
        """Its axes in space, in the order of the tensor."""
        return "".join(letter for letter in self.layout if letter in "DHW")

    @property
    def changes_size(self) -> bool:
        """Whether the tensor of an image may have other rows and columns than the image."""
        how = self.image
        return how is not None and (how.resize is not None or how.spacing_mm is not None)

    @property
    def voxel_shape(self) -> tuple[int | str, ...]:
        """Its shape without the axis of channels."""
        return tuple(
            size for letter, size in zip(self.layout, self.shape, strict=True) if letter != "C"
        )

    def axis(self, letter: str) -> int | str:
        """Length of an axis."""
        return self.shape[self.layout.index(letter)]


class Batch(_Table):
    """How many samples run at once.

    max: most of them. ladder: the sizes that runs have, smaller ones being filled up; none: any
    size. bytes_per_voxel: what a run needs for each voxel shown to it, measured and rounded up.
    max_delay_seconds: how long samples wait for more of them when no full run waits.
    """

    max: int = Field(ge=1, le=4096)
    ladder: tuple[Annotated[int, Field(ge=1)], ...] = ()
    bytes_per_voxel: int = Field(ge=1)
    max_delay_seconds: float = Field(0, ge=0, le=10)

    @model_validator(mode="after")
    def _ladder_rises_to_max(self) -> Self:
        if self.ladder and (
            list(self.ladder) != sorted(set(self.ladder)) or self.ladder[-1] != self.max
        ):
            raise ValueError("ladder must rise, and end with max")
        return self

    def rung(self, samples: int) -> int:
        """The size that a run of so many samples, `max` at most, is filled up to."""
        return next((size for size in self.ladder if size >= samples), samples)


class WarmUp(_Table):
    """A sample, and what the model must give for it: an NPZ with an array for each tensor.

    A number is right within atol + rtol * |expected|, an integer if it is equal. differing_share:
    how many of an output's values may be wrong, of all.
    """

    file: Annotated[str, Field(pattern=FILE)]
    atol: float = Field(1e-4, ge=0)
    rtol: float = Field(1e-3, ge=0)
    differing_share: float = Field(0.0, ge=0, lt=1)


class Provider(_Table):
    """How a device runs it.

    options: of ONNX Runtime's execution provider. cpu_ops: operators that may stay on the CPU
    although the device is a GPU.
    """

    options: dict[Line, Line] = Field(default_factory=dict, max_length=32)
    cpu_ops: tuple[Line, ...] = Field(default=(), max_length=64)


class Overlay(_Table):
    """How label maps are shown over the image.

    The VOI window of the grey image (none: that of its preview), and the opacity (0 to 1) of the
    colours over it.
    """

    window_center: float | None = None
    window_width: float | None = Field(default=None, ge=1)
    opacity: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.window_center is None) != (self.window_width is None):
            raise ValueError("window_center and window_width belong together")
        return self


class Code(_Table):
    """A coded entry (PS3.3 8.8): Code Value, Coding Scheme Designator, Code Meaning."""

    value: Line
    scheme: Line
    meaning: Line


class Label(_Table):
    """One class.

    range: [from, to) in the pixels' unit, for models that are thresholds. color: `#rrggbb`, absent
    if it is not drawn. codes: what it is called elsewhere.
    """

    value: int
    display_name: Line
    range: tuple[float, float] | None = None
    color: Color | None = None
    codes: tuple[Code, ...] = Field(default=(), max_length=8)

    @property
    def coded(self) -> list[CodeProto]:
        """Its codes in the words of the API."""
        return [
            CodeProto(value=code.value, scheme=code.scheme, meaning=code.meaning)
            for code in self.codes
        ]


class Manifest(_Table):
    """model.toml. Valid once constructed."""

    name: str = Field(pattern=NAME)
    version: str = Field(pattern=VERSION)
    summary: Line
    intended_use: Literal["demonstration", "research", "clinical"]
    license: Line
    source: Text
    training_data: Text
    files: dict[Annotated[str, Field(pattern=FILE)], Sha256] = Field(max_length=64)
    applies_to: AppliesTo | None = None
    inputs: tuple[Input, ...] = Field(min_length=1, max_length=16)
    outputs: tuple[Output, ...] = Field(min_length=1, max_length=16)
    batch: Batch
    warm_up: WarmUp
    providers: dict[Device, Provider] = Field(default_factory=dict)
    overlay: Overlay | None = None
    labels: tuple[Label, ...] = Field(default=(), max_length=20_000)

    @field_validator("labels")
    @classmethod
    def _labels_are_a_partition(cls, labels: tuple[Label, ...]) -> tuple[Label, ...]:
        # A label map holds these values, and outputs hold scores in this order: gaps would shift
        # one of them.
        if [label.value for label in labels] != list(range(len(labels))):
            raise ValueError("values must be 0, 1, 2 and so on, in this order")
        if len({label.display_name for label in labels}) < len(labels):
            raise ValueError("display names must differ")
        ranges = sorted(label.range for label in labels if label.range)
        if any(low >= high for low, high in ranges):
            raise ValueError("a range must begin below its end")
        # A voxel in two ranges would have two labels.
        if any(first[1] > second[0] for first, second in itertools.pairwise(ranges)):
            raise ValueError("ranges must not overlap")
        return labels

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        names = [tensor.name for tensor in (*self.inputs, *self.outputs)]
        if len(set(names)) < len(names):
            yield "names of inputs and outputs must differ"
        if len(set(self.kinds)) < len(self.kinds):
            yield "each kind of output may be there once"
        for name in ("model.onnx", self.warm_up.file):
            if name not in self.files:
                yield f"files must have the SHA-256 of {name}"
        images = [one for one in self.inputs if one.image is not None]
        if bool(images) != (self.applies_to is not None):
            yield "applies_to belongs to a model with an image input, and to no other"
        for tensor in self.inputs:
            fixed = tensor.shape[0]
            if isinstance(fixed, int) and (self.batch.max, self.batch.rung(1)) != (fixed, fixed):
                ladder = f" and batch.ladder [{fixed}]" if fixed > 1 else ""
                yield f"input {tensor.name} needs batch.max {fixed}{ladder}"
        for output in self.outputs:
            yield from output.problems(len(self.labels), images[0].voxel_shape if images else ())
        yield from problems_of_boxes(self.outputs, len(self.labels))
        yield from self._problems_of_maps(images)

    def _problems_of_maps(self, images: Sequence[Input]) -> Iterator[str]:
        if "label_map" in self.kinds and self.overlay is None:
            yield "a model with a label_map needs [overlay]"
        for image in images:
            yield from self._problems_of_volumes(image)

    def _problems_of_volumes(self, image: Input) -> Iterator[str]:
        if self.applies_to is None or self.applies_to.volume is None:
            return
        sides = {image.axis(letter) for letter in image.spatial}
        mask = self.output("mask")
        if image.spatial != "DHW" or len(sides) > 1 or image.image != Prepare(resize="stretch"):
            yield "applies_to.volume needs a grey image that is stretched to a cube"
        elif mask is None or mask.shape[2:] != (*sides, *sides, *sides):
            yield "applies_to.volume needs a mask in the size of the image"
        elif not self.mask_has_all_labels or self.overlay is None:
            yield (
                "applies_to.volume needs [overlay], and a score of the mask for each label, or one "
                "score and two labels, outside and inside"
            )

    @property
    def mask_has_all_labels(self) -> bool:
        """Whether the scores of its mask tell all labels apart, and a label map can hold them.

        One score tells two labels, outside and inside. Otherwise each label has one.
        """
        mask = self.output("mask")
        if mask is None:
            return False
        told = len(("outside", "inside")) if mask.shape[1] == 1 else mask.shape[1]
        return told == len(self.labels) and 1 < len(self.labels) <= MOST_LABELS

    @property
    def version_key(self) -> tuple[int, ...]:
        """Sorts versions by age."""
        return tuple(int(number) for number in self.version.split("."))

    @property
    def resource_name(self) -> str:
        """`models/{id}/versions/{version}`."""
        return f"models/{self.name}/versions/{self.version}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """What its outputs are."""
        return tuple(output.kind for output in self.outputs)

    @property
    def image_input(self) -> Input | None:
        """The input that shows it an image, if there is exactly one input."""
        only, *others = self.inputs
        return only if only.image is not None and not others else None

    def output(self, kind: str) -> Output | None:
        """The output of that kind, None if there is none."""
        return next((output for output in self.outputs if output.kind == kind), None)

    def provider(self, device: Device) -> Provider:
        """How the device runs it.

        ModelRefusedError DEVICE_UNSUPPORTED if the manifest lists devices, and not this one.
        """
        if self.providers and device not in self.providers:
            raise ModelRefusedError(
                ModelProto.PROBLEM_DEVICE_UNSUPPORTED,
                f"model.toml has no [providers.{device}], and this worker's FLUORO_ML_DEVICE is "
                f"{device}.",
            )
        return self.providers.get(device) or Provider()
