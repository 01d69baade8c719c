import configparser
import inspect
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from dicom_worker.dicomweb.settings import DicomwebSettings
from dicom_worker.operations.unpack import UNPACKED_LIMIT_BYTES
from fluoro.v1 import job_service_pb2
from fluoro_jobs.ledger.connection import CONNECT_QUERY, STATEMENT_SECONDS
from fluoro_jobs.pipelines import load
from fluoro_jobs.worker.settings import WorkerSettings
from fluoro_telemetry.http import Health, serve
from prometheus_client import CollectorRegistry
from pydantic_settings import BaseSettings

ROOT = Path(__file__).parents[2]
SECRET = {"FLUORO_DATABASE_URL": "postgresql://fluoro:secret@postgres:5432/fluoro"}
"""Secret `fluoro-secrets` as deploy/k8s/README.md creates it."""


def build(kustomization: Path) -> str:
    command = [sys.executable, str(ROOT / "deploy/k8s/build.py"), str(kustomization)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def answer(url: str) -> int:
    """HTTP status."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def validate(manifests: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "deploy/k8s/validate.py")]
    return subprocess.run(command, input=manifests, check=False, capture_output=True, text=True)


@dataclass(frozen=True)
class Overlay:
    manifests: list[dict[str, Any]]

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        return {
            manifest["metadata"]["name"]: manifest
            for manifest in self.manifests
            if manifest["kind"] == kind
        }

    def pod(self, service: str) -> dict[str, Any]:
        pod: dict[str, Any] = self.of("Deployment")[service]["spec"]["template"]["spec"]
        return pod

    def container(self, service: str) -> dict[str, Any]:
        [container] = self.pod(service)["containers"]
        return dict(container)

    def environment(self, service: str) -> dict[str, str]:
        """What the process sees, in Kubernetes' order: ConfigMap, Secret, the container's own."""
        container = self.container(service)
        assert container["envFrom"] == [
            {"configMapRef": {"name": "fluoro-config"}},
            {"secretRef": {"name": "fluoro-secrets"}},
        ]
        own = {variable["name"]: variable["value"] for variable in container.get("env", [])}
        return {**self.of("ConfigMap")["fluoro-config"]["data"], **SECRET, **own}


@pytest.fixture(scope="session")
def dev() -> Overlay:
    return Overlay(list(yaml.safe_load_all(build(ROOT / "deploy/k8s/overlays/dev"))))


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def health_url(health: Health) -> Iterator[str]:
    server = serve("127.0.0.1", 0, health, CollectorRegistry())
    yield f"http://127.0.0.1:{server.port}"
    server.close()


def with_component(name: str, folder: Path) -> Path:
    """A copy of the dev overlay that uses this component, too."""
    shutil.copytree(ROOT / "deploy/k8s", folder / "k8s")
    overlay = folder / "k8s/overlays/dev"
    text = (overlay / "kustomization.yaml").read_text()
    (overlay / "kustomization.yaml").write_text(
        text.replace("components:\n", f"components:\n  - ../../components/{name}\n")
    )
    return overlay


@pytest.fixture
def with_gpu(tmp_path: Path) -> Path:
    """A copy of the dev overlay that uses the gpu component."""
    return with_component("gpu", tmp_path)


def test_the_overlays_are_valid_for_the_newest_kubernetes() -> None:
    for overlay in sorted((ROOT / "deploy/k8s/overlays").iterdir()):
        result = validate(build(overlay))
        assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("good", "bad", "complaint"),
    [
        ("failureThreshold", "failureTreshold", "'failureTreshold' was unexpected"),
        ("replicas: 1", "replicas: one", "'one' is not of type 'integer'"),
    ],
)
def test_a_typing_mistake_in_a_manifest_is_found(good: str, bad: str, complaint: str) -> None:
    result = validate(build(ROOT / "deploy/k8s/overlays/dev").replace(good, bad))
    assert result.returncode == 1
    assert complaint in result.stdout


def test_an_empty_build_is_not_valid() -> None:
    assert validate("").returncode == 1


@pytest.mark.skipif(
    not shutil.which("kubectl"),
    reason="no kubectl to compare with; it is in neither PyPI nor Debian",
)
def test_our_builder_prints_what_kubectl_prints(with_gpu: Path) -> None:
    def by_name(text: str) -> dict[tuple[str, str], Any]:
        return {
            (manifest["kind"], manifest["metadata"]["name"]): manifest
            for manifest in yaml.safe_load_all(text)
        }

    for overlay in (ROOT / "deploy/k8s/overlays/dev", with_gpu):
        theirs = subprocess.run(
            ["kubectl", "kustomize", overlay], check=True, capture_output=True, text=True
        ).stdout
        assert by_name(build(overlay)) == by_name(theirs)


def test_our_builder_refuses_what_it_does_not_know(with_gpu: Path) -> None:
    kustomization = with_gpu / "kustomization.yaml"
    kustomization.write_text(kustomization.read_text() + "namePrefix: x-\n")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        build(with_gpu)
    assert "namePrefix is outside the subset" in refused.value.stderr


def test_the_gpu_component_asks_for_a_gpu_and_the_image_that_uses_it(with_gpu: Path) -> None:
    manifests = build(with_gpu)
    assert validate(manifests).returncode == 0
    container = Overlay(list(yaml.safe_load_all(manifests))).container("ml-worker")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["image"].startswith("fluoro/ml-worker-gpu")
    assert {"name": "FLUORO_ML_DEVICE", "value": "cuda"} in container["env"]


def test_the_dicomweb_component_sets_what_the_worker_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = build(with_component("dicomweb", tmp_path))
    assert validate(manifests).returncode == 0
    overlay = Overlay(list(yaml.safe_load_all(manifests)))
    given = overlay.environment("dicom-worker")
    names = {name for name in given if name.startswith("FLUORO_DICOMWEB_")}
    known = {f"FLUORO_DICOMWEB_{field.upper()}" for field in DicomwebSettings.model_fields}
    assert "FLUORO_DICOMWEB_SOURCES" in names <= known
    folder = given.pop("FLUORO_DICOMWEB_CREDENTIALS_FOLDER")
    mounts = overlay.container("dicom-worker")["volumeMounts"]
    assert folder in {mount["mountPath"] for mount in mounts}
    for name in names & set(given):
        monkeypatch.setenv(name, given[name])
    DicomwebSettings().outbound()


def test_every_service_is_deployed_and_nothing_else_is(dev: Overlay) -> None:
    services = {path.parent.name for path in ROOT.glob("services/*/pyproject.toml")}
    assert (
        set(dev.of("Deployment"))
        == set(dev.of("PodDisruptionBudget"))
        == set(dev.of("ServiceAccount"))
        == services
    )


def test_a_service_is_found_by_its_selectors(dev: Overlay, service: str) -> None:
    spec = dev.of("Deployment")[service]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    selectors = [spec["selector"], dev.of("PodDisruptionBudget")[service]["spec"]["selector"]]
    assert all(selector["matchLabels"].items() <= labels.items() for selector in selectors)
    assert dev.pod(service)["serviceAccountName"] == service
    assert dev.container(service)["name"] == service


def test_a_service_understands_every_variable_it_is_given(
    dev: Overlay, service: str, variables: dict[str, Any]
) -> None:
    shared = set(dev.of("ConfigMap")["fluoro-config"]["data"]) | set(SECRET)
    assert set(dev.environment(service)) - shared - set(variables) == set()


def test_every_shared_variable_is_read_by_some_service(
    dev: Overlay, service: str, variables: dict[str, Any]
) -> None:
    needless = {"scheduler": {"FLUORO_BLOB_URL"}}.get(service, set())
    assert set(dev.of("ConfigMap")["fluoro-config"]["data"]) - needless <= set(variables)


def test_a_service_starts_with_the_variables_it_is_given(
    dev: Overlay,
    service: str,
    settings: list[type[BaseSettings]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mounted = {mount["mountPath"] for mount in dev.container(service)["volumeMounts"]}
    for name, value in dev.environment(service).items():
        monkeypatch.setenv(name, str(tmp_path) if value in mounted else value)
    for settings_class in settings:
        settings_class()


def test_dicom_worker_alone_mounts_the_keys_of_deidentification_and_no_value_is_in_a_manifest(
    dev: Overlay,
) -> None:
    holders = {
        service: volume["secret"]
        for service in dev.of("Deployment")
        for volume in dev.pod(service)["volumes"]
        if "secret" in volume
    }
    # Read by the group that pods run with; a cluster without the Secret starts all the same.
    assert holders == {
        "dicom-worker": {
            "secretName": "deidentification-keys",
            "optional": True,
            "defaultMode": 0o440,
        }
    }
    assert dev.pod("dicom-worker")["securityContext"]["fsGroup"] == 10001
    mounts = dev.container("dicom-worker")["volumeMounts"]
    [mount] = [mount for mount in mounts if mount["name"] == "deidentification-keys"]
    assert mount["readOnly"] is True
    assert mount["mountPath"] == dev.environment("dicom-worker")["FLUORO_DEIDENTIFY_KEYS_FOLDER"]
    assert dev.of("Secret") == {}


def test_a_service_listens_where_its_manifest_says(
    dev: Overlay, service: str, variables: dict[str, Any]
) -> None:
    ports = {port["name"]: port["containerPort"] for port in dev.container(service)["ports"]}
    defaults = {name: variables[f"FLUORO_{name.upper()}_PORT"] for name in ports}
    assert ports == defaults
    assert ports["http"] == 9090
    assert ("grpc" in ports) == (service == "gateway")


def test_an_image_exposes_the_ports_of_its_manifest(dev: Overlay, service: str) -> None:
    [exposed] = re.findall(
        r"^EXPOSE (.*)$", (ROOT / "services" / service / "Dockerfile").read_text(), re.MULTILINE
    )
    assert [int(port) for port in exposed.split()] == [
        port["containerPort"] for port in dev.container(service)["ports"]
    ]


def test_prometheus_is_told_the_http_port(dev: Overlay, service: str) -> None:
    annotations = dev.of("Deployment")[service]["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": "9090",
        "prometheus.io/path": "/metrics",
    }


@pytest.mark.parametrize(("healthy", "status"), [(True, 200), (False, 503)])
def test_every_probe_asks_for_what_the_health_endpoint_answers(
    dev: Overlay, service: str, health: Health, health_url: str, *, healthy: bool, status: int
) -> None:
    def ledger() -> None:
        if not healthy:
            raise ConnectionError("the ledger is down")

    health.add_check("ledger", ledger)
    container = dev.container(service)
    for probe in ("startupProbe", "livenessProbe"):
        assert answer(health_url + container[probe]["httpGet"]["path"]) == 200, (
            "a ledger that is down is no reason to restart"
        )
    if service != "gateway":
        assert answer(health_url + container["readinessProbe"]["httpGet"]["path"]) == status
    annotations = dev.of("Deployment")[service]["spec"]["template"]["metadata"]["annotations"]
    assert answer(health_url + annotations["prometheus.io/path"]) == 200


def test_a_probe_waits_longer_than_the_checks_behind_it(dev: Overlay, service: str) -> None:
    checks = inspect.signature(Health).parameters["check_timeout_seconds"].default
    assert dev.container(service)["readinessProbe"]["timeoutSeconds"] > checks


def test_the_gateway_is_ready_when_its_job_service_is(dev: Overlay) -> None:
    name = job_service_pb2.DESCRIPTOR.services_by_name["JobService"].full_name
    container = dev.container("gateway")
    assert container["readinessProbe"]["grpc"] == {"port": 50051, "service": name}


def test_the_gateways_service_gives_clients_every_pod(dev: Overlay) -> None:
    spec = dev.of("Service")["gateway"]["spec"]
    assert spec["clusterIP"] == "None"
    assert spec["ports"][0] | {"appProtocol": "grpc"} == {
        "name": "grpc",
        "port": 50051,
        "targetPort": "grpc",
        "appProtocol": "grpc",
    }
    assert spec["selector"] == dev.of("Deployment")["gateway"]["spec"]["selector"]["matchLabels"]


def test_a_pod_lives_longer_than_its_service_takes_to_stop(dev: Overlay, service: str) -> None:
    pod, container = dev.pod(service), dev.container(service)
    pre_stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    stop = float(dev.environment(service).get("FLUORO_SHUTDOWN_GRACE_SECONDS", 0))
    assert pod["terminationGracePeriodSeconds"] >= pre_stop + stop + 5


@pytest.mark.parametrize("service", ["dicom-worker", "export-worker"], indirect=True)
def test_the_children_of_a_worker_fit_into_its_pod(
    dev: Overlay, service: str, variables: dict[str, Any]
) -> None:
    limit = dev.container(service)["resources"]["limits"]["memory"]
    assert limit.endswith("Gi")
    given = dev.environment(service)
    slots, per_child = (
        int(given.get(name, variables[name]))
        for name in ("FLUORO_SLOTS", "FLUORO_MAX_MEMORY_PER_CHILD_KIB")
    )
    assert slots * per_child < 0.9 * int(limit.removesuffix("Gi")) * 1024 * 1024


def test_a_rollout_never_takes_a_replica_first_but_where_accelerators_are_scarce(
    dev: Overlay, service: str
) -> None:
    rolling = dev.of("Deployment")[service]["spec"]["strategy"]["rollingUpdate"]
    expected = (
        {"maxSurge": 0, "maxUnavailable": 1}
        if service == "ml-worker"
        else {"maxSurge": 1, "maxUnavailable": 0}
    )
    assert rolling == expected


def test_a_pod_keeps_the_restricted_security_standard(dev: Overlay, service: str) -> None:
    pod = dev.pod(service)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"] + pod.get("initContainers", []):
        context = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["securityContext"] == context
        assert container["resources"]["limits"]["memory"]
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}


def test_every_volume_is_mounted_and_every_mount_has_its_volume(dev: Overlay, service: str) -> None:
    mounts = {mount["name"] for mount in dev.container(service)["volumeMounts"]}
    assert mounts == {volume["name"] for volume in dev.pod(service)["volumes"]} >= {"tmp"}


def test_a_pod_is_evicted_for_no_file_that_its_service_may_have_to_hold(
    dev: Overlay, service: str
) -> None:
    (tmp,) = (volume for volume in dev.pod(service)["volumes"] if volume["name"] == "tmp")
    room = gib(tmp["emptyDir"]["sizeLimit"])
    resources = dev.container(service)["resources"]
    if service != "scheduler":  # which writes nothing
        # The rest is for logs. Without a request, nodes take more than they have room for.
        assert gib(resources["limits"]["ephemeral-storage"]) >= room + 1
        assert gib(resources["requests"]["ephemeral-storage"]) >= 1
    if service == "dicom-worker":
        archive = 4  # without ZIP64
        slots = WorkerSettings.model_fields["slots"].default
        assert room * 2**30 >= slots * (archive * 2**30 + UNPACKED_LIMIT_BYTES)


def gib(quantity: str) -> float:
    size, unit = int(quantity[:-2]), quantity[-2:]
    return {"Gi": size, "Mi": size / 1024}[unit]


def test_every_image_has_the_overlays_tag_and_a_dockerfile(dev: Overlay, service: str) -> None:
    pod = dev.pod(service)
    assert {
        container["image"] for container in pod["containers"] + pod.get("initContainers", [])
    } == {f"fluoro/{service}:dev"}
    assert (ROOT / "services" / service / "Dockerfile").is_file()


def test_the_scheduler_migrates_the_ledger_before_it_starts(dev: Overlay) -> None:
    [migrate] = dev.pod("scheduler")["initContainers"]
    assert migrate["command"] == ["python", "-m", "fluoro_jobs.ledger.migrate"]
    assert migrate["envFrom"] == [{"secretRef": {"name": "fluoro-secrets"}}]


def test_the_pooler_sets_up_its_sessions_as_the_ledger_would() -> None:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "deploy/k8s/pgbouncer.ini")
    assert f"connect_query='{CONNECT_QUERY}'" in config["databases"]["fluoro"]
    pooler = config["pgbouncer"]
    assert pooler["pool_mode"] == "transaction"
    assert int(pooler["query_wait_timeout"]) < STATEMENT_SECONDS


def test_the_gateway_can_use_the_pipelines_that_it_is_given(dev: Overlay, tmp_path: Path) -> None:
    data = dev.of("ConfigMap")["fluoro-pipelines"]["data"]
    for name, text in data.items():
        (tmp_path / name).write_text(text)
    assert load(str(tmp_path)).find("pipelines/lung-window", "name").version == 1
