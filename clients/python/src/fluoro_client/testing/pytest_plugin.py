"""The fixture `fluoro_gateway`: `pytest_plugins = ["fluoro_client.testing.pytest_plugin"]`."""

from collections.abc import Iterator

import pytest

from fluoro_client.testing.gateway import FakeGateway


@pytest.fixture
def fluoro_gateway() -> Iterator[FakeGateway]:
    """A fake gateway of the test's own, which ends with it."""
    with FakeGateway() as gateway:
        yield gateway
