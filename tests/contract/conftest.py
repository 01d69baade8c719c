import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

ROOT = Path(__file__).parents[2]
SERVICES = sorted(path.parent.name for path in ROOT.glob("services/*/pyproject.toml"))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session", params=SERVICES)
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def settings(service: str) -> list[type[BaseSettings]]:
    """The classes that read the service's environment, with those of the worker's runtime."""
    source = ROOT / "services" / service / "src"
    modules = [
        ".".join(path.relative_to(source).with_suffix("").parts)
        for path in source.rglob("settings.py")
    ] + ["fluoro_jobs.worker.settings"] * service.endswith("-worker")
    classes = {
        member
        for module in modules
        for member in vars(importlib.import_module(module)).values()
        if isinstance(member, type)
        and issubclass(member, BaseSettings)
        and member is not BaseSettings
    }
    assert classes, f"{service} has no settings class in {modules}"
    return sorted(classes, key=lambda settings: settings.__qualname__)


@pytest.fixture(scope="session")
def variables(settings: list[type[BaseSettings]]) -> dict[str, Any]:
    """The environment variables that the service reads, and their defaults."""
    return {
        f"{settings_class.model_config['env_prefix']}{name}".upper(): field.default
        for settings_class in settings
        for name, field in settings_class.model_fields.items()
    }


@pytest.fixture(scope="session")
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose/compose.yaml").read_text())
    return content
