"""Pages and their tokens, the same for every list (AIP-158).

A token says where the next page begins. It is opaque, and good for the list and the filter that it
was made with. A page has a bound in rows that are looked at, so that a filter which few rows pass
makes short pages and not long calls; and one in bytes, so that it fits into an answer.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar
from uuid import UUID

from google.protobuf.message import Message
from psycopg.rows import TupleRow

from fluoro_jobs.errors import FieldViolation, FluoroError, Reason

DEFAULT_PAGE: Final = 50
MAX_PAGE: Final = 1000
LOOKED_AT: Final = 10_000
"""Rows that a page looks at, at most."""
PAGE_BYTES: Final = 2**20
"""After which a page takes nothing more."""
LONGEST_TOKEN: Final = 2048
"""Characters of a page token, and more."""

Key = Sequence[int | str]
"""Where something stands in the order of its list."""
Found = TypeVar("Found", bound=Message)


def page_size(request: Any) -> int:
    """How many the request asks for. FluoroError INVALID_ARGUMENT if that is negative."""
    if request.page_size < 0:
        raise _invalid("page_size", "Must not be negative.")
    # More than the most is no error (AIP-158): the caller gets what one page holds.
    return min(request.page_size or DEFAULT_PAGE, MAX_PAGE)


def cut(
    rows: Iterator[TupleRow], limit: int, make: Callable[[TupleRow], Found]
) -> tuple[list[Found], TupleRow | None]:
    """What is on the page, and the row with which the next one begins, if there is one.

    rows: in order, each with its place among those that were looked at as the last column.
    """
    found: list[Found] = []
    size_bytes = 0
    for row in rows:
        # The size is looked at before a row is taken, so every page has at least one, however
        # large.
        if len(found) == limit or row[-1] > LOOKED_AT or size_bytes >= PAGE_BYTES:
            return found, row
        found.append(make(row))
        size_bytes += found[-1].ByteSize()
    return found, None


def write_token(request: Message, key: Key) -> str:
    """The token of the page that begins with this key."""
    # The digest ties the token to its list and filter: with another filter, the key might lie where
    # nothing passes, and hide all before it.
    text = json.dumps([_digest(request), *key])
    return base64.urlsafe_b64encode(text.encode()).decode()


def read_token(request: Any, *kinds: type[int] | type[str]) -> Key | None:
    """The key that the request's page begins with; None for the first page.

    kinds: types of its parts. FluoroError INVALID_ARGUMENT if the token does not fit.
    """
    if not request.page_token:
        return None
    try:
        # A token is a caller's bytes. Cut off before it is decoded, it cannot cost more than a real
        # one.
        text = base64.urlsafe_b64decode(request.page_token[:LONGEST_TOKEN].encode()).decode()
        digest, *key = json.loads(text)
        # Text that UTF-8 cannot encode would fail in PostgreSQL and look like a bug.
        json.dumps(key, ensure_ascii=False).encode()
    # Deeply nested JSON raises RecursionError.
    except (ValueError, TypeError, RecursionError):
        raise _invalid("page_token", "Must be a next_page_token.") from None
    if digest != _digest(request):
        raise _invalid("page_token", "Must be the next_page_token of a call with the same filter.")
    # Exact types, because Python takes True for an int.
    if [type(part) for part in key] != list(kinds) or any("\0" in str(part) for part in key):
        raise _invalid("page_token", "Must be a next_page_token.")
    return list(key)


def uuid_of(text: int | str) -> UUID:
    """The id in a key. FluoroError INVALID_ARGUMENT if it is none."""
    try:
        return UUID(str(text))
    except ValueError:
        raise _invalid("page_token", "Must be a next_page_token.") from None


def _digest(request: Message) -> str:
    """Of the list and its filter: all of the request but the page's size and token."""
    asked = type(request)()
    asked.CopyFrom(request)
    # The size may change from page to page (AIP-158), and the token is not part of what is asked.
    for field in {"page_size", "page_token"} & set(request.DESCRIPTOR.fields_by_name):
        asked.ClearField(field)
    name = request.DESCRIPTOR.name.encode()
    return hashlib.sha256(name + asked.SerializeToString(deterministic=True)).hexdigest()[:16]


def _invalid(field: str, description: str) -> FluoroError:
    return FluoroError(
        Reason.INVALID_ARGUMENT,
        f"{field}: {description}",
        [FieldViolation(field, description)],
    )
