"""Whether and where the models are served to callers who bring tensors."""

import ipaddress
from pathlib import Path
from typing import Final, Self

from pydantic import Field, FilePath, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX: Final = "FLUORO_ML_INFERENCE_"


class InferenceSettings(BaseSettings):
    """Read once at start. Without an address nothing is served."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    address: str | None = Field(
        default=None,
        pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):\d{1,5}$",
        description="Where the Open Inference Protocol is served over gRPC: 127.0.0.1:8001. Unset: "
        "nowhere. Beyond loopback it needs the three files below. Port 0 takes a free one.",
    )
    tls_certificate_file: FilePath | None = Field(
        default=None, description="Certificate of this server, PEM. Read at the start."
    )
    tls_key_file: FilePath | None = Field(
        default=None, description="Key of the certificate, PEM, no password."
    )
    tls_client_ca_file: FilePath | None = Field(
        default=None,
        description="Authorities of callers, PEM. Every caller needs a certificate of one.",
    )
    max_message_bytes: int = Field(
        default=32 * 2**20, ge=1024, le=2**31 - 1, description="Largest request."
    )
    calls: int = Field(
        default=16,
        ge=1,
        le=256,
        description="Calls at a time; more are refused with RESOURCE_EXHAUSTED.",
    )
    call_seconds: float = Field(
        default=60,
        gt=0,
        le=86_400,
        description="Longest time of a call. Its own deadline may end it earlier.",
    )

    @property
    def tls_files(self) -> tuple[Path, Path, Path] | None:
        """Certificate, key and authorities of callers, if they are given."""
        certificate, key, authorities = (
            self.tls_certificate_file,
            self.tls_key_file,
            self.tls_client_ca_file,
        )
        if certificate is None or key is None or authorities is None:
            return None
        return certificate, key, authorities

    @model_validator(mode="after")
    def _nobody_unknown_comes_in(self) -> Self:
        files = (self.tls_certificate_file, self.tls_key_file, self.tls_client_ca_file)
        if any(files) and not all(files):
            raise ValueError(f"{PREFIX}TLS_… belong together: certificate, key and client CA")
        if any(files) and self.address is None:
            raise ValueError(f"{PREFIX}TLS_… need {PREFIX}ADDRESS")
        # Without TLS nobody knows who calls, or who reads along.
        if self.address and not any(files) and not _is_loopback(self.address):
            raise ValueError(
                f"without TLS everyone who reaches {PREFIX}ADDRESS runs models. Set it to "
                f"127.0.0.1:PORT, or give the files {PREFIX}TLS_…"
            )
        return self


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0]
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
