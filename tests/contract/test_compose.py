import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

DOCKERS_GRACE = "10s"
"""Between SIGTERM and SIGKILL where compose says nothing."""


@pytest.fixture
def definition(compose: dict[str, Any], service: str) -> dict[str, Any]:
    return dict(compose["services"][service])


def test_a_service_is_built_from_its_dockerfile(
    root: Path, definition: dict[str, Any], service: str
) -> None:
    assert definition["image"] == f"fluoro/{service}"
    context = (root / "deploy/compose" / definition["build"]["context"]).resolve()
    assert context == root
    assert definition["build"]["dockerfile"] == f"services/{service}/Dockerfile"


def test_a_service_understands_every_variable_it_is_given(
    definition: dict[str, Any], service: str, variables: dict[str, Any]
) -> None:
    needless = {"scheduler": {"FLUORO_BLOB_URL"}}.get(service, set())
    assert set(definition["environment"]) - needless - set(variables) == set()


def test_a_service_starts_with_the_variables_it_is_given(
    definition: dict[str, Any],
    settings: list[type[BaseSettings]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mounted = {mount.split(":")[1] for mount in definition["volumes"]}
    for name, value in definition["environment"].items():
        there = str(tmp_path) if value in mounted else value
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:-(\w+)\}", r"\1", there))
    for settings_class in settings:
        settings_class()


def test_a_container_lives_longer_than_its_service_takes_to_stop(
    definition: dict[str, Any],
) -> None:
    given = int(definition.get("stop_grace_period", DOCKERS_GRACE).removesuffix("s"))
    assert given > float(definition["environment"].get("FLUORO_SHUTDOWN_GRACE_SECONDS", 0))


def test_a_service_cannot_write_but_to_tmp_and_the_blobs(
    definition: dict[str, Any], service: str
) -> None:
    assert definition["read_only"] is True
    assert definition["cap_drop"] == ["ALL"]
    assert definition["tmpfs"] == ["/tmp"]
    writable = [mount for mount in definition["volumes"] if not mount.endswith(":ro")]
    assert writable == ([] if service == "scheduler" else ["blobs:/var/lib/fluoro"])
    assert definition["environment"]["FLUORO_BLOB_URL"].startswith("file:///var/lib/fluoro/")


def test_a_service_waits_for_the_schema(
    compose: dict[str, Any], definition: dict[str, Any]
) -> None:
    assert definition["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert compose["services"]["migrate"]["entrypoint"] == [
        "python",
        "-m",
        "fluoro_jobs.ledger.migrate",
    ]
    assert compose["services"]["migrate"]["depends_on"] == {
        "postgres": {"condition": "service_healthy"}
    }


def test_only_dicom_worker_gets_the_keys_of_deidentification_and_git_never_does(
    root: Path, compose: dict[str, Any]
) -> None:
    folder = compose["services"]["dicom-worker"]["environment"]["FLUORO_DEIDENTIFY_KEYS_FOLDER"]
    holders = {
        name: mount
        for name, service in compose["services"].items()
        for mount in service.get("volumes", [])
        if folder in mount
    }
    assert holders == {"dicom-worker": f"./deidentification-keys:{folder}:ro"}
    assert "/deploy/compose/deidentification-keys/\n" in (root / ".gitignore").read_text()


def test_every_volume_and_dependency_is_declared(compose: dict[str, Any]) -> None:
    named = {
        mount.split(":")[0]
        for service in compose["services"].values()
        for mount in service.get("volumes", [])
        if mount[0] != "."
    }
    assert named == set(compose["volumes"])
    wanted = {
        name for service in compose["services"].values() for name in service.get("depends_on", {})
    }
    assert wanted <= set(compose["services"])


def test_nothing_is_reachable_from_other_machines(compose: dict[str, Any]) -> None:
    published = [
        port for service in compose["services"].values() for port in service.get("ports", [])
    ]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_prometheus_scrapes_every_service_on_its_http_port(
    root: Path, service: str, variables: dict[str, Any]
) -> None:
    scraping = yaml.safe_load((root / "deploy/compose/prometheus.yml").read_text())
    [discovery] = scraping["scrape_configs"][0]["dns_sd_configs"]
    assert service in discovery["names"]
    assert discovery["port"] == variables["FLUORO_HTTP_PORT"]
