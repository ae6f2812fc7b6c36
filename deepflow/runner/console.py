"""What a terminal shows of task runs: everything but a line for each that went well.

Prefect's engine ends each task run with a line, `Finished in state Completed()`. From workers that
the driver has started on its own machine these lines bury what a person wants to read, a thousand
of them after a `map` of a thousand. They still go to the server, so the UI shows them; failures,
retries, cached states, and whatever tasks log or print themselves are printed as before.

Nothing is left out where somebody has configured Prefect's logging: `PREFECT_LOGGING_LEVEL` (also
`INFO`), or a logging file of their own; nor on workers that somebody else has started, whose lines
go to that somebody's terminal or file.
"""

from __future__ import annotations

import logging

from prefect.logging.handlers import PrefectConsoleHandler
from prefect.settings import get_current_settings

from deepflow.backend.clusters.local import is_local

__all__ = ["are_successes_wanted", "leave_out_successes"]


class _WithoutSuccesses(logging.Filter):
    """Lets every record pass but the engine's word that a task run is Completed."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (
            record.name == "prefect.task_runs"
            and record.levelno == logging.INFO
            and isinstance(record.msg, str)
            and record.msg.startswith("Finished in state Completed(")
        )


def are_successes_wanted(cluster: object) -> bool:
    """Whether workers are to print those lines.

    They are where somebody has configured what Prefect logs in this process, and where `cluster`
    does not start its workers on this machine (None: it is known by its address alone).
    """
    if not is_local(cluster):
        return True
    settings = get_current_settings()
    return "level" in settings.logging.model_fields_set or settings.logging.config_path.exists()


def leave_out_successes() -> None:
    """Leave those lines out on the terminal of this process. Again does nothing."""
    for handler in logging.getLogger().handlers:
        is_new = not any(isinstance(one, _WithoutSuccesses) for one in handler.filters)
        if isinstance(handler, PrefectConsoleHandler) and is_new:
            handler.addFilter(_WithoutSuccesses())
