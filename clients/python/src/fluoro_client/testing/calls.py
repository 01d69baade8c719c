"""What the services of the fake share: whose a call is, and how it ends."""

import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, TypeVar

import grpc
from google.protobuf.message import Message

from fluoro_client.credentials import OWNER_KEY
from fluoro_client.testing.faults import Fault, RefusalError
from fluoro_client.testing.state import Call, State

_OWNER: Final = re.compile(r"[a-z0-9_.@-]{1,63}")

Response = TypeVar("Response")
Context = grpc.ServicerContext


class Service:
    """What both services share."""

    def __init__(self, state: State) -> None:
        self._state = state

    def _enter(self, method: str, request: Message, context: Context) -> tuple[str, Fault | None]:
        """Writes the call down.

        Whose it is, and how it shall break. RefusalError if it is nobody's.
        """
        owners = [str(value) for key, value in context.invocation_metadata() if key == OWNER_KEY]
        owner = owners[0] if owners else self._state.single_owner
        with self._state.changed:
            self._state.calls.append(Call(method, "".join(owners), request))
            if faults := self._state.faults.get(method):
                return owner, faults.popleft()
        if not owner:
            raise RefusalError(
                "OWNER_MISSING",
                (
                    f"The call does not say whose it is. Send the metadata {OWNER_KEY}; `fluoro` "
                    "takes --owner."
                ),
            )
        if len(owners) > 1 or not _OWNER.fullmatch(owner):
            raise RefusalError(
                "INVALID_ARGUMENT",
                f"Metadata {OWNER_KEY} must be 1 to 63 of the characters a-z 0-9 - _ . @",
            )
        return owner, None

    def _answer(
        self, method: str, request: Message, context: Context, answer: Callable[[str], Response]
    ) -> Response:
        """A call with one answer, which is made for the owner while nothing changes."""
        try:
            owner, fault = self._enter(method, request, context)
            if fault is None:
                with self._state.changed:
                    return answer(owner)
        except RefusalError as refusal:
            fault = refusal.fault
        return fault.end(context)

    def _stream(
        self,
        method: str,
        request: Message,
        context: Context,
        tell: Callable[[str, Fault], Iterator[Response]],
    ) -> Iterator[Response]:
        """A call with many answers, which may break after some."""
        try:
            owner, fault = self._enter(method, request, context)
            context.add_callback(self._wake)
            answers = tell(owner, fault or Fault())
            if fault is None:
                yield from answers
                return
            sent = 0
            for answer in islice(answers, fault.after):
                yield answer
                sent += 1
            if sent < fault.after:
                return
        except RefusalError as refusal:
            fault = refusal.fault
        fault.end(context)

    def _wake(self) -> None:
        with self._state.changed:
            self._state.changed.notify_all()
