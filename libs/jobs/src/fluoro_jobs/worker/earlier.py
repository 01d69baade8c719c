"""What a task works on, and what earlier steps left: read when an operation asks for it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

from fluoro_blobs import BlobStore
from google.protobuf.message import Message

from fluoro_jobs.ledger import attempts
from fluoro_jobs.ledger.attempts import Claim
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.origins import Origins
from fluoro_jobs.ledger.planning import StepInput
from fluoro_jobs.worker.context import Input, Part, Upstream
from fluoro_jobs.worker.results import LargeResults, joined

Answer = TypeVar("Answer")

_LARGE: Final = LargeResults()
"""Of this process, for all its tasks."""


class Ask(Protocol):
    """Asks the ledger, and waits for it if it is away."""

    def __call__(self, act: Callable[[LedgerConnection], Answer]) -> Answer:
        """What `act` answers on a connection."""


class EarlierSteps:
    """`fluoro_jobs.worker.context.Earlier`, from the ledger."""

    def __init__(self, ask: Ask, blobs: BlobStore, claimed: Claim) -> None:
        """Reads nothing yet."""
        self._ask = ask
        self._blobs = blobs
        self._claimed = claimed

    def results(self) -> Mapping[str, Message]:
        """By step."""
        found = self._ask(lambda connection: attempts.results(connection, self._claimed))
        keys = {one.key for one in self._claimed.inputs}
        return {one.step: _LARGE.about(self._blobs, one, keys) for one in found}

    def upstream(self) -> Sequence[Upstream]:
        """Of the steps that the claimed one comes after."""
        rows = self._ask(lambda connection: attempts.upstream(connection, self._claimed))
        return [
            Upstream(stored.step, joined(self._blobs, stored), items, artifacts)
            for stored, items, artifacts in rows
        ]

    def origins(self) -> Origins:
        """Of the job, and of the steps that the claimed one comes after."""
        return self._ask(lambda connection: attempts.origins(connection, self._claimed))


def inputs_of(found: Iterable[StepInput], steps: Sequence[str]) -> list[Input]:
    """What a task works on, as its operation sees it. steps: names, by ordinal."""
    return [
        Input(
            one.number,
            one.key,
            one.input,
            [
                Part(
                    f"blobs/{part.blob}",
                    part.role,
                    part.name,
                    part.media_type,
                    "" if part.step is None else steps[part.step],
                )
                for part in one.parts
            ],
        )
        for one in found
    ]
