"""Starts the worker: `python -m export_worker`. Settings: docs/settings.md."""

from importlib.metadata import version

from fluoro_jobs.settings import from_environment
from fluoro_jobs.worker.run import run_worker

from export_worker.settings import ReportSettings

if __name__ == "__main__":
    # A setting that is wrong stops the worker now, and not its first report.
    from_environment(ReportSettings)
    run_worker(
        "export-worker",
        queue="export",
        pool="prefork",
        handlers="export_worker.operations:HANDLERS",
        version=version("export-worker"),
    )
