"""The ways that are taken because the better one failed are counted, and said once.

`deepflow_fallbacks_total{kind=...}` counts them. What is said goes to the log the first time only,
for a cause that comes back would bury everything else.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import Any, Final

from deepflow.decide.fallbacks import Fallback
from deepflow.observe import metrics

__all__ = ["Fallback", "SaidOnce", "fell_back"]

Logger = logging.Logger | logging.LoggerAdapter[Any]

_MOST_CAUSES: Final = 1_000


class SaidOnce:
    """Remembers what was said, so that it is said once. Methods may be called from any thread.

    Bounded: after a thousand different things nothing more is said.
    """

    def __init__(self) -> None:
        self._said: set[object] = set()
        self._lock = threading.Lock()

    def is_new(self, cause: object) -> bool:
        """Whether this is the first time for this cause."""
        with self._lock:
            if cause in self._said or len(self._said) >= _MOST_CAUSES:
                return False
            self._said.add(cause)
            return True


_process: Final = SaidOnce()


def fell_back(
    kind: Fallback,
    logger: Logger | None = None,
    message: str = "",
    *arguments: object,
    once: SaidOnce | None = None,
    cause: object = None,
    error: BaseException | None = None,
) -> None:
    """Count a fallback; with a logger, say it as a warning the first time.

    Args:
        kind: Which.
        logger: Where it is said; None: it is only counted.
        message: With its `arguments` as `logging` takes them.
        once: Who remembers what was said: a flow run's own, where each flow run is to be told;
            else this process.
        cause: What makes it another fallback than one of the same kind; else the kind alone does.
        error: Is said with its traceback, as an error.
    """
    metrics.inc("deepflow_fallbacks_total", kind=kind.value)
    if logger is None or not (once or _process).is_new((kind, cause)):
        return
    level = logging.WARNING if error is None else logging.ERROR
    with suppress(Exception):  # a log handler's trouble
        logger.log(level, message, *arguments, exc_info=error)
