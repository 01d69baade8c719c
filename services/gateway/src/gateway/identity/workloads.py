"""Owners of workloads: the same for a pod's service-account token and its mesh certificate."""

import re
from typing import Final

from gateway.identity.principal import OWNER

_ACCOUNT: Final = re.compile(r"system:serviceaccount:([a-z0-9-]+):([a-z0-9.-]+)")
_MESH_PATH: Final = re.compile(r"ns/([a-z0-9-]+)/sa/([a-z0-9.-]+)")
_OWNER: Final = re.compile(OWNER)


def owner_of(subject: str) -> str | None:
    """The owner that a subject stands for; None if it cannot be one.

    A Kubernetes service account is NAMESPACE.NAME: a namespace has no dot, so no two of them meet.
    Upper case is refused and not folded: two subjects of an issuer may differ in nothing else.
    """
    account = _ACCOUNT.fullmatch(subject)
    owner = f"{account[1]}.{account[2]}" if account else subject
    return owner if _OWNER.fullmatch(owner) else None


def owner_of_spiffe(spiffe_id: str, trust_domain: str) -> str | None:
    """The owner that a SPIFFE ID of the trust domain stands for; None for others.

    `/ns/NAMESPACE/sa/NAME`, as meshes write it, is NAMESPACE.NAME. Another path is its parts with
    dots between; one that has dots itself is refused, or two paths could be one owner.
    """
    prefix = f"spiffe://{trust_domain}/"
    if not trust_domain or not spiffe_id.startswith(prefix):
        return None
    path = spiffe_id.removeprefix(prefix)
    if account := _MESH_PATH.fullmatch(path):
        return owner_of(f"{account[1]}.{account[2]}")
    return None if "." in path else owner_of(path.replace("/", "."))
