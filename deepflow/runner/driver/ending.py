"""How the runs of a flow end that has returned, or failed, without waiting for all of them."""

from __future__ import annotations

from typing import Any

from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.runner.driver.dispatch import Dispatcher
from deepflow.runner.driver.items import Item

__all__ = ["Ending"]

_MAX_ROUNDS = 3
"""How often at the end what done-callbacks have submitted is waited for."""


class Ending:
    """Gives the open runs of one dispatcher their end; each step has `shutdown_s` seconds."""

    def __init__(self, dispatcher: Dispatcher, logger: Any, shutdown_s: float) -> None:
        self._dispatcher = dispatcher
        self._logger = logger
        self._shutdown_s = shutdown_s

    def settle_all(self, failed: bool) -> None:
        """Give every run its end, and have called what was to be called then.

        What that submits gets its end, too; what has not returned in time is left behind.
        """
        for _ in range(_MAX_ROUNDS):
            if open_items := self._dispatcher.open_items():
                self._settle(open_items, failed)
            if not self.wait_called(self._shutdown_s):
                break
            if not self._dispatcher.open_items():
                return
        if open_items := self._dispatcher.open_items():
            self._settle(open_items, failed=True)

    def wait_called(self, timeout_s: float) -> bool:
        """Whether all done-callbacks have returned within `timeout_s` seconds; says so if not."""
        if self._dispatcher.wait_called(timeout_s):
            return True
        fell_back(Fallback.CALLBACK_LEFT_BEHIND)
        self._logger.warning(
            "Functions given to `add_done_callback` had not returned %.3g s after the last run had "
            "ended; the flow run ends without them.",
            timeout_s,
        )
        return False

    def _settle(self, open_items: list[Item], failed: bool) -> None:
        dispatcher = self._dispatcher
        if not failed:
            dispatcher.logger.warning(
                "%d task runs were not done when the flow returned: those that have not begun are "
                "cancelled, the others get %g s. Wait for futures (`.result()`, `.wait()`) that "
                "the flow needs, or return them.",
                len(open_items),
                self._shutdown_s,
            )
            dispatcher.cancel(dispatcher.not_begun())
            if dispatcher.wait_idle(self._shutdown_s):
                return
        dispatcher.cancel_all()
        if not dispatcher.wait_idle(self._shutdown_s):
            dispatcher.abandon("The flow run ended before this run could be stopped.")
