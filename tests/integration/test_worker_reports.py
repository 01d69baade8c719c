"""What pool children know reaches the metrics of the worker's main process."""

from urllib.request import urlopen

import pytest
from fluoro_jobs.testing.rig import Rig, until
from fluoro_local.folders import free_port


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_an_attempt_in_the_pool_is_counted_in_the_metrics_of_the_worker(
    rig: Rig, pool: str
) -> None:
    port = free_port()
    rig.worker(pool=pool, http_port=port)
    rig.finished(rig.submit(rig.job_of()))

    def counted() -> bool:
        with urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            lines = set(response.read().decode().splitlines())
        return lines >= {
            (
                "fluoro_task_attempts_finished_total"
                '{operation="dicom.inspect",outcome="succeeded"} 1.0'
            ),
            'fluoro_task_run_seconds_count{operation="dicom.inspect"} 1.0',
            'fluoro_jobs_finished_total{state="succeeded"} 1.0',
        }

    until(counted, 30, "the report")
