"""Starts the worker: `python -m ml_worker`. Settings: `fluoro_jobs.worker.settings`."""

from importlib.metadata import version

from fluoro_jobs.settings import from_environment
from fluoro_jobs.worker.run import run_worker

from ml_worker import registry
from ml_worker.inference import server
from ml_worker.settings import ModelWorkerSettings

if __name__ == "__main__":
    try:
        run_worker(
            "ml-worker",
            queue="ml",
            pool="threads",
            handlers="ml_worker.operations:HANDLERS",
            version=version("ml-worker"),
            warm_up="ml_worker.inference.server:warm_up",
            inventory="ml_worker.registry:models",
            settings=from_environment(ModelWorkerSettings),
        )
    # Calls of the inference server get their time of grace; without it they would break off.
    finally:
        registry.close()
        server.close()
