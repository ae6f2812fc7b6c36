"""Stopping runs: what is queued at once, what runs at the next chance, what does not stop later.

A run that a worker has begun is left to that worker, which interrupts it. One that has not stopped
after a while gets its state here and is abandoned, for a thread cannot be killed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.states import Cancelled, Crashed

from deepflow.observe.fallbacks import Fallback
from deepflow.runner.driver.board import Board
from deepflow.runner.driver.items import Item
from deepflow.runner.driver.lifecycle import Effect, Event, RunState
from deepflow.runner.driver.reactor import Reactor
from deepflow.runner.driver.settling import Said, Settling, cancelled_before_it_began
from deepflow.runner.worker_side import WorkerSide

if TYPE_CHECKING:
    from distributed import Client

_GRACE_S = 5.0


class Cancelling:
    """Stops items. Methods may be called from any thread, but not in a turn."""

    def __init__(
        self,
        client: Client,
        board: Board,
        reactor: Reactor,
        settling: Settling,
        worker_side: WorkerSide,
        *,
        events_topic: str,
    ) -> None:
        self._client = client
        self._events_topic = events_topic
        self._board = board
        self._reactor = reactor
        self._settling = settling
        self._cancel_runs = worker_side.cancel_runs

    def cancel(self, items: Iterable[Item]) -> None:
        """Stop these runs. Returns once those that were not sent have their state."""
        sent: list[Item] = []
        with self._board.turn():
            for item in items:
                said = cancelled_before_it_began()
                if Effect.TELL_WORKER in self._settling.handle(item, Event.CANCEL, said):
                    sent.append(item)
        if not sent:
            return
        self._tell_workers([item.run_id for item in sent])
        whole = {
            item.batch.key: item.batch.future
            for item in sent
            if item.batch is not None and all(_is_unwanted(i) for i in item.batch.items)
        }
        self._reactor.soon(partial(self._cancel_queued, list(whole.values())))
        self._reactor.at(time.time() + _GRACE_S, partial(self._give_up, sent))

    def _tell_workers(self, run_ids: list[UUID]) -> None:
        try:
            self._client.run(
                self._cancel_runs, self._events_topic, run_ids, wait=False, on_error="ignore"
            )
        except Exception as exc:  # noqa: BLE001 - runs that go on are given up after a while
            self._board.fell_back(
                Fallback.CANCEL_NOT_DELIVERED,
                f"The workers could not be told of a cancellation: {exc!r}",
            )

    def _cancel_queued(self, futures: list[Any]) -> None:
        """Take what no worker has begun out of Dask's hands.

        A batch that runs is left to its worker, which has been told: were its key cancelled, Dask
        would drop the report's context but let the thread run on.
        """
        futures = [f for f in futures if f is not None and f.status == "pending"]
        if not futures:
            return
        running = self._processing()
        queued = [f for f in futures if f.key not in running]
        if queued:
            self._client.cancel(queued, force=True)

    def _give_up(self, items: list[Item]) -> None:
        """Runs that did not stop in time get their state here; their threads cannot be killed."""
        futures: list[Any] = []
        with self._board.turn():
            for item in items:
                if item.is_done:
                    continue
                if item.batch is not None and item.batch.future is not None:
                    futures.append(item.batch.future)
                why = "Cancelled; it did not stop in time and was abandoned."
                self._settling.handle(item, Event.GIVE_UP, Said(state=Cancelled(message=why)))
        if futures and self._client.status == "running":
            self._client.cancel(futures, force=True)

    def abandon(self, reason: str) -> None:
        """Give every open item a Crashed state: nothing will be heard of them any more."""
        with self._board.turn():
            for item in self._board.open_items():
                self._settling.handle(item, Event.ABANDON, Said(state=Crashed(message=reason)))

    def not_begun(self) -> list[Item]:
        """Open items that no worker has begun, as far as Dask can tell."""
        running = self._processing()
        return [
            i for i in self._board.open_items() if i.batch is None or i.batch.key not in running
        ]

    def _processing(self) -> set[Any]:
        """Keys that are at workers; none where Dask cannot be asked."""
        try:
            return {key for keys in self._client.processing().values() for key in keys}
        except Exception as exc:  # noqa: BLE001 - a client that is going raises many things
            self._board.fell_back(
                Fallback.PROCESSING_UNKNOWN, f"Dask does not say what its workers do: {exc!r}"
            )
            return set()


def _is_unwanted(item: Item) -> bool:
    return item.is_done or item.state is RunState.CANCELLING
