"""The sessions through which tasks on this worker submit further runs.

A session is the driver's code at work inside of a worker. Each belongs to the driver of a flow run,
and is closed when that driver leaves, or is lost: then the worker knows the driver's topic, and
nothing else of it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from deepflow.decide.events import TasksNamed

__all__ = ["NestedSession", "close_nested", "nested_session"]


class NestedSession(Protocol):
    """What is known here of such a session."""

    def on_message(self, event: Any) -> None:
        """Take what a worker has sent to the topic of this worker's Dask client."""

    def close_nested(self) -> list[TasksNamed]:
        """End it; returns what the runs are called that were submitted through it."""


S = TypeVar("S", bound=NestedSession)

_sessions: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def nested_session(client: Any, events_topic: str, make: Callable[[], S]) -> S:
    """The one session of a worker's Dask client for the driver of a topic; made on first use."""
    with _lock:
        sessions = _sessions.get(client)
        if sessions is None:
            sessions = _sessions[client] = {}
            # A client has one handler for a topic, so the sessions share it.
            client.subscribe_topic(client.id, partial(_hear, sessions))
        session: S | None = sessions.get(events_topic)
        if session is None:
            session = sessions[events_topic] = make()
    return session


def _hear(sessions: dict[str, NestedSession], event: Any) -> None:
    for session in list(sessions.values()):
        session.on_message(event)


def close_nested(events_topic: str) -> list[TasksNamed]:
    """Close this process's sessions for the driver of a topic.

    Returns what the runs are called that were submitted through them.
    """
    with _lock:
        closing = [of.pop(events_topic) for of in _sessions.values() if events_topic in of]
    return [named for session in closing for named in session.close_nested()]
