"""Collects bytes that no record names.

They come from attempts that were fenced off, and from uploads that broke before their record.
Bytes of uploads that may go on have a row instead; once nobody goes on with one, both go.
Its cost is bounded: one page of names at an interval, in a thread of its own, and one statement on
an index for each page. Several gateways collect side by side without harm, each from a folder of
its own choice; deleting twice is deleting.
"""

import random
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Final
from uuid import UUID

import structlog
from fluoro_blobs import FOLDERS, BlobStore, FoundBlob
from fluoro_jobs.ledger import blobs as records
from fluoro_jobs.ledger import uploads
from fluoro_jobs.ledger.connection import Ledger
from fluoro_telemetry import metrics

from gateway.settings import Settings

MAX_REMEMBERED: Final = 100_000
"""Names without a record that a gateway remembers, some 20 MB. Others have their turn later."""

SWEEP_SECONDS: Final = 30
"""How long uploads are swept before the next page of blobs has its turn."""

log = structlog.get_logger(__name__)


class Collector:
    """One round after the other through the folders of the store."""

    def __init__(self, ledger: Ledger, store: BlobStore, settings: Settings) -> None:
        self._ledger, self._store = ledger, store
        self._interval_seconds = settings.collect_interval_seconds
        self._keep_seconds = settings.upload_keep_seconds
        self._after = timedelta(seconds=settings.collect_after_seconds)
        self._seen_seconds = settings.collect_seen_seconds
        # When this process first found names without a record, by folder: in the round before, and
        # in this one.
        self._seen: dict[str, dict[UUID, float]] = {}
        self._before: dict[UUID, float] = {}
        self._found: dict[UUID, float] = {}
        self._stop = threading.Event()
        # A daemon, because a disk that hangs must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        self._folders = list(FOLDERS)
        # Gateways begin at different folders, so that they do not all look at the same one.
        random.shuffle(self._folders)
        self._ours = False
        self._pages: Iterator[list[FoundBlob]] = iter(())

    def start(self) -> None:
        """Begins, unless it is turned off."""
        if self._interval_seconds:
            self._thread.start()

    def close(self) -> None:
        """No further page. What it does right now may end later."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_seconds):
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next page has its turn
                log.warning("collecting_waits", exception=type(error).__qualname__)

    def _turn(self) -> None:
        # Asked until it is ours, then never again: a store does not change hands.
        self._ours = self._ours or self._claim()
        if not self._ours:
            return
        self._sweep_uploads()
        page = next(self._pages, None)
        if page is None:
            folder = self._folders.pop()
            # Put back at the other end: every folder has its turn before this one comes again.
            self._folders.insert(0, folder)
            removed = self._store.remove_unfinished(self._after.total_seconds(), [folder])
            metrics.BLOBS_COLLECTED.inc(removed)
            self._before = self._seen.pop(folder, {})
            self._found = self._seen[folder] = {}
            self._pages = self._store.pages(folder)
            page = next(self._pages, [])
        self._collect(page)

    def _claim(self) -> bool:
        """Whether the store belongs to this ledger.

        With a wrong FLUORO_DATABASE_URL or FLUORO_BLOB_URL, no blob would have a record.
        """
        with self._ledger.connection() as connection:
            name = records.ledger_name(connection)
        if self._store.claim(name):
            return True
        log.error(
            "blob_store_of_another_ledger",
            meaning="nothing is collected; see docs/operations/disk-full.md",
        )
        return False

    def _sweep_uploads(self) -> None:
        """Deletes the bytes of uploads that nobody goes on with, and then their rows.

        All that are due, as far as SWEEP_SECONDS go: more than a few may come in an interval.
        """
        until = time.monotonic() + SWEEP_SECONDS
        while not self._stop.is_set() and time.monotonic() < until:
            with self._ledger.connection() as connection:
                expired = uploads.expire(connection, self._keep_seconds)
            for owner, id_, key in expired:
                # The bytes before the row: after a crash in between, the row still leads to them.
                self._store.resumable(key).remove_now()
                with self._ledger.connection() as connection:
                    uploads.forget(connection, owner, id_)
            if len(expired) < uploads.SWEPT:
                return

    def _collect(self, page: list[FoundBlob]) -> None:
        """Deletes those that are old and have had no record for long.

        Nobody can be about to add the record: bytes are recorded within seconds after an upload,
        and at the latest with the commit of an attempt, which may take 6 h. Their age alone does
        not tell: it is the difference of two machines' clocks, and S3 dates a blob by the begin of
        its upload. So what goes has also been seen here for `collect_seen_seconds`, by the clock
        that nobody sets.
        """
        ids = [UUID(found.name.removeprefix("blobs/")) for found in page]
        with self._ledger.connection() as connection:
            now, unrecorded = records.unrecorded(connection, ids)
        for found, id_ in zip(page, ids, strict=True):
            if (
                id_ in unrecorded
                and found.modified < now - self._after
                and self._seen_long(id_)
                and not self._stop.is_set()
            ):
                self._store.delete(found.name)
                metrics.BLOBS_COLLECTED.inc()
                metrics.BLOB_BYTES_COLLECTED.inc(found.size_bytes)
                log.info("blob_collected", blob=found.name, size_bytes=found.size_bytes)

    def _seen_long(self, id_: UUID) -> bool:
        """Whether an earlier round found it, long ago. Remembers it otherwise."""
        now = time.monotonic()
        first = self._before.get(id_, now)
        if now - first >= self._seen_seconds:
            return True
        # Names beyond the limit are forgotten, and found again in a later round.
        if sum(map(len, self._seen.values())) < MAX_REMEMBERED:
            self._found[id_] = first
        return False
