"""ExportArchive: what steps left, as one ZIP file that is never on disk."""

from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Final

from fluoro.v1.export_pb2 import ExportArchive, ExportArchiveResult
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext
from fluoro_jobs.worker.handler import handles

from export_worker.packing import Packed, manifest, stored, sums
from export_worker.provenance import provenance
from export_worker.tables import as_csv, as_parquet
from export_worker.wording import job_time
from export_worker.zipped import Member, zipped

PARQUET: Final = "application/vnd.apache.parquet"


@handles(ExportArchive)
def export_archive(request: ExportArchive, context: StepContext) -> ExportArchiveResult:
    """Leaves `archive.zip`, `items.csv` and `items.parquet`. The same inputs give the same bytes.

    FluoroError NO_APPLICABLE_INPUT if no step left anything in these roles, INTERNAL if a stored
    file is not the one that its step left.
    """
    roles = frozenset(request.roles)
    files = [
        Packed(step.step, artifact, f"{step.step}/{artifact.name}")
        # By name, because the order in which steps end differs from attempt to attempt.
        for step in sorted(context.upstream, key=lambda step: step.step)
        for artifact in step.artifacts
        if not roles or artifact.role in roles
    ]
    if not files:
        raise FluoroError(
            Reason.NO_APPLICABLE_INPUT,
            "The archive comes after no step that left files in these roles. Name one in `after`.",
        )
    result = ExportArchiveResult()
    own: list[tuple[str, str, bytes]] = []
    if request.dicomdir:
        # pydicom takes half a second to import, which an archive without a directory need not wait.
        from export_worker.dicom.directory import file_set  # noqa: PLC0415 - see above

        listed = file_set(files, context)
        files = listed.files
        result.dicomdir_instances, result.dicomdir_left_out = listed.listed, listed.left_out
        if listed.directory:
            own.append(("DICOMDIR", "application/dicom", listed.directory))
    tables = [
        ("items.csv", "text/csv", as_csv(context.upstream)),
        ("items.parquet", PARQUET, as_parquet(context.upstream)),
    ]
    own = [*tables, *own]
    made = provenance(context.job, context.upstream, context.origins)
    # The manifest lists the tables, and SHA256SUMS lists the manifest: each is made of those
    # before.
    own.insert(0, ("manifest.json", "application/json", manifest(files, own, made)))
    own.insert(1, ("SHA256SUMS", "text/plain", sums(files, own)))
    # The list of the files comes before them: a reader that breaks off early has it.
    members = [Member(path, media, len(data), (data,)) for path, media, data in own]
    # One thread, because chunks have to come in order.
    with ThreadPoolExecutor(1, "read") as reader:
        context.put(
            "archive.zip",
            "archive",
            "application/zip",
            zipped(chain(members, stored(files, context, reader)), job_time(context.job)),
        )
    for name, media_type, data in tables:
        context.put(name, "table", media_type, data)
    result.artifacts.extend(context.artifacts)
    result.files = len(own) + len(files)
    result.size_bytes = sum(len(data) for *_, data in own) + sum(
        file.artifact.size_bytes for file in files
    )
    return result
