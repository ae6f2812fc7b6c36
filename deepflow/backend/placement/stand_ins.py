"""The scheduler's methods that placement stands in for, on one scheduler instance.

What is replaced, in `distributed/scheduler.py`:

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

Nothing is replaced unless all of them are as this was written for: `backend/contract.py` has the
digests of their sources. Nothing is patched in a module, and `undo` puts everything back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Scheduler

__all__ = ["Recs", "StandIns"]

Recs = tuple[Any, Any, Any]
"""Recommendations, messages to clients, messages to workers; as Dask's transitions give them."""
Transition = Callable[..., Recs]


class StandIns:
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
