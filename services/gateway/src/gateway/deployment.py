"""DeploymentService: tells operators how the gateway and all behind it are set up."""

import asyncio
from collections.abc import Iterator
from typing import Final

from fluoro.v1 import deployment_service_pb2
from fluoro.v1.deployment_service_pb2 import DiagnoseDeploymentRequest, DiagnoseDeploymentResponse
from fluoro_blobs import BlobStore
from fluoro_jobs import doctor
from fluoro_jobs.doctor.findings import Finding, ok, warning

from gateway.rpc import Call
from gateway.settings import Settings

_LEVELS: Final = deployment_service_pb2.Finding.Level


class Deployment:
    """The methods of fluoro.v1.DeploymentService."""

    def __init__(self, store: BlobStore, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._looking: asyncio.Task[list[Finding]] | None = None

    async def diagnose_deployment(
        self, _request: DiagnoseDeploymentRequest, _call: Call
    ) -> DiagnoseDeploymentResponse:
        """Looks at everything anew, or tells what a look that is under way finds."""
        stores = await self._look()
        answer = DiagnoseDeploymentResponse(
            findings=map(_message, [*of_settings(self._settings), *stores]), version=doctor.RELEASE
        )
        answer.time.GetCurrentTime()
        return answer

    async def _look(self) -> list[Finding]:
        """Looks once for all who wait; a caller who goes ends none.

        The thread of a look that was cancelled would go on, beside that of the next.
        """
        if self._looking is None:
            self._looking = asyncio.create_task(
                asyncio.to_thread(
                    doctor.diagnose,
                    self._settings.database_url,
                    self._settings.redis_url,
                    lambda: self._store,
                )
            )
            self._looking.add_done_callback(self._looked)
        return await asyncio.shield(self._looking)

    def _looked(self, _: asyncio.Task[list[Finding]]) -> None:
        self._looking = None


def of_settings(settings: Settings) -> Iterator[Finding]:
    """What the gateway's own settings do to each other."""
    yield ok("gateway", f"version {doctor.RELEASE}")
    grace, submit = settings.shutdown_grace_seconds, settings.submit_timeout_seconds
    found = f"a shutdown leaves {grace:g} s, a submit may take {submit:g} s"
    if grace > submit:
        yield ok("grace", found)
    else:
        yield warning(
            "grace",
            found,
            "Submits in flight are cut off: FLUORO_SHUTDOWN_GRACE_SECONDS must be longer than "
            "FLUORO_SUBMIT_TIMEOUT_SECONDS, and shorter than the grace period of the pod.",
        )
    statement = settings.ledger_statement_seconds
    if statement > submit:
        yield warning(
            "budgets",
            f"a statement may take {statement:g} s, a submit {submit:g} s",
            "A ledger that stalls is noticed too late: lower FLUORO_LEDGER_STATEMENT_SECONDS.",
        )
    encrypted = bool(settings.tls_certificate_file)
    # Callers of these two prove nothing, so there is no secret on the wire.
    if encrypted or settings.identity in {"none", "trusted-metadata"}:
        yield ok("identity", f"{settings.identity}, {'TLS' if encrypted else 'not encrypted'}")
    else:
        yield warning(
            "identity",
            f"{settings.identity}, and this gateway does not encrypt",
            "Fine behind a proxy or mesh that encrypts. Otherwise tokens travel in plain text: "
            "set FLUORO_TLS_CERTIFICATE_FILE and FLUORO_TLS_KEY_FILE.",
        )


def _message(finding: Finding) -> deployment_service_pb2.Finding:
    return deployment_service_pb2.Finding(
        check=finding.check,
        level=_LEVELS.Value(f"LEVEL_{finding.level}"),
        found=finding.found,
        advice=finding.advice,
    )
