"""Log lines on their way to Prefect's server: each can be sent, whatever it says.

Prefect sends lines in batches of many; one that is not UTF-8 takes its whole batch with it.
"""

from __future__ import annotations

import logging

from prefect.logging.handlers import APILogHandler

from deepflow.observe.text import CleanFormatter


def clean_api_logs() -> None:
    """Let every handler that sends lines to the server format them clean; again does nothing."""
    loggers = [logging.getLogger(), *list(logging.getLogger().manager.loggerDict.values())]
    for logger in loggers:
        for handler in list(getattr(logger, "handlers", ())):
            if isinstance(handler, APILogHandler) and not isinstance(
                handler.formatter, CleanFormatter
            ):
                handler.setFormatter(CleanFormatter(handler.formatter))
