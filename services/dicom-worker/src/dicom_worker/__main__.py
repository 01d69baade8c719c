"""Starts the worker: `python -m dicom_worker`. Settings: docs/settings.md."""

from importlib.metadata import version

from fluoro_jobs.settings import from_environment
from fluoro_jobs.worker.run import run_worker

from dicom_worker.deidentify.settings import DeidentifySettings
from dicom_worker.dicomweb.settings import DicomwebSettings

if __name__ == "__main__":
    # Operations read them anew. A bad value stops the start here, and not each task there.
    from_environment(DeidentifySettings)
    from_environment(DicomwebSettings)
    run_worker(
        "dicom-worker",
        queue="dicom",
        pool="prefork",
        handlers="dicom_worker.operations:HANDLERS",
        version=version("dicom-worker"),
    )
