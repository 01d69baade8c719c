"""Resource names: `jobs/{uuid}`, `blobs/{uuid}` and `tokens/{uuid}`; and ids of uploads."""

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


def upload_id(text: str, field: str) -> UUID:
    """The id that a caller chose for an upload.

    FluoroError INVALID_ARGUMENT, about the request's field of that name, if it is no UUID.
    """
    found = _uuid(text)
    if found is None:
        raise invalid(field, "Must be a lower-case UUID (RFC 9562), a new one for each upload.")
    return found


def _id(name: str, collection: str, field: str) -> UUID:
    prefix, _, text = name.partition("/")
    found = _uuid(text)
    if prefix != collection or found is None:
        raise invalid(
            field,
            f"Must be {collection}/{{uuid}} with a lower-case UUID, as this service gave it out.",
        )
    return found


def _uuid(text: str) -> UUID | None:
    try:
        found = UUID(text) if len(text) == LENGTH else None
    except ValueError:
        return None
    # Upper case and braces are UUIDs to Python too; a name has one spelling.
    return found if str(found) == text else None


def invalid(field: str, description: str) -> FluoroError:
    """INVALID_ARGUMENT about one field of the request."""
    return FluoroError(
        Reason.INVALID_ARGUMENT, f"{field}: {description}", [FieldViolation(field, description)]
    )
