"""StoreDicomweb: files of the job to a PACS, with an outcome for each."""

import hashlib
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Final

from fluoro.v1.dicomweb_pb2 import StoreDicomweb, StoreDicomwebResult
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext, StepItem
from fluoro_jobs.worker.handler import handles

from dicom_worker.dicomweb.retrieve import retrieve
from dicom_worker.dicomweb.search import Place
from dicom_worker.dicomweb.server import Server
from dicom_worker.dicomweb.settings import DicomwebSettings, url_of
from dicom_worker.dicomweb.silence import Silence
from dicom_worker.dicomweb.storing import (
    DUPLICATES,
    Instance,
    Outcome,
    conflict,
    refused,
    store,
)
from dicom_worker.reading import find_data_set, open_dicom, uid

BATCH_INSTANCES: Final = 100
"""Most instances in one request."""
META_BYTES: Final = 2**20
"""By how much the file of a server may be larger and have the same data set."""


@handles(StoreDicomweb)
def store_dicomweb(request: StoreDicomweb, context: StepContext) -> StoreDicomwebResult:
    """Sends the inputs in batches, and leaves nothing."""
    settings = DicomwebSettings()
    url = url_of(settings.destinations, request.server, "FLUORO_DICOMWEB_DESTINATIONS")
    server = Server(request.server, url, settings, settings.outbound(), context.check)
    batch = Batch(server, settings, context, verify=request.verify)
    try:
        for item in context.each("store"):
            # An item that can be sent counts as good until the server has answered.
            with item:
                batch.add(item)
            if batch.is_full:
                batch.send()
        batch.end()
    finally:
        server.close()
    return batch.result


class Batch:
    """Instances that go to the server in one request, and what came of those before."""

    def __init__(
        self, server: Server, settings: DicomwebSettings, context: StepContext, *, verify: bool
    ) -> None:
        """verify: as in the request."""
        self.result = StoreDicomwebResult()
        self._server, self._settings, self._context = server, settings, context
        self._verify = verify
        self._silence = Silence()
        self._waiting: dict[str, tuple[StepItem, Instance]] = {}
        self._known: dict[str, str] = {}
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether it should be sent."""
        return self._bytes >= self._settings.batch_bytes or len(self._waiting) >= BATCH_INSTANCES

    def add(self, item: StepItem) -> None:
        """Takes an item in if it is a complete DICOM instance.

        FluoroError SOP_INSTANCE_CONFLICT for another version of one that was taken in.
        """
        # The item's own folder does not last until the batch is sent.
        folder = Path(mkdtemp(dir=self._context.scratch))
        try:
            instance = read(self._context.fetch(item.parts[0].blob, folder), item.folder)
            self._refuse_version(item, instance)
        except FluoroError:
            # A step may have thousands of inputs, and its scratch space goes only when it ends.
            rmtree(folder)
            raise
        size = instance.file.stat().st_size
        # Answers tell instances apart by UID alone, so one batch has no UID twice.
        if instance.uid in self._waiting or self._bytes + size > self._settings.batch_bytes:
            self.send()
        self._waiting[instance.uid] = item, instance
        self._bytes += size

    def _refuse_version(self, item: StepItem, instance: Instance) -> None:
        """The first one may have been sent, which nobody can take back, so the others fail."""
        first = self._known.setdefault(instance.uid, item.parts[0].blob)
        # Two blobs may hold the same data set, and then they are one version, as in `_has`.
        if first != item.parts[0].blob and data_set(
            self._context.fetch(first, item.folder)
        ) != data_set(instance.file):
            raise FluoroError(
                Reason.SOP_INSTANCE_CONFLICT,
                "An earlier file of the step is another version of this instance.",
            )

    def send(self) -> None:
        """Sends what waits. FluoroError only if another attempt may mend it."""
        if not self._waiting:
            return
        waiting, self._waiting, self._bytes = self._waiting, {}, 0
        outcomes = store(self._server, [instance for _, instance in waiting.values()])
        try:
            for instance, outcome in outcomes:
                item, _ = waiting.pop(instance.uid)
                with item, self._silence:
                    self._judge(item, instance, outcome)
                rmtree(instance.file.parent)
        except FluoroError as error:
            # Another attempt sends all of them again; those that are there already count as
            # duplicates.
            if error.may_retry:
                raise
            # The answer broke off. What it did not reach shares its error.
            for item, instance in waiting.values():
                with item:
                    raise
                rmtree(instance.file.parent)

    def end(self) -> None:
        """Sends the last ones."""
        self.send()
        self._silence.check()

    def _judge(self, item: StepItem, instance: Instance, outcome: Outcome | FluoroError) -> None:
        """Enters what became of an item, or raises why it failed."""
        if isinstance(outcome, FluoroError):
            raise outcome
        # The duplicate may be ours, from an attempt that was killed after it had sent. Its data set
        # tells, not its UID.
        was_there = outcome.failure in DUPLICATES
        if not outcome.stored and not was_there:
            self.result.refused.add(input=item.input, item=item.key, failure_reason=outcome.failure)
            raise refused(outcome.failure)
        # A server that keeps its own version has stored nothing of ours, whatever it says.
        if (was_there or self._verify) and not self._has(instance):
            raise conflict()
        self.result.instances.add(
            input=item.input,
            item=item.key,
            sop_class_uid=instance.sop_class,
            sop_instance_uid=instance.uid,
            was_there=was_there,
            warning_reason=outcome.warning,
        )

    def _has(self, instance: Instance) -> bool:
        """Whether the server has the same data set, in the same Transfer Syntax."""
        copy = instance.file.with_name("copy")
        place = Place(self._server.name, instance.study, instance.series, instance.uid)
        try:
            retrieve(self._server, place, copy, instance.file.stat().st_size + META_BYTES)
            return data_set(copy) == data_set(instance.file)
        except FluoroError as error:
            if error.reason not in {Reason.BLOB_TOO_LARGE, Reason.NOT_DICOM}:
                raise
            return False  # it is much larger, or something else


def read(file: Path, scratch: Path) -> Instance:
    """What there is to know of a file. FluoroError as `open_dicom` raises it."""
    header = open_dicom(file, scratch).header
    keywords = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
    return Instance(file, *(uid(header, keyword) for keyword in keywords))


def data_set(file: Path) -> tuple[str, bytes]:
    """Transfer Syntax UID, and SHA-256 of the data set: servers write meta information anew."""
    with file.open("rb") as stream:
        syntax, start = find_data_set(stream, file.stat().st_size)
        stream.seek(start)
        return syntax, hashlib.file_digest(stream, "sha256").digest()
