"""What Prefect's own code sends is clean: requests, and lines on their way to the server."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prefect.logging.handlers import APILogHandler

from deepflow.observe.text import CleanFormatter
from deepflow.runner.outgoing import clean_api_logs, clean_requests

NOT_UTF8 = os.fsdecode(b"caf\xe9.csv")
SHOWN = "caf\\udce9.csv"


class Client:
    """As much of a Prefect client as is looked at."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self._client = httpx.Client(
            base_url="http://server", transport=httpx.MockTransport(self._answer)
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(json.loads(request.content))
        return httpx.Response(200)

    def say(self, body: Any) -> None:
        self._client.post("/flow_runs/set_state", json=body)


def test_a_request_with_odd_text_arrives_as_escapes_and_others_as_they_are() -> None:
    client = Client()
    with pytest.raises(UnicodeEncodeError):
        client.say({"message": NOT_UTF8})
    for _ in range(2):
        clean_requests(client)
    client.say({"message": NOT_UTF8, "states": [{NOT_UTF8: 1}]})
    client.say({"message": "a\x00b", "n": 1})
    assert client.bodies == [
        {"message": SHOWN, "states": [{SHOWN: 1}]},
        {"message": "a\x00b", "n": 1},
    ]


def test_a_client_of_another_make_is_left_alone() -> None:
    clean_requests(object())
    clean_requests(None)


@pytest.fixture
def handler() -> Iterator[APILogHandler]:
    made = APILogHandler()
    made.setFormatter(logging.Formatter("line: %(message)s"))
    logger = logging.getLogger("deepflow.tests.outgoing")
    logger.addHandler(made)
    yield made
    logger.removeHandler(made)


def test_handlers_that_send_to_the_server_format_clean_lines(handler: APILogHandler) -> None:
    for _ in range(2):
        clean_api_logs()
    assert isinstance(handler.formatter, CleanFormatter)
    assert not isinstance(handler.formatter.inner, CleanFormatter)
    record = logging.LogRecord("a", 20, "f", 1, "the file %s", (NOT_UTF8,), None)
    assert handler.format(record) == f"line: the file {SHOWN}"
