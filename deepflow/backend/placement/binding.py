"""The scheduler's methods that placement stands in for, bound on one scheduler instance.

What is replaced, in distributed 2026.8 (`scheduler.py`):

- four entries of `SchedulerState._TRANSITIONS_TABLE`, in a copy of the table on the instance:
  `waiting → processing`, `waiting → queued`, `queued → processing`, `no-worker → processing`. Dask
  dispatches through this table, so that overriding the methods themselves would do nothing;
- `stimulus_queue_slots_maybe_opened`, by which Dask hands out queued tasks;
- `transitions`, only to look for ready tasks after it (a graph's arrival does not call the above);
- `validate_queued`, since tasks confined to some workers are queued too;
- `handle_worker_status_change` and `remove_plugin`, and the stream handlers `long-running` and
  `worker-status-change`, only to learn of a worker that pauses, of a thread that a task has left,
  and of the end of the plugin;
- the stream handler `steal-response`, for the answers to our own requests.

Each is replaced only if it is, to the letter, one that this was written for: the sources' digests
are compared at the start. Nothing is patched in a module, and `undo` puts everything back.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from distributed import Scheduler

__all__ = ["Binding", "differences"]

# Of the source text of each method leant on: the versions of distributed that were tested.
_WRITTEN_FOR: Final[dict[str, frozenset[str]]] = {
    "_transition_waiting_processing": frozenset({"c41db55c6ded"}),
    "_transition_waiting_queued": frozenset({"1919b8fb747c"}),
    "_transition_queued_processing": frozenset({"3ad57435f397"}),
    "_transition_queued_released": frozenset({"34bb08d2dbe1"}),
    "_transition_no_worker_processing": frozenset({"ddcc0c54d03d"}),
    "stimulus_queue_slots_maybe_opened": frozenset({"3e294d5d9a36"}),
    "transitions": frozenset({"0566a399a1d1"}),
    "_transitions": frozenset({"37dd79713533"}),
    "_add_to_processing": frozenset({"8d51f63d11c6"}),
    "decide_worker_non_rootish": frozenset({"7bb96b22be76"}),
}

Recs = tuple[Any, Any, Any]
"""Recommendations, messages to clients, messages to workers; as Dask's transitions give them."""
Transition = Callable[..., Recs]


def digest_of(method: Callable[..., Any]) -> str:
    """A short digest of a function's source; empty where the source is not to be had."""
    try:
        source = inspect.getsource(method)
    except (OSError, TypeError):
        return ""
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def differences(scheduler: Scheduler) -> list[str]:
    """The methods of this scheduler that are not the ones this was written for."""
    found = []
    for name, known in _WRITTEN_FOR.items():
        method = getattr(type(scheduler), name, None)
        if method is None:
            found.append(f"{name} is missing")
        elif digest_of(method) not in known:
            found.append(f"{name} is another one")
    return found


class Binding:
    """What was replaced on one scheduler; `undo` puts it back."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        transitions: dict[tuple[str, str], Transition],
        methods: dict[str, Callable[..., Any]],
        stream_handlers: dict[str, Callable[..., Any]],
    ) -> None:
        self._scheduler = scheduler
        self._methods = tuple(methods)
        self._handlers = {name: scheduler.stream_handlers.get(name) for name in stream_handlers}
        table: Any = scheduler._TRANSITIONS_TABLE
        self.stock: dict[tuple[str, str], Transition] = dict(table)
        # On the instance: the class's table stays as it is.
        vars(scheduler)["_TRANSITIONS_TABLE"] = {**self.stock, **transitions}
        for name, method in methods.items():
            setattr(scheduler, name, method)
        scheduler.stream_handlers.update(stream_handlers)

    def undo(self) -> None:
        """The scheduler is as it was."""
        scheduler = self._scheduler
        scheduler.__dict__.pop("_TRANSITIONS_TABLE", None)
        for name in self._methods:
            scheduler.__dict__.pop(name, None)
        for name, handler in self._handlers.items():
            if handler is None:
                scheduler.stream_handlers.pop(name, None)
            else:
                scheduler.stream_handlers[name] = handler
