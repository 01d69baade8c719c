"""Which DICOMweb servers there are: environment variables `FLUORO_DICOMWEB_*`."""

import base64
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.outbound import Outbound
from pydantic import DirectoryPath, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from dicom_worker.limits import MIB

NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
MAX_CREDENTIALS_BYTES: Final = 8 * 1024
"""Of a file. A longer one is something else, mounted by mistake."""
CREDENTIALS: Final = re.compile(r"(Basic|Bearer) ([!-~]+(?: [!-~]+)*)")


class DicomwebSettings(BaseSettings):
    """Servers by name: jobs name no URL."""

    model_config = SettingsConfigDict(env_prefix="FLUORO_DICOMWEB_", frozen=True)

    sources: str = Field(
        default="",
        description="DICOMweb servers that jobs may fetch from, by the name that jobs have for "
        "them: main=https://pacs.example.org/dicom-web, with commas between them.",
    )
    destinations: str = Field(
        default="", description="DICOMweb servers that jobs may store on, in the same form."
    )
    networks: str = Field(
        default="",
        description="Networks that names of those servers may lead to though they are not public: "
        "10.1.0.0/16, with commas between them.",
    )
    credentials_folder: DirectoryPath | None = Field(
        default=None,
        description="Folder with a file for each server that wants credentials, named as the "
        "server: `Bearer TOKEN` or `Basic USER:PASSWORD`. A mounted Kubernetes Secret is such a "
        "folder.",
    )
    answer_seconds: float = Field(
        default=60,
        gt=0,
        le=3600,
        description="How long a server may take to begin an answer, and for each 256 KiB after "
        "that or of a request; then PACS_UNAVAILABLE.",
    )
    max_instance_bytes: int = Field(
        default=4 * 1024 * MIB,
        gt=0,
        description="Largest instance that is fetched; above it, BLOB_TOO_LARGE.",
    )
    batch_bytes: int = Field(
        default=64 * MIB,
        gt=0,
        description="Most bytes of instances in one request to store, unless one is larger.",
    )

    @field_validator("sources", "destinations")
    @classmethod
    def _can_be_read(cls, value: str) -> str:
        listed(value)
        return value

    @field_validator("networks")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        Outbound([], _split(value))
        return value

    def outbound(self) -> Outbound:
        """The way to these servers, and to no others."""
        urls = [*listed(self.sources).values(), *listed(self.destinations).values()]
        return Outbound([origin(url) for url in urls], _split(self.networks))

    def authorization(self, server: str) -> str:
        """What to send in the header Authorization; "" for a server that has no file.

        Read anew each time: new credentials need no restart. FluoroError PACS_NOT_ALLOWED if the
        file cannot be used.
        """
        if self.credentials_folder is None:
            return ""
        try:
            with (self.credentials_folder / server).open("rb") as file:
                # One byte more than allowed tells a longer file, of any size.
                text = file.read(MAX_CREDENTIALS_BYTES + 1).decode().strip()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError):
            text = ""
        found = CREDENTIALS.fullmatch(text) if len(text) <= MAX_CREDENTIALS_BYTES else None
        if found is None or (found[1] == "Basic" and ":" not in found[2]):
            raise FluoroError(
                Reason.PACS_NOT_ALLOWED,
                f"The file {server} in FLUORO_DICOMWEB_CREDENTIALS_FOLDER cannot be used: it must "
                "be `Bearer TOKEN` or `Basic USER:PASSWORD`.",
            )
        secret = base64.b64encode(found[2].encode()).decode() if found[1] == "Basic" else found[2]
        return f"{found[1]} {secret}"


def url_of(servers: str, name: str, variable: str) -> str:
    """The base URL of a server. FluoroError PACS_NOT_ALLOWED if it is not listed."""
    url = listed(servers).get(name)
    if url is None:
        raise FluoroError(
            Reason.PACS_NOT_ALLOWED, f"There is no server `{name}` in {variable}. Take one that is."
        )
    return url


def listed(text: str) -> Mapping[str, str]:
    """Names and base URLs, without a slash at their end. ValueError, which names the bad one."""
    servers: dict[str, str] = {}
    for each in _split(text):
        name, _, url = each.partition("=")
        if not NAME.fullmatch(name) or name in servers:
            raise ValueError(f"{each} is not name=https://host/path with a name of its own")
        parts = urlsplit(url)
        if parts.query or parts.fragment or not all(map(str.isprintable, parts.path)):
            raise ValueError(f"{url} has more than scheme, host and path")
        Outbound([origin(url)])
        servers[name] = url.rstrip("/")
    return servers


def origin(url: str) -> str:
    """Scheme, host and port of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _split(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]
