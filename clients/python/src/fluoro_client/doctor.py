"""What a client can see of a deployment, and what its gateway says of everything behind it."""

import ipaddress
import time
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Final

from fluoro.v1 import deployment_service_pb2
from fluoro.v1.deployment_service_pb2 import Finding

from fluoro_client.aio import AsyncClient
from fluoro_client.errors import (
    DeadlineExceededError,
    FluoroApiError,
    UnreachableError,
)
from fluoro_client.profiles import Access

WRONG_SECONDS: Final = 5.0
"""How far clocks may differ, beyond what the call took."""
RELEASE: Final = version("fluoro-client")
"""Version of this client."""

UNREACHED: Final = "gateway"
"""The check that is at fault when no gateway answers."""
OK: Final = Finding.LEVEL_OK
WARNING: Final = Finding.LEVEL_WARNING
FAULT: Final = Finding.LEVEL_FAULT


async def diagnose(client: AsyncClient, there: Access) -> AsyncIterator[Finding]:
    """Findings, as they are made. A gateway that is away or refuses is a finding too.

    The whole deployment is looked at for operators; for others, what any caller sees.
    """
    yield _encryption(there)
    started = time.time()
    try:
        found = [pipeline async for pipeline in client.pipelines()]
    except FluoroApiError as error:
        yield _refused(error, there)
        if isinstance(error, UnreachableError | DeadlineExceededError):
            return
    else:
        yield Finding(
            check="calls",
            level=OK,
            found=f"answered in {time.time() - started:.2f} s, with {len(found)} pipelines",
        )
    started = time.time()
    try:
        answer = await client.diagnose()
    except FluoroApiError as error:
        yield _not_looked_at(error)
        return
    yield _versions(answer.version)
    yield _clock(answer, started)
    for finding in answer.findings:
        yield finding


def _encryption(there: Access) -> Finding:
    if there.tls is not None:
        return Finding(check="encryption", level=OK, found="TLS")
    if there.token is None or is_here(there.endpoint):
        return Finding(check="encryption", level=OK, found="none; no token leaves this machine")
    return Finding(
        check="encryption",
        level=WARNING,
        found="none: the token travels in plain text",
        advice="Set FLUORO_TLS=1 or FLUORO_CA_FILE, or tls or ca_file in the profile, unless a "
        "mesh encrypts.",
    )


def is_here(endpoint: str) -> bool:
    """Whether an endpoint is on this machine."""
    host = endpoint.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or endpoint.startswith("unix:")


def _refused(error: FluoroApiError, there: Access) -> Finding:
    advice = "docs/identity.md, `When calls are refused`, says what to look at."
    away = isinstance(error, UnreachableError | DeadlineExceededError)
    if away:
        source = there.sources.get("endpoint", "")
        encrypted = "with TLS" if there.tls else "without TLS"
        advice = (
            f"Is it the right address ({there.endpoint} from {source}), and does a gateway listen "
            f"there {encrypted}? Where it runs, ask its /readyz, or python -m fluoro_jobs.doctor."
        )
    return Finding(
        check=UNREACHED if away else "calls", level=FAULT, found=str(error), advice=advice
    )


def _not_looked_at(error: FluoroApiError) -> Finding:
    if error.reason == "METHOD_UNKNOWN":
        return Finding(
            check="deployment",
            level=WARNING,
            found="not looked at: this gateway is of an earlier release",
            advice="Update it, or run python -m fluoro_jobs.doctor where the services run.",
        )
    if error.reason == "ROLE_MISSING":
        return Finding(
            check="deployment",
            level=OK,
            found="not looked at: that needs the role operator",
        )
    return Finding(
        check="deployment",
        level=FAULT,
        found=f"cannot be looked at: {error}",
        advice="Run python -m fluoro_jobs.doctor where the services run; it needs no gateway.",
    )


def _versions(theirs: str) -> Finding:
    if theirs.split(".")[:2] == RELEASE.split(".")[:2]:
        return Finding(check="client", level=OK, found=f"version {RELEASE}")
    return Finding(
        check="client",
        level=WARNING,
        found=f"version {RELEASE}; the gateway is {theirs}",
        advice="They work together within v1 of the API; what is newer is missing in the older.",
    )


def _clock(answer: deployment_service_pb2.DiagnoseDeploymentResponse, started: float) -> Finding:
    """The gateway wrote its time while the call ran."""
    now, theirs = time.time(), answer.time.ToNanoseconds() / 1e9
    off = max(started - theirs, theirs - now, 0.0)
    if off <= WRONG_SECONDS:
        return Finding(check="client", level=OK, found="this machine's clock agrees")
    return Finding(
        check="client",
        level=WARNING,
        found=f"this machine's clock is {off:.0f} s {'ahead' if theirs < now else 'behind'}",
        advice="Run NTP: tokens may seem to have expired, and times in lists look wrong.",
    )
