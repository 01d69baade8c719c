"""What each call needs: the one table, without whose line a service does not start."""

from typing import Final

from gateway.identity.principal import Role

SEE: Final = frozenset({Role.VIEWER, Role.SUBMITTER, Role.OPERATOR})
CHANGE: Final = frozenset({Role.SUBMITTER, Role.OPERATOR})
OPERATE: Final = frozenset({Role.OPERATOR})
BYTES_IN: Final = CHANGE | {Role.WORKER}
BYTES_OUT: Final = SEE | {Role.WORKER}

NEEDED: Final[dict[str, frozenset[Role]]] = {
    "fluoro.v1.AuditService.ListAuditEvents": OPERATE,
    "fluoro.v1.BlobService.BeginUpload": BYTES_IN,
    "fluoro.v1.BlobService.CommitUpload": BYTES_IN,
    "fluoro.v1.BlobService.DownloadBlob": BYTES_OUT,
    "fluoro.v1.BlobService.GetBlob": BYTES_OUT,
    "fluoro.v1.BlobService.ImportBlob": BYTES_IN,
    "fluoro.v1.BlobService.SignUpload": BYTES_IN,
    "fluoro.v1.BlobService.UploadBlob": BYTES_IN,
    "fluoro.v1.DeploymentService.DiagnoseDeployment": OPERATE,
    "fluoro.v1.JobService.BatchCancelJobs": CHANGE,
    "fluoro.v1.JobService.BatchRetryJobs": CHANGE,
    "fluoro.v1.JobService.BatchSubmitJobs": CHANGE,
    "fluoro.v1.JobService.CancelJob": CHANGE,
    "fluoro.v1.JobService.CountJobs": SEE,
    "fluoro.v1.JobService.DeleteJob": CHANGE,
    "fluoro.v1.JobService.ExplainJob": SEE,
    "fluoro.v1.JobService.GetJob": SEE,
    "fluoro.v1.JobService.ListArtifacts": SEE,
    "fluoro.v1.JobService.ListInputs": SEE,
    "fluoro.v1.JobService.ListItems": SEE,
    "fluoro.v1.JobService.ListJobs": SEE,
    "fluoro.v1.JobService.ListResults": SEE,
    "fluoro.v1.JobService.ListTasks": SEE,
    "fluoro.v1.JobService.RetryJob": CHANGE,
    "fluoro.v1.JobService.RunJob": CHANGE,
    "fluoro.v1.JobService.SubmitJob": CHANGE,
    "fluoro.v1.JobService.WaitJob": SEE,
    "fluoro.v1.JobService.WatchJob": SEE,
    "fluoro.v1.JobService.WatchJobs": SEE,
    "fluoro.v1.ModelService.GetModel": SEE,
    "fluoro.v1.ModelService.ListModels": SEE,
    "fluoro.v1.PipelineService.GetPipeline": SEE,
    "fluoro.v1.PipelineService.ListPipelines": SEE,
    "fluoro.v1.TokenService.CreateToken": OPERATE,
    "fluoro.v1.TokenService.ListTokens": OPERATE,
    "fluoro.v1.TokenService.RevokeToken": OPERATE,
}
"""The roles any one of which is enough, by the method's full name."""


def needed(method: str) -> frozenset[Role]:
    """The roles any one of which is enough. LookupError at start if the table has no line."""
    try:
        return NEEDED[method]
    except KeyError:
        raise LookupError(
            f"{method} has no line in gateway/identity/roles.py: say which roles may call it."
        ) from None
