"""Starts the worker: `python -m export_worker`. Settings: `fluoro_jobs.worker.settings`."""

from importlib.metadata import version

from fluoro_jobs.worker.run import run_worker

if __name__ == "__main__":
    run_worker(
        "export-worker",
        queue="export",
        pool="prefork",
        handlers="export_worker.operations:HANDLERS",
        version=version("export-worker"),
    )
