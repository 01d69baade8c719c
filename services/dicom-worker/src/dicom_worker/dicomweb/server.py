"""One DICOMweb server: requests over a connection that is kept, and what their answers mean."""

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.outbound import Answer, Line, Outbound, Target, may_pass

from dicom_worker.dicomweb.multipart import PIECE_BYTES, invalid, media_type
from dicom_worker.dicomweb.settings import DicomwebSettings
from dicom_worker.limits import MIB

JSON_LIMIT_BYTES: Final = 8 * MIB
"""One answer in JSON. Parsed, it takes some twenty times as much memory."""
JSON_TYPES: Final = ("application/dicom+json", "application/json")
NOT_THERE: Final = frozenset((HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND, HTTPStatus.GONE))
"""Statuses that say that there is nothing."""
TRANSLATED: Final = {
    Reason.SOURCE_NOT_ALLOWED: Reason.PACS_NOT_ALLOWED,
    Reason.SOURCE_UNAVAILABLE: Reason.PACS_UNAVAILABLE,
}
"""Reasons of the way out, and ours."""


Check = Callable[[], None]


class Server:
    """A server. Close it at the end.

    name: what jobs call it. Nothing here tells of URLs, which hold UIDs.
    """

    def __init__(
        self, name: str, url: str, settings: DicomwebSettings, out: Outbound, check: Check
    ) -> None:
        """url: the base of its resources. check: called while bytes come; stops by raising."""
        self.name = name
        self.check = check
        self._url, self._settings, self._out = url, settings, out
        self._authorization = settings.authorization(name)
        self._line: Line | None = None

    def get(self, path: str, *accept: str) -> Answer:
        """The answer to a GET, of status 200 or one that says that there is nothing.

        accept: what will do, the best first; the next one for a server that cannot give that.
        FluoroError PACS_UNAVAILABLE, PACS_REFUSED, PACS_NOT_ALLOWED.
        """
        for kind in accept:
            answer = self.ask("GET", path, {"Accept": kind})
            if answer.status != HTTPStatus.NOT_ACCEPTABLE:
                break
        if answer.status != HTTPStatus.OK and answer.status not in NOT_THERE:
            self.close()
            raise refusal(answer.status)
        return answer

    def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Iterable[bytes] = (),
        tells: Collection[int] = (),
    ) -> Answer:
        """The answer to a request, of whatever status but those after which another try may help.

        tells: statuses of the latter that are answers here. FluoroError PACS_UNAVAILABLE,
        PACS_NOT_ALLOWED, PACS_ANSWER_INVALID.
        """
        self.check()
        if self._authorization:
            headers = {**headers, "Authorization": self._authorization}
        kept, began = self._line, time.monotonic()
        try:
            target = self._out.target(self._url + path)
            answer = self._connected(target).ask(method, target.path, headers, body)
        except FluoroError as error:
            was_kept = self._line is not None and self._line is kept
            in_time = time.monotonic() - began < self._settings.answer_seconds
            self.close()
            # A new connection that ends at once is a refusal. A POST may have been carried out, so
            # only a GET is asked again.
            ended = was_kept and in_time and isinstance(error.__cause__, ConnectionError)
            if ended and method == "GET":
                # The server may have ended it while the request was on its way (RFC 9112, 9.3.1).
                return self.ask(method, path, headers, body, tells)
            raise self._ours(error) from error
        if may_pass(answer.status) and answer.status not in tells:
            self.close()
            raise unavailable(f"it answered {answer.status}")
        # Limits count the bytes that come. Unpacked, they may be a thousand times as many.
        if answer.header("Content-Encoding").lower() not in {"", "identity"}:
            self.close()
            raise invalid("it is compressed, which it was not asked for")
        return answer

    def read(self, answer: Answer, most_bytes: int) -> bytes:
        """The next bytes of an answer; none at its end. FluoroError PACS_UNAVAILABLE."""
        self.check()
        try:
            return answer.read(most_bytes)
        except FluoroError as error:
            self.close()
            raise self._ours(error) from error

    def json(self, answer: Answer, over: FluoroError) -> Any:
        """What an answer holds as JSON; None if it is empty. Ends the answer.

        FluoroError PACS_ANSWER_INVALID, or `over` if it is too large.
        """
        data = bytearray()
        while piece := self.read(answer, PIECE_BYTES):
            data += piece
            if len(data) > JSON_LIMIT_BYTES:
                self.close()
                raise over
        if not data.strip():
            return None
        if media_type(answer.header("Content-Type"))[0] not in JSON_TYPES:
            raise invalid("it is not JSON")
        try:
            return json.loads(data)
        # json recurses, so nothing but brackets can exhaust the stack.
        except (ValueError, RecursionError) as error:
            raise invalid("it is no JSON that can be read") from error

    def _connected(self, target: Target) -> Line:
        if self._line is None or not self._line.is_usable:
            self.close()
            seconds = self._settings.answer_seconds
            self._line = Line(target, self._out.connect(target, seconds), seconds)
        return self._line

    def _ours(self, error: FluoroError) -> FluoroError:
        reason = TRANSLATED.get(error.reason, error.reason)
        if reason is Reason.PACS_NOT_ALLOWED:
            text = "The name of the server leads to an address that may not be reached."
            return FluoroError(reason, f"{text} Its operator has FLUORO_DICOMWEB_NETWORKS.")
        return FluoroError(reason, f"Server `{self.name}`: {error.message}")

    def close(self) -> None:
        """Ends the connection. Another request makes a new one."""
        if self._line is not None:
            # The other side may have closed it first.
            with suppress(OSError):
                self._line.close()
        self._line = None


def unavailable(what: str) -> FluoroError:
    """The server cannot do it now. what: a clause."""
    return FluoroError(Reason.PACS_UNAVAILABLE, f"The server cannot be used: {what}.")


def refusal(status: int) -> FluoroError:
    """The server does not do it."""
    return FluoroError(
        Reason.PACS_REFUSED,
        f"The server answered {status}. Redirects are not followed; the worker's account there "
        "may lack a right.",
    )
