"""From a URL to a store: a folder, memory or an S3 bucket."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from obstore.exceptions import UnknownConfigurationKeyError
from obstore.store import LocalStore, MemoryStore, ObjectStore, S3Store

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_CONNECT_SECONDS: Final = 5

_RETRIES: Final = 5


def open_store(
    url: str, request_seconds: float, options: dict[str, Any]
) -> tuple[ObjectStore, Path | None]:
    """The store behind a URL, and its folder if it is one.

    Creates the folder; looks at nothing else.

    request_seconds: for one request to S3; tries stop after the same time once more.

    ValueError for a URL of another form, or with options that its kind of store does not take.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3" and parts.netloc:
        return _bucket(parts.netloc, unquote(parts.path).strip("/"), request_seconds, options), None
    if options:
        # An option that would be ignored is an error: somebody believes that it holds.
        raise ValueError(f"{parts.scheme}:// takes no options, got {', '.join(sorted(options))}")
    if parts.scheme == "memory" and not parts.netloc + parts.path.strip("/"):
        return MemoryStore(), None
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        folder = Path(unquote(parts.path))
        folder.mkdir(parents=True, exist_ok=True)
        return LocalStore(folder), folder
    raise ValueError("a blob store's URL is file:///path, memory:// or s3://bucket/prefix")


def _bucket(
    bucket: str, prefix: str, request_seconds: float, options: dict[str, Any]
) -> ObjectStore:
    # A request carries one part or one range, never a whole blob, so a slow reader cannot run into
    # its limit.
    limit = timedelta(seconds=request_seconds)
    client: ClientConfig = {
        "connect_timeout": min(limit, timedelta(seconds=_CONNECT_SECONDS)),
        "timeout": limit,
    }
    # obstore's own default keeps trying for 3 minutes; a caller of Fluoro gets UNAVAILABLE sooner
    # and tries again itself.
    retry: RetryConfig = {"max_retries": _RETRIES, "retry_timeout": limit}
    # obstore reads the other AWS_* variables itself, but not this one.
    # An option of the client: S3Store would refuse it among its own.
    if options.pop("allow_http", os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"):
        client["allow_http"] = True
    try:
        return S3Store(
            bucket, prefix=prefix or None, client_options=client, retry_config=retry, **options
        )
    except UnknownConfigurationKeyError as error:
        raise ValueError(
            f"no such option of an S3 store among {', '.join(sorted(options))}"
        ) from error
