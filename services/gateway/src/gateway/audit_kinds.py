"""What each call is for the audit: the one table, without whose line a service does not start."""

from typing import Final, NamedTuple


class Kind(NamedTuple):
    """A kind of access.

    action: C, R, U, D or E (create, read, update, delete, execute; DICOM PS3.15 A.5.1). field: of
    the request, that names the job, blob or token; "" for none. always: whether the call touches
    what may be a patient's, or tokens; another one is written down only if an operator makes it for
    another owner. may_wait: the row may be written once a ledger that is read-only takes writes
    again, so that jobs can be looked at during a failover. Bytes of blobs are not served meanwhile.
    """

    action: str
    field: str = ""
    always: bool = True
    may_wait: bool = False


OPEN: Final = Kind("E", always=False)
"""Of calls that are open to everybody."""

KINDS: Final[dict[str, Kind]] = {
    "fluoro.v1.AuditService.ListAuditEvents": Kind("E"),
    "fluoro.v1.BlobService.BeginUpload": Kind("C"),
    "fluoro.v1.BlobService.CommitUpload": Kind("C"),
    "fluoro.v1.BlobService.DownloadBlob": Kind("R", "name"),
    "fluoro.v1.BlobService.GetBlob": Kind("R", "name"),
    "fluoro.v1.BlobService.ImportBlob": Kind("C"),
    "fluoro.v1.BlobService.SignUpload": Kind("C"),
    "fluoro.v1.BlobService.UploadBlob": Kind("C"),
    "fluoro.v1.DeploymentService.DiagnoseDeployment": Kind("E", always=False),
    "fluoro.v1.JobService.BatchCancelJobs": Kind("U"),
    "fluoro.v1.JobService.BatchRetryJobs": Kind("U"),
    "fluoro.v1.JobService.BatchSubmitJobs": Kind("C"),
    "fluoro.v1.JobService.CancelJob": Kind("U", "name"),
    "fluoro.v1.JobService.CountJobs": Kind("E", always=False),
    "fluoro.v1.JobService.DeleteJob": Kind("D", "name"),
    "fluoro.v1.JobService.ExplainJob": Kind("R", "name", may_wait=True),
    "fluoro.v1.JobService.GetJob": Kind("R", "name", may_wait=True),
    "fluoro.v1.JobService.ListArtifacts": Kind("R", "job", may_wait=True),
    "fluoro.v1.JobService.ListInputs": Kind("R", "job", may_wait=True),
    "fluoro.v1.JobService.ListItems": Kind("R", "job", may_wait=True),
    "fluoro.v1.JobService.ListJobs": Kind("E", may_wait=True),
    "fluoro.v1.JobService.ListResults": Kind("R", "job", may_wait=True),
    "fluoro.v1.JobService.ListTasks": Kind("R", "job", may_wait=True),
    "fluoro.v1.JobService.RetryJob": Kind("U", "name"),
    "fluoro.v1.JobService.RunJob": Kind("C"),
    "fluoro.v1.JobService.SubmitJob": Kind("C"),
    "fluoro.v1.JobService.WaitJob": Kind("R", "name", may_wait=True),
    "fluoro.v1.JobService.WatchJob": Kind("R", "name", may_wait=True),
    "fluoro.v1.JobService.WatchJobs": Kind("E", may_wait=True),
    "fluoro.v1.ModelService.GetModel": Kind("R", always=False),
    "fluoro.v1.ModelService.ListModels": Kind("E", always=False),
    "fluoro.v1.PipelineService.GetPipeline": Kind("R", always=False),
    "fluoro.v1.PipelineService.ListPipelines": Kind("E", always=False),
    "fluoro.v1.TokenService.CreateToken": Kind("C"),
    "fluoro.v1.TokenService.ListTokens": Kind("E"),
    "fluoro.v1.TokenService.RevokeToken": Kind("U", "name"),
}
"""By the method's full name."""


def kind_of(method: str) -> Kind:
    """What the call is for the audit. LookupError at start if the table has no line."""
    try:
        return KINDS[method]
    except KeyError:
        raise LookupError(
            f"{method} has no line in gateway/audit_kinds.py: say what kind of access it is."
        ) from None
