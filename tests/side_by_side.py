"""Whole files of tests to several processes, and a test that ends its process is not tried again.

A test that hangs ends its process when its time is over. pytest-xdist's own scheduler would give it
to the next process, and to the one after that.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A hook of pytest-xdist: which process gets which tests."""
    return FilesToProcesses(config, log) if config.getvalue("dist") == "loadfile" else None


class FilesToProcesses(LoadFileScheduling):
    """As `--dist loadfile`, but for what becomes of the test during which a process ended."""

    def remove_node(self, node: Any) -> str | None:
        """Give what a process has left to the others, but for the test that it was at.

        Returns that test, or None for a process that had nothing left.
        """
        left: dict[str, dict[str, bool]] = {}
        for file, tests in self.assigned_work.pop(node).items():
            if undone := {test: False for test, is_done in tests.items() if not is_done}:
                left[file] = undone
        if not left:
            return None
        first = next(iter(left.values()))
        was_at = next(iter(first))
        del first[was_at]
        for file, tests in left.items():
            if tests:
                self.workqueue[file] = tests
                self.workqueue.move_to_end(file, last=False)
        for other in self.assigned_work:
            self._reschedule(other)
        return was_at
