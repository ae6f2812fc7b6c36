"""What is done when the infrastructure breaks a batch: a lost worker, scheduler, context or input.

A run that was only near is spared. One that may be to blame goes again, alone, as often as
`infra_retries` allows; then Prefect's own `retries` apply, and at last the run is `Crashed` with
the cause in words. The scheduler reports every death (`backend/scheduler_plugin.py`), so that they
are counted here, for each run.
"""

from __future__ import annotations

import pickle
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from distributed import Future, KilledWorker
from prefect.states import AwaitingRetry, Crashed
from prefect.types import _datetime as prefect_datetime

from deepflow.errors import ContextMissingError, ValueLostError
from deepflow.observe import metrics
from deepflow.runner.driver.board import Board
from deepflow.runner.driver.items import Item, SentBatch
from deepflow.runner.driver.lifecycle import Event, Loss, RunState, event_of_loss
from deepflow.runner.driver.settling import Said, Settling

if TYPE_CHECKING:
    from distributed import Client
    from prefect.client.schemas.objects import State

    from deepflow.settings import Settings


class Losses:
    """Says what a broken Dask task is to each of its runs. Not to be used in a turn."""

    def __init__(
        self, client: Client, settings: Settings, board: Board, settling: Settling
    ) -> None:
        self._client = client
        self._settings = settings
        self._board = board
        self._settling = settling

    def lost(self, batch: SentBatch, error: BaseException | None) -> None:
        """The infrastructure broke `batch`: what is open of it goes again, or gets its end."""
        if isinstance(error, ContextMissingError):
            self._ship_again(batch)
        with self._board.turn():
            for item in batch.open_items():
                self._lost_item(item, batch, error)

    def _ship_again(self, batch: SentBatch) -> None:
        """Put back on the scheduler what it has lost, before anything goes again."""
        with self._board.turn():
            # All runs of a Dask task are of one call, which has one context and one code.
            lost = [(item.template, item.code) for item in batch.open_items()][:1]
        for template, code in lost:
            assert code is not None, "an open item has its code"
            template.ship_again(code)

    def _lost_item(self, item: Item, batch: SentBatch, error: BaseException | None) -> None:
        is_unwanted = item.state is RunState.CANCELLING or self._board.is_closing
        is_input_open = any(not upstream.is_done for upstream in item.upstreams)
        broken = None
        if not (is_unwanted or is_input_open):  # else it goes nowhere now, whatever is broken
            broken = self._broken_input(item, batch, error)
            is_of_other = isinstance(error, KilledWorker) and error.task != batch.key
            is_input_open = is_of_other and broken is None
        loss = Loss(
            is_unwanted=is_unwanted,
            is_input_open=is_input_open,
            is_input_broken=broken is not None,
            is_nearby=_is_nearby(item, batch, error),
            is_hopeless=self._is_hopeless(error),
        )
        event = event_of_loss(item.life, loss, self._settings.infra_retries)
        if event is Event.LOST_NEARBY:
            self._send_again(item, event, in_words(error, 1))
        elif event is Event.LOST_TO_BLAME:
            # Which one of a group broke its worker is not known: each is tried alone.
            self._send_again(item, event, in_words(error, item.life.failures + 1))
        elif event is Event.LOST_FOR_GOOD:
            self._crash(item, broken or in_words(error, item.life.failures + 1))
        else:
            self._settling.handle(item, event)

    def _broken_input(
        self, item: Item, batch: SentBatch, error: BaseException | None
    ) -> str | None:
        """`cause: sentence` for a value that the run needs and that cannot be made; else None."""
        failed = _failed_on_cluster(item)
        if failed is not None:
            return f"input_failed: a Dask future among its arguments failed: {failed}"
        if not isinstance(error, KilledWorker) or error.task == batch.key:
            return None
        # A Dask task that the run depends on was the death of its workers.
        gone = [
            up.name
            for up in item.upstreams
            if up.blob is None and up.batch is not None and up.batch.key == error.task
        ]
        if not gone:
            return None
        how = in_words(error, error.allowed_failures + 1).partition(": ")[2]
        return (
            f"input_lost: its input {gone[0]!r} was lost with its worker and could not be computed "
            f"again: {how}"
        )

    def _is_hopeless(self, error: BaseException | None) -> bool:
        """Whether trying again cannot help: no scheduler to try, or code that will not load."""
        if self._client.status in ("closed", "closing"):
            return True
        return isinstance(error, (ImportError, AttributeError, TypeError, pickle.UnpicklingError))

    def _send_again(self, item: Item, event: Event, cause: str) -> None:
        kind, _, message = cause.partition(": ")
        metrics.inc("deepflow_infra_retries_total", cause=kind)
        item.rerun = f"Started again: {message}"
        self._board.log_once("again", f"Task run {item.name!r} is started again: {cause}")
        self._settling.handle(item, event)

    def _crash(self, item: Item, cause: str) -> None:
        """Prefect's `retries` apply to what the infrastructure broke for good, too."""
        task = item.template.prefect_task
        message = cause.partition(": ")[2]
        task_run, retries, _ = (
            pickle.loads(item.resume)
            if item.resume is not None
            else (item.task_run(self._board.flow_run_id), 0, 0.0)
        )
        if retries < task.retries and self._client.status == "running":
            delay_s = _retry_delay_s(task.retry_delay_seconds, retries)
            due = prefect_datetime.now("UTC") + timedelta(seconds=delay_s)
            waiting: State[Any] = AwaitingRetry(scheduled_time=due, message=message)
            said = Said(state=waiting, task_run=task_run, n_retries=retries + 1)
            self._settling.handle(item, Event.LOST_BUT_RETRIES, said)
            return
        self._board.logger.error("Task run %r crashed: %s", item.name, message)
        said = Said(state=Crashed(message=message), task_run=task_run)
        self._settling.handle(item, Event.LOST_FOR_GOOD, said)


def _failed_on_cluster(item: Item) -> str | None:
    """What broke a value that the user had computed on the cluster and passed; None: nothing."""
    for one in (*item.references, *item.template.static_references):
        if isinstance(one, Future) and one.status in ("error", "cancelled"):
            error = one.exception() if one.status == "error" else None
            return f"{one.key!r} is {one.status} ({type(error).__name__}: {error})"
    return None


def _is_nearby(item: Item, batch: SentBatch, error: BaseException | None) -> bool:
    """Whether a run was only near when its worker died: it had not begun, or had ended; or whether
    it was to begin with an input that turned out lost.
    """
    if isinstance(error, ValueLostError):
        return True
    return isinstance(error, KilledWorker) and batch.is_announced and batch.last_begun is not item


def in_words(error: BaseException | None, failures: int) -> str:
    """`cause: sentence` for what broke a run."""
    if isinstance(error, KilledWorker):
        return (
            f"worker_lost: {failures} worker{'s' if failures > 1 else ''} died while running it, "
            f"the last one at {error.last_worker.address}. It may need more memory than a worker "
            "has, or crash the interpreter; look at the workers' logs"
        )
    if isinstance(error, ValueLostError):
        return f"value_lost: {error}"
    if isinstance(error, ContextMissingError):
        return f"context_missing: {error}"
    if error is None:
        return "unknown: Dask reported neither a result nor a cause"
    name = type(error).__name__
    if "Cancelled" in name:
        return (
            f"connection_lost: Dask gave it up ({error}); the scheduler was lost or restarted, "
            "or data it needed is gone"
        )
    return f"worker_error: {name}: {error}"


def _retry_delay_s(delays: Any, retries: int) -> float:
    if not delays:
        return 0.0
    if isinstance(delays, (int, float)):
        return float(delays)
    return float(delays[min(retries, len(delays) - 1)])
