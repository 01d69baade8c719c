"""Owners of workloads: the same for a pod's service-account token and its mesh certificate."""

import re
from collections.abc import Mapping
from typing import Any, Final

from fluoro_jobs.ids import OWNER

KUBERNETES: Final = "kubernetes.io"
"""The claim of a service account's token that says whose it is."""

_ACCOUNT: Final = re.compile(r"system:serviceaccount:([a-z0-9-]+):([a-z0-9.-]+)")
_MESH_PATH: Final = re.compile(r"ns/([a-z0-9-]+)/sa/([a-z0-9.-]+)")
_OWNER: Final = re.compile(OWNER)


def owner_of_name(name: str) -> str | None:
    """The name, if it can be an owner; None otherwise.

    Upper case is refused and not folded: two names may differ in nothing else.
    """
    return name if _OWNER.fullmatch(name) else None


def owner_of(subject: str, claims: Mapping[str, Any]) -> str | None:
    """The owner that the subject of a token stands for; None if it cannot be one.

    A Kubernetes service account is NAMESPACE.NAME: a namespace has no dot, so no two of them meet.
    claims: of the token. Kubernetes says there, too, which account it is. An issuer of people who
    may call themselves `system:serviceaccount:a:b` does not, and they are not the owner `a.b`.
    """
    account = _ACCOUNT.fullmatch(subject)
    if account is None:
        return owner_of_name(subject)
    match claims.get(KUBERNETES):
        case {"namespace": namespace, "serviceaccount": {"name": name}}:
            said = (namespace, name)
            return owner_of_name(f"{namespace}.{name}") if said == account.groups() else None
    return None


def owner_of_spiffe(spiffe_id: str, trust_domain: str) -> str | None:
    """The owner that a SPIFFE ID of the trust domain stands for; None for others.

    `/ns/NAMESPACE/sa/NAME`, as meshes write it, is NAMESPACE.NAME. Another path has `@` for each
    slash, so it begins with one, as no NAMESPACE does. One that has `@` itself is refused: no two
    paths are one owner.
    """
    prefix = f"spiffe://{trust_domain}/"
    if not trust_domain or not spiffe_id.startswith(prefix):
        return None
    path = spiffe_id.removeprefix(prefix)
    if account := _MESH_PATH.fullmatch(path):
        return owner_of_name(f"{account[1]}.{account[2]}")
    return owner_of_name(f"@{path.replace('/', '@')}") if path and "@" not in path else None
