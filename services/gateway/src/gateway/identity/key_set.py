"""The keys of a token issuer: fetched in the background, and kept while the issuer is away."""

import asyncio
import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import jwt
import structlog

from gateway.identity.fetching import FetchError

log = structlog.get_logger(__name__)

ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"})
"""Signatures that are taken: by a private key alone, never by a secret that a public key may be."""

AGAIN_SECONDS: Final = 5
"""Least time between two fetches: after one failed, and because of a key that is not known."""


class KeySet:
    """Public keys by their id."""

    def __init__(self, fetch: Callable[[], bytes], refresh_seconds: float) -> None:
        """fetch: the JWKS (RFC 7517), in a thread; FetchError if it does not come in time."""
        self._fetch, self._refresh_seconds = fetch, refresh_seconds
        self._keys: dict[str, jwt.PyJWK] = {}
        self._text = b""
        self._fetched: float | None = None
        self._is_up_to_date = False
        self._wanted = asyncio.Event()
        self.version = 0
        """Counts changes of the keys."""

    def key(self, key_id: str | None) -> jwt.PyJWK | None:
        """The key of this id; the only one there is for a token that names none."""
        if key_id is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(key_id)

    def is_fresh(self) -> bool:
        """Whether a key that is not here does not exist. If not, they are fetched again."""
        # A caller who sends made-up key ids must not make this gateway hammer the issuer.
        if self._fetched is not None and time.monotonic() - self._fetched < AGAIN_SECONDS:
            return True
        self._wanted.set()
        return False

    async def run(self) -> None:
        """Keeps them fresh until cancelled. What it has, it keeps when the issuer fails."""
        while True:
            await asyncio.sleep(AGAIN_SECONDS * random.uniform(0.8, 1))  # noqa: S311 - spreads load, guards nothing
            if self._is_up_to_date:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._refresh_seconds):
                        await self._wanted.wait()
            self._wanted.clear()
            await self.refresh()

    async def refresh(self) -> bool:
        """Fetches them now. False if that failed."""
        self._is_up_to_date = False
        try:
            text = await asyncio.to_thread(self._fetch)
            keys = _keys(text)
        except FetchError as error:
            log.warning("issuer_keys_not_fetched", why=str(error), kept=len(self._keys))
            return False
        self._fetched, self._is_up_to_date = time.monotonic(), True
        # Compared by bytes, so that an unchanged list keeps the cached tokens.
        if text != self._text:
            log.info("issuer_keys_changed", keys=len(keys))
            self._keys, self._text, self.version = keys, text, self.version + 1
        return True


def _keys(text: bytes) -> dict[str, jwt.PyJWK]:
    """Those that can be used, by id."""
    try:
        entries: list[dict[str, Any]] = json.loads(text)["keys"]
        keys = {str(entry.get("kid", "")): _key(entry) for entry in entries}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FetchError("what came is not a JWKS") from error
    return {id_: key for id_, key in keys.items() if key is not None}


def _key(entry: dict[str, Any]) -> jwt.PyJWK | None:
    """None for a key of another purpose or kind: an issuer may have more of them."""
    # A key for encryption signs nothing, and a symmetric one would be a secret in a public list.
    if entry.get("use", "sig") != "sig" or entry.get("kty") == "oct":
        return None
    try:
        key = jwt.PyJWK(entry)
    except jwt.PyJWTError:
        return None
    return key if key.algorithm_name in ALGORITHMS else None
