"""The fixtures that every test may use."""

pytest_plugins = ["fluoro_local.pytest_plugin"]
