"""What de-identification needs to know: environment variables `FLUORO_DEIDENTIFY_*`."""

from pydantic import DirectoryPath, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class DeidentifySettings(BaseSettings):
    """Where the secrets are."""

    model_config = SettingsConfigDict(env_prefix="FLUORO_DEIDENTIFY_", frozen=True)

    keys_folder: DirectoryPath | None = Field(
        default=None,
        description="Folder with a file for each project, named as the project: its key, at least "
        "32 bytes. A mounted Kubernetes Secret is such a folder. Unset: nothing can be "
        "de-identified.",
    )
