"""Bearer JWTs (RFC 7519, RFC 6750): of an OpenID Connect issuer, or of Kubernetes itself."""

import hashlib
import time
from collections import OrderedDict
from typing import Any, Final

import jwt
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger.tokens import PREFIX

from gateway.identity.bindings import Bindings
from gateway.identity.key_set import KeySet
from gateway.identity.principal import Caller, Principal, Role
from gateway.identity.workloads import owner_of

LEEWAY_SECONDS: Final = 10
"""How far the issuer's clock may be from this one."""

REMEMBERED: Final = 10_000
"""Tokens whose signatures need no second look. One takes about 1 KiB."""


def bearer(caller: Caller) -> str | None:
    """The token that a call carries; None without one. FluoroError if it carries two."""
    value = caller.one("authorization")
    # Metadata comes as bytes only under keys that end in -bin.
    if not isinstance(value, str):
        return None
    scheme, _, token = value.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def invalid(why: str) -> FluoroError:
    """What every token that is no good gets to hear. why: never a part of the token."""
    return FluoroError(Reason.TOKEN_INVALID, f"The token is not accepted: {why}.")


def expired() -> FluoroError:
    """What a token gets to hear that was good once."""
    return FluoroError(Reason.TOKEN_EXPIRED, "The token has expired. Get a new one.")


class JwtBearer:
    """Takes tokens that one issuer signed for one audience."""

    def __init__(
        self,
        keys: KeySet,
        bindings: Bindings,
        *,
        issuer: str,
        audience: str,
        owner_claim: str,
        roles_claim: str,
    ) -> None:
        """owner_claim: name of the claim that is the owner. roles_claim: that has roles.

        Either may be a path with dots: `realm_access.roles`.
        """
        self._keys, self._bindings = keys, bindings
        self._issuer, self._audience = issuer, audience
        self._owner_claim, self._roles_claim = owner_claim, roles_claim
        self._known: OrderedDict[bytes, Principal] = OrderedDict()
        self._version = keys.version

    async def authenticate(self, caller: Caller) -> Principal | None:
        """Whom the token is of.

        FluoroError TOKEN_INVALID or TOKEN_EXPIRED; IDENTITY_UNAVAILABLE while the issuer's keys are
        not known.
        """
        token = bearer(caller)
        # Service tokens have a prefix of their own and belong to another source.
        if token is None or token.startswith(PREFIX):
            return None
        if self._version != self._keys.version:
            # A key may be gone because it was stolen: what it signed is looked at again.
            self._known.clear()
            self._version = self._keys.version
        # Cached by hash, so that the cache is not a list of valid tokens.
        digest = hashlib.sha256(token.encode()).digest()
        if (principal := self._known.get(digest)) is None:
            principal = self._known[digest] = self._principal(self._claims(token))
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(digest)
        # Checked on every call: the cache remembers the signature, not the time.
        if principal.expires is not None and time.time() > principal.expires:
            raise expired()
        return principal

    def _claims(self, token: str) -> dict[str, Any]:
        try:
            # Unverified, as it only chooses the key; the signature is checked with that.
            key_id = jwt.get_unverified_header(token).get("kid")
        except jwt.PyJWTError:
            raise invalid("it is not a JWT") from None
        key = self._keys.key(key_id)
        # The issuer may have signed it with a key that is newer than our list.
        if key is None:
            raise self._unknown_key()
        try:
            return jwt.decode(
                token,
                key,
                # The key's own, whatever the token says.
                algorithms=[key.algorithm_name],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise expired() from None
        except jwt.PyJWTError as error:
            raise invalid(_WHY.get(type(error), "its signature or form is wrong")) from None

    def _unknown_key(self) -> FluoroError:
        # Right after a fetch, a missing key does not exist. Before that, the token may be good, so
        # the caller should retry.
        if self._keys.is_fresh():
            return invalid("no key of the issuer signed it")
        return FluoroError(
            Reason.IDENTITY_UNAVAILABLE, "The issuer's keys are being fetched. Try again."
        )

    def _principal(self, claims: dict[str, Any]) -> Principal:
        subject = _claim(claims, self._owner_claim)
        owner = owner_of(subject, claims) if isinstance(subject, str) else None
        if owner is None:
            raise invalid(
                f"its claim {self._owner_claim} is not 1 to 63 of the characters a-z 0-9 - _ . @"
            )
        brought = _claim(claims, self._roles_claim)
        # Issuers write roles as a list, or as one string with spaces.
        names = brought.split() if isinstance(brought, str) else brought
        own = [role for role in Role if isinstance(names, list) and role.value in names]
        try:
            expires = float(claims["exp"]) + LEEWAY_SECONDS
        except OverflowError:
            raise invalid("its claim exp is no time that comes") from None
        return Principal(owner, self._bindings.of(owner, own), "jwt", expires=expires)


_WHY: Final[dict[type[jwt.PyJWTError], str]] = {
    jwt.InvalidAudienceError: "it is for another audience",
    jwt.InvalidIssuerError: "it is of another issuer",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.MissingRequiredClaimError: "it lacks one of the claims exp, iss and aud",
    jwt.InvalidAlgorithmError: "it is signed in another way than the issuer's key is for",
}
"""What to tell: PyJWT's own texts may quote the token."""


def _claim(claims: dict[str, Any], path: str) -> Any:
    """The claim of that name, or of that path through objects."""
    # The whole name first: some issuers name claims by URLs, which have dots in them.
    if path in claims:
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found
