"""Resource names: `jobs/{uuid}`, `blobs/{uuid}` and `tokens/{uuid}`."""

from typing import Final
from uuid import UUID

from fluoro_jobs.errors import FieldViolation, FluoroError, Reason

LENGTH: Final = 36
"""Characters of a UUID (RFC 9562)."""


def job_id(name: str, field: str = "name") -> UUID:
    """The id in `jobs/{uuid}`.

    FluoroError INVALID_ARGUMENT, about the request's field of that name, if it is not one.
    """
    return _id(name, "jobs", field)


def blob_id(name: str) -> UUID:
    """The id in `blobs/{uuid}`.

    FluoroError INVALID_ARGUMENT, about field `name`, if it is not one.
    """
    return _id(name, "blobs", "name")


def token_id(name: str) -> UUID:
    """The id in `tokens/{uuid}`.

    FluoroError INVALID_ARGUMENT, about field `name`, if it is not one.
    """
    return _id(name, "tokens", "name")


def _id(name: str, collection: str, field: str) -> UUID:
    prefix, _, text = name.partition("/")
    try:
        found = UUID(text) if len(text) == LENGTH else None
    except ValueError:
        found = None
    if prefix != collection or str(found) != text:
        raise invalid(
            field,
            f"Must be {collection}/{{uuid}} with a lower-case UUID, as this service gave it out.",
        )
    assert found is not None
    return found


def invalid(field: str, description: str) -> FluoroError:
    """INVALID_ARGUMENT about one field of the request."""
    return FluoroError(
        Reason.INVALID_ARGUMENT, f"{field}: {description}", [FieldViolation(field, description)]
    )
