"""What Prefect's own code says to its server in this process: log lines and requests, made clean.

Prefect sends lines in batches of many; one that is not UTF-8 takes its whole batch with it. And a
flow that fails with such a text could not be told of at all: its run would stay `Running`.
"""

from __future__ import annotations

import logging
from typing import Any

from prefect.logging.handlers import APILogHandler

from deepflow.backend.contract import ODD_TEXT, may_use
from deepflow.observe.text import CleanFormatter, cleaned


def clean_api_logs() -> None:
    """Let every handler that sends lines to the server format them clean; again does nothing."""
    loggers = [logging.getLogger(), *list(logging.getLogger().manager.loggerDict.values())]
    for logger in loggers:
        for handler in list(getattr(logger, "handlers", ())):
            if isinstance(handler, APILogHandler) and not isinstance(
                handler.formatter, CleanFormatter
            ):
                handler.setFormatter(CleanFormatter(handler.formatter))


def clean_requests(client: Any) -> None:
    """Let a Prefect client, sync or async, send what it could not encode as escapes.

    Nothing changes for what it can encode. Again does nothing.
    """
    sender = getattr(client, "_client", None)
    if sender is None or "build_request" in vars(sender) or not may_use(ODD_TEXT):
        return
    build = sender.build_request

    def build_clean(*arguments: Any, json: Any = None, **more: Any) -> Any:
        try:
            return build(*arguments, json=json, **more)
        except UnicodeEncodeError:
            return build(*arguments, json=cleaned(json, "request"), **more)

    sender.build_request = build_clean
