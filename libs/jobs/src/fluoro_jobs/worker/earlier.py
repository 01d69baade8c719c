"""What a task works on, and what earlier steps left: read from the ledger when an operation asks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger import attempts
from fluoro_jobs.ledger.attempts import Claim
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.operations import JOB_INPUT
from fluoro_jobs.worker.context import Input, Part, Upstream

Answer = TypeVar("Answer")


class Ask(Protocol):
    """Asks the ledger, and waits for it if it is away."""

    def __call__(self, act: Callable[[LedgerConnection], Answer]) -> Answer:
        """What `act` answers on a connection."""


class EarlierSteps:
    """`fluoro_jobs.worker.context.Earlier`, from the ledger."""

    def __init__(self, ask: Ask, claimed: Claim) -> None:
        """Reads nothing yet."""
        self._ask = ask
        self._claimed = claimed

    def results(self) -> Mapping[str, Message]:
        """By step."""
        return {step.step: step.result for step in self.upstream()}

    def upstream(self) -> Sequence[Upstream]:
        """Of the steps that the claimed one comes after."""
        rows = self._ask(lambda connection: attempts.upstream(connection, self._claimed))
        return [Upstream(*row) for row in rows]


def inputs_of(claimed: Claim, earlier: EarlierSteps) -> list[Input]:
    """The task's share of the job's inputs, or what earlier steps made of it.

    FluoroError NO_APPLICABLE_INPUT if they made nothing that the operation reads.
    """
    first, count = claimed.task.first_input, claimed.task.input_count
    reads = claimed.operation.reads if claimed.operation else ()
    if not reads:
        return []
    if JOB_INPUT in reads:
        return [
            Input(n, str(n), n, [Part(f"blobs/{claimed.inputs[n]}", JOB_INPUT, "", "", "")])
            for n in range(first, first + count)
        ]
    found: dict[int, list[Part]] = {}
    for step in earlier.upstream():
        for left in step.artifacts:
            if left.role in reads:
                part = Part(left.blob, left.role, left.name, left.media_type, step.step)
                found.setdefault(left.input, []).append(part)
    if not found:
        text = f"No step before this one leaves {' or '.join(reads)}; name one in `after`."
        raise FluoroError(Reason.NO_APPLICABLE_INPUT, text)
    return [Input(n, str(n), n, found[n]) for n in range(first, first + count) if n in found]
