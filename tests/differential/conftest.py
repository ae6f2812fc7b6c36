"""The server that the integration tests have too."""

from tests.integration.conftest import api, server

__all__ = ["api", "server"]
