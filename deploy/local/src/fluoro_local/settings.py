"""The ports of `up`, from environment variables."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from fluoro_local.services import FIRST_HTTP_PORT, GRPC_PORT

Port = Annotated[int, Field(ge=1, le=65535)]


class LocalSettings(BaseSettings):
    """Where `up` listens, always on 127.0.0.1."""

    model_config = SettingsConfigDict(env_prefix="FLUORO_")

    grpc_port: Port = Field(default=GRPC_PORT, description="Port of the gateway.")
    http_port: Port = Field(
        default=FIRST_HTTP_PORT,
        description="Port of health and metrics of the first service; the others follow.",
    )
