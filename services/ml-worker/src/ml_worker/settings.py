"""What the models need to know: environment variables `FLUORO_ML_*`."""

from pathlib import Path
from typing import Final, Literal, Self

from fluoro_jobs.worker.settings import WorkerSettings
from pydantic import DirectoryPath, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ml_worker.cpus import run_threads

SHIPPED_MODELS: Final = Path(__file__).parent / "models"
"""The models in the package: the same place in a checkout and in an installed wheel."""


class ModelWorkerSettings(WorkerSettings):
    """What every worker has, with more slots: their tasks share the runs of a model."""

    slots: int = Field(16, ge=1, le=256, description="Tasks run at once by this process.")


class ModelSettings(BaseSettings):
    """Which models this process serves, and on what."""

    model_config = SettingsConfigDict(env_prefix="FLUORO_ML_", frozen=True)

    models_folder: DirectoryPath | None = Field(
        default=None,
        description="Folder of the operator's models, `{name}/{version}/model.toml` each, beside "
        "those that ship.",
    )
    models_url: str | None = Field(
        default=None,
        pattern=r"^s3://[^/]",
        description="Prefix of a bucket, `s3://bucket/prefix`, from which the operator's models "
        "are copied: `{name}/{version}/model.toml` each. AWS_* variables say how to get there. "
        "Needs FLUORO_ML_MODELS_CACHE.",
    )
    models_cache: Path | None = Field(
        default=None,
        description="Folder on this machine that the models of FLUORO_ML_MODELS_URL are copied to. "
        "If it stays over a restart, the worker starts without the bucket.",
    )
    models_fetch_seconds: float = Field(
        default=900,
        gt=0,
        le=3600,
        description="How long the copy of one version may take.",
    )
    poll_seconds: float = Field(
        default=10,
        gt=0,
        le=3600,
        description="How often folders and bucket are looked through for new and changed models.",
    )
    device: Literal["cpu", "cuda"] = Field(
        default="cpu",
        description="What runs the models. `cuda` means CUDA or refuse to start; choose the GPU by "
        "CUDA_VISIBLE_DEVICES.",
    )
    intra_op_threads: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Threads of one run on the CPU; unset: a thread for each processor that the "
        "process may use, 16 at most. Each model has one run at a time.",
    )
    run_seconds: float = Field(
        default=300,
        gt=0,
        le=86_400,
        description="Longest time of one run. The images in it then run in smaller parts, and one "
        "that takes as long alone fails.",
    )
    gpu_reserve_bytes: int = Field(
        default=512 * 1024 * 1024,
        ge=0,
        description="Bytes of the GPU's memory that stay free. A model whose largest run leaves "
        "less is not served.",
    )
    run_memory_bytes: int = Field(
        default=512 * 1024 * 1024,
        ge=1024 * 1024,
        description="Bytes one run may need. The model sees the frames of an image in chunks of "
        "that size.",
    )

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.models_url is None) != (self.models_cache is None):
            raise ValueError(
                "FLUORO_ML_MODELS_URL and FLUORO_ML_MODELS_CACHE belong together: set both or none"
            )
        return self

    @property
    def threads(self) -> int:
        """Threads of one run on the CPU."""
        return self.intra_op_threads or run_threads()

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where models are: those that ship, then the operator's."""
        return (SHIPPED_MODELS, *filter(None, (self.models_folder, self.models_cache)))
