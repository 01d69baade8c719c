"""What reports need to know: environment variables `FLUORO_REPORT_*`."""

from pydantic import DirectoryPath, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ReportSettings(BaseSettings):
    """How an organization's reports look."""

    model_config = SettingsConfigDict(env_prefix="FLUORO_REPORT_", frozen=True)

    folder: DirectoryPath | None = Field(
        default=None,
        description="Folder with how an organization's reports look: `style.toml`, `logo.png` or "
        "`logo.jpg`, and its own templates, `*.typ`. See docs/exports.md.",
    )
