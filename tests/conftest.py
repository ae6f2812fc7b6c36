"""For all tests: what flow runs leave behind goes to a folder of the tests' own, and no luck.

Properties are tried on the same examples in every run, and however long one takes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("deepflow", derandomize=True, deadline=None)
settings.load_profile("deepflow")


@pytest.fixture(scope="session", autouse=True)
def _state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """History and journals in a temporary folder, also those of processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPFLOW_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        assert os.environ["DEEPFLOW_STATE_DIR"]
        yield
