import fnmatch
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

OURS = {"fluoro-blobs", "fluoro-jobs", "fluoro-protos", "fluoro-telemetry"}
PIXELS = {"numpy", "onnxruntime", "onnxruntime-gpu", "pillow", "pydicom"}


@pytest.fixture
def dockerfile(root: Path, service: str) -> str:
    return (root / "services" / service / "Dockerfile").read_text()


@pytest.fixture
def runtime(dockerfile: str) -> str:
    """The last stage: what ships."""
    return dockerfile[dockerfile.rindex("\nFROM ") :]


def pinned(root: Path, requirements: str) -> set[str]:
    text = (root / "requirements" / requirements).read_text()
    return {
        canonicalize_name(name)
        for name in re.findall(r"^([A-Za-z0-9._-]+)(?:\[.*\])?==", text, re.MULTILINE)
    }


def requirement_files(root: Path, service: str) -> list[str]:
    return sorted(path.name for path in root.glob(f"requirements/{service}*.txt"))


def declared(project: Path) -> set[str]:
    metadata = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    return {canonicalize_name(Requirement(line).name) for line in metadata["dependencies"]}


def test_an_image_runs_the_services_own_module(runtime: str, service: str) -> None:
    module = service.replace("-", "_")
    assert f'ENTRYPOINT ["python", "-m", "{module}"]' in runtime
    assert importlib.util.find_spec(f"{module}.__main__"), f"{module} has no __main__"


def test_an_image_runs_as_a_user_without_rights(runtime: str) -> None:
    assert re.findall(r"^USER (.*)$", runtime, re.MULTILINE) == ["10001:10001"]
    assert "useradd --uid 10001" in runtime


def test_an_image_ships_no_tool_that_installs_or_builds(runtime: str, dockerfile: str) -> None:
    assert not re.search(r"\b(pip|apt-get|gcc)\b", runtime)
    assert "venv --without-pip /opt/fluoro" in dockerfile


def test_everything_foreign_in_an_image_is_pinned_by_hash(dockerfile: str) -> None:
    installs = re.findall(r"pip (?:--python \S+ )?install (.*)", dockerfile)
    assert len(installs) == 3
    assert all(
        "--require-hashes" in line or "--no-index --no-deps /wheels/*.whl" in line
        for line in installs
    )


def test_what_an_image_copies_is_in_the_context(root: Path, service: str, dockerfile: str) -> None:
    ignored = (root / ".dockerignore").read_text().splitlines()
    kept = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    dropped = [line for line in ignored if not line.startswith(("!", "#")) and line != "*"]
    files = requirement_files(root, service)
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE)
        for source in line.split()
    ]
    assert {"libs", f"services/{service}", "requirements/build.txt"} < set(sources)
    for source in sources:
        for name in files if "$" in source else [source]:
            path = source.replace("${REQUIREMENTS}", name)
            assert (root / path).exists()
            assert path.split("/")[0] in kept
            assert not any(fnmatch.fnmatch(path, pattern) for pattern in dropped)


def test_the_pins_hold_every_declared_dependency(root: Path, service: str) -> None:
    wanted = declared(root / "services" / service)
    while libraries := wanted & OURS:
        wanted = (wanted - libraries).union(
            *(declared(root / "libs" / name.removeprefix("fluoro-")) for name in libraries)
        )
    for requirements in requirement_files(root, service):
        assert wanted - pinned(root, requirements) == set(), requirements


def test_the_base_image_has_a_python_that_every_package_allows(root: Path, dockerfile: str) -> None:
    tag = re.search(r"ARG PYTHON_IMAGE=\S+/python:(3[.]\d+)-slim-bookworm", dockerfile)
    assert tag
    rules = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["uv"]["environments"]
    assert Marker(rules[0]).evaluate(
        {"python_full_version": f"{tag[1]}.0", "sys_platform": "linux"}
    )
    for project in root.glob("*/*/pyproject.toml"):
        assert tag[1] in SpecifierSet(
            tomllib.loads(project.read_text())["project"]["requires-python"]
        )


@pytest.mark.parametrize("lean", ["gateway", "scheduler"])
def test_the_gateway_and_the_scheduler_ship_nothing_that_decodes_pixels(
    root: Path, lean: str
) -> None:
    assert pinned(root, f"{lean}.txt") & PIXELS == set()


def test_only_one_onnx_runtime_is_in_an_image(root: Path) -> None:
    assert pinned(root, "ml-worker-cpu.txt") & {"onnxruntime", "onnxruntime-gpu"} == {"onnxruntime"}
    assert pinned(root, "ml-worker-gpu.txt") & {"onnxruntime", "onnxruntime-gpu"} == {
        "onnxruntime-gpu"
    }
