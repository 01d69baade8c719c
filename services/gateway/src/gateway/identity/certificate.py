"""Certificates of callers (mutual TLS): a SPIFFE ID, or the subject's common name."""

import time
from collections.abc import Iterable
from functools import lru_cache

from cryptography import x509
from fluoro_jobs.errors import FluoroError, Reason

from gateway.identity.bindings import Bindings
from gateway.identity.principal import Caller, Principal
from gateway.identity.workloads import owner_of_name, owner_of_spiffe

SPIFFE_ID = "peer_spiffe_id"
COMMON_NAME = "x509_common_name"
SHOWN = "x509_pem_cert"
"""Names of gRPC's auth_context; the last is there if the caller showed a certificate."""


class Certificate:
    """Takes certificates that the handshake verified."""

    def __init__(self, bindings: Bindings, trust_domain: str) -> None:
        """trust_domain: whose SPIFFE IDs are taken, and nothing else; "" takes common names."""
        self._bindings, self._trust_domain = bindings, trust_domain

    async def authenticate(self, caller: Caller) -> Principal | None:
        """Whom the certificate is of.

        FluoroError CERTIFICATE_UNKNOWN if it names no owner, CERTIFICATE_EXPIRED. Roles come from
        the settings alone.
        """
        found = caller.certificate()
        if SHOWN not in found:
            return None
        domain = self._trust_domain
        name = _only(found.get(SPIFFE_ID if domain else COMMON_NAME, ()))
        owner = owner_of_spiffe(name, domain) if domain else owner_of_name(name)
        if owner is None:
            wanted = (
                f"SPIFFE ID of the trust domain {domain} with a path of a-z 0-9 - _ . / that fits"
                " an owner's 63 characters"
                if domain
                else "common name of 1 to 63 of the characters a-z 0-9 - _ . @"
            )
            raise FluoroError(
                Reason.CERTIFICATE_UNKNOWN, f"The caller's certificate has no {wanted}."
            )
        # The handshake looked at it once, and the connection may be older than what is left of it.
        expires = _end_of(next(iter(found[SHOWN])))
        if time.time() > expires:
            raise FluoroError(
                Reason.CERTIFICATE_EXPIRED, "The caller's certificate has expired. Get a new one."
            )
        return Principal(owner, self._bindings.of(owner), "mtls", expires=expires)


@lru_cache(maxsize=1024)
def _end_of(certificate: bytes) -> float:
    """Of a certificate in PEM: when it ends, in seconds since 1970."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()


def _only(values: Iterable[bytes]) -> str:
    """The one value; "" for none and for several, which are nobody's name."""
    texts = [value.decode(errors="replace") for value in values]
    return texts[0] if len(texts) == 1 else ""
