"""A model's folder: `model.toml` describes the model, `model.onnx` is the model.

`CARD.md` says what it is for and what not.
"""

import hashlib
import itertools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

FILES: Final = ("model.toml", "model.onnx", "CARD.md")
"""What every model's folder holds."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Color = Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]
Axis = str | int


class ModelRefusedError(Exception):
    """The worker does not start with this model or on this device; its text says what to mend."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AppliesTo(_Table):
    """Which images the model is made for. They are grey always."""

    modality: str = Field(min_length=1, description="Modality (0008,0060).")
    unit: str = Field(
        min_length=1, description="Unit of the pixels (UCUM), as in fluoro.v1.PixelCertificate."
    )


class Tensor(_Table):
    """An input or output of the graph. Its shape has names for what differs from run to run."""

    name: str = Field(min_length=1)
    dtype: Literal["float32", "float64", "uint8", "int64"]
    shape: tuple[Axis, ...]


class Outputs(_Table):
    """What the graph returns.

    A label per voxel; per frame and label, the number of voxels and the sum of their values.
    """

    label_map: Tensor
    voxels: Tensor
    sums: Tensor


class Overlay(_Table):
    """How label maps are shown over the image.

    The VOI window of the grey image, and the opacity (0 to 1) of the colours over it.
    """

    window_center: float
    window_width: float = Field(ge=1)
    opacity: float = Field(gt=0, le=1)


class Label(_Table):
    """One class.

    range: [from, to) in the pixels' unit, for models that are thresholds. color: `#rrggbb`, absent
    if it is not drawn.
    """

    value: int
    display_name: str = Field(min_length=1)
    range: tuple[float, float] | None = None
    color: Color | None = None


class Manifest(_Table):
    """model.toml. Valid once constructed."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")
    version: str = Field(pattern=r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$")
    sha256: Sha256
    summary: str = Field(min_length=1)
    working_bytes_per_voxel: int = Field(ge=1)
    applies_to: AppliesTo
    input: Tensor
    outputs: Outputs
    overlay: Overlay
    labels: tuple[Label, ...] = Field(min_length=1, max_length=256)

    @field_validator("labels")
    @classmethod
    def _labels_are_a_partition(cls, labels: tuple[Label, ...]) -> tuple[Label, ...]:
        if [label.value for label in labels] != list(range(len(labels))):
            raise ValueError("values must be 0, 1, 2 and so on, in this order")
        if len({label.display_name for label in labels}) < len(labels):
            raise ValueError("display names must differ")
        ranges = sorted(label.range for label in labels if label.range)
        if any(low >= high for low, high in ranges):
            raise ValueError("a range must begin below its end")
        if any(first[1] > second[0] for first, second in itertools.pairwise(ranges)):
            raise ValueError("ranges must not overlap")
        return labels

    @model_validator(mode="after")
    def _tensors_have_the_roles(self) -> Self:
        frames, labels = self.input.shape[:1], len(self.labels)
        if (
            len(self.input.shape) != len(("frames", "rows", "columns"))
            or self.input.dtype != "float32"
        ):
            raise ValueError("input must be float32 of shape (frames, rows, columns)")
        expected = {
            "label_map": ("uint8", self.input.shape),
            "voxels": ("int64", (*frames, labels)),
            "sums": ("float64", (*frames, labels)),
        }
        for role, (dtype, shape) in expected.items():
            tensor: Tensor = getattr(self.outputs, role)
            if (tensor.dtype, tensor.shape) != (dtype, shape):
                raise ValueError(f"outputs.{role} must be {dtype} of shape {shape}")
        return self

    @property
    def version_key(self) -> tuple[int, ...]:
        """Sorts versions by age."""
        return tuple(int(number) for number in self.version.split("."))


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A manifest and the bytes of the ONNX file it is about."""

    manifest: Manifest
    onnx: bytes


def read_model(folder: Path) -> ModelFile:
    """Reads `{name}/{version}`.

    ModelRefusedError if anything in it is missing or not as the manifest says.
    """
    where = f"Model {folder.parent.name}/{folder.name}"
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ModelRefusedError(f"{where} has no {', '.join(missing)}.")
    try:
        manifest = Manifest.model_validate(
            tomllib.loads((folder / "model.toml").read_text(encoding="utf-8"))
        )
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise ModelRefusedError(f"{where}: model.toml is not a manifest: {error}") from error
    if (folder.parent.name, folder.name) != (manifest.name, manifest.version):
        raise ModelRefusedError(
            f"{where}: model.toml calls itself {manifest.name}/{manifest.version}. "
            "The folder must have the same name."
        )
    onnx = (folder / "model.onnx").read_bytes()
    if (found := hashlib.sha256(onnx).hexdigest()) != manifest.sha256:
        raise ModelRefusedError(
            f"{where}: model.onnx has SHA-256 {found}, model.toml says {manifest.sha256}. "
            "Put the right file there."
        )
    return ModelFile(manifest, onnx)


def read_models(folder: Path) -> list[ModelFile]:
    """The newest version of every model in a folder, by name.

    ModelRefusedError if there is none, or one of any version is bad.
    """
    every = [read_model(path.parent) for path in sorted(folder.glob("*/*/model.toml"))]
    if not every:
        raise ModelRefusedError(
            "There is no model in the models folder. "
            "Set FLUORO_ML_MODELS_FOLDER to one of {name}/{version}/model.toml."
        )
    newest = {
        model.manifest.name: model
        for model in sorted(every, key=lambda model: model.manifest.version_key)
    }
    return sorted(newest.values(), key=lambda model: model.manifest.name)
