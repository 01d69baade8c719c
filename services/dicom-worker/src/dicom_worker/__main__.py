"""Starts the worker: `python -m dicom_worker`. Settings: `fluoro_jobs.worker.settings`."""

from importlib.metadata import version

from fluoro_jobs.worker.run import run_worker

if __name__ == "__main__":
    run_worker(
        "dicom-worker",
        queue="dicom",
        pool="prefork",
        handlers="dicom_worker.operations:HANDLERS",
        version=version("dicom-worker"),
    )
