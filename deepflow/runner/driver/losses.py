"""What is done when the infrastructure breaks a job: a lost worker, scheduler, context or input.

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
from deepflow.runner.driver.items import Item, SentJob
from deepflow.runner.driver.readiness import Gate
from deepflow.runner.driver.settling import Settling

if TYPE_CHECKING:
    from distributed import Client
    from prefect.client.schemas.objects import State

    from deepflow.settings import Settings

_MAX_SPARED = 10


class Losses:
    """Decides what becomes of the runs of a broken job. Not to be used in a turn."""

    def __init__(
        self, client: Client, settings: Settings, board: Board, gate: Gate, settling: Settling
    ) -> None:
        self._client = client
        self._settings = settings
        self._board = board
        self._gate = gate
        self._settling = settling

    def lost(self, job: SentJob, error: BaseException | None) -> None:
        """The infrastructure broke `job`: what is open of it goes again, or gets its end."""
        with self._board.turn():
            for item in job.open_items():
                self._lost_item(item, job, error)

    def _lost_item(self, item: Item, job: SentJob, error: BaseException | None) -> None:
        if any(not upstream.is_done for upstream in item.upstreams):
            # Its input was lost before it; it goes again when the input is settled.
            self._gate.send_once_settled(item)
        elif item.is_cancelling or self._board.is_closing:
            self._settling.cancel_unbegun(item)
        elif (failed := _failed_on_cluster(item)) is not None:
            self._crash(item, f"input_failed: a Dask future among its arguments failed: {failed}")
        elif isinstance(error, KilledWorker) and error.task != job.key:
            self._input_lost(item, error)
        elif _is_innocent(item, job, error):
            item.n_spared += 1
            self._send_again(item, in_words(error, 1))
        else:
            item.failures += 1
            cause = in_words(error, item.failures)
            # Which one of a group broke its worker is not known: each is tried alone.
            may_retry = item.failures <= self._settings.infra_retries
            if may_retry and not self._is_hopeless(error):
                self._send_again(item, cause)
            else:
                self._crash(item, cause)

    def _input_lost(self, item: Item, error: KilledWorker) -> None:
        """A Dask task that `item` depends on was the death of its workers."""
        gone = [
            up.name
            for up in item.upstreams
            if up.blob is None and up.job is not None and up.job.key == error.task
        ]
        if not gone:
            self._gate.send_once_settled(item)
            return
        how = in_words(error, error.allowed_failures + 1).partition(": ")[2]
        self._crash(
            item,
            f"input_lost: its input {gone[0]!r} was lost with its worker and could not be computed "
            f"again: {how}",
        )

    def _is_hopeless(self, error: BaseException | None) -> bool:
        """Whether trying again cannot help: no scheduler to try, or code that will not load."""
        if self._client.status in ("closed", "closing"):
            return True
        return isinstance(error, (ImportError, AttributeError, TypeError, pickle.UnpicklingError))

    def _send_again(self, item: Item, cause: str) -> None:
        kind, _, message = cause.partition(": ")
        metrics.inc("deepflow_infra_retries_total", cause=kind)
        if kind == "context_missing":
            assert item.code is not None, "an open item has its code"
            item.template.ship_again(item.code)
        item.job = None
        item.rerun = f"Started again: {message}"
        self._board.log_once("again", f"Task run {item.name!r} is started again: {cause}")
        self._gate.send_when_ready(item)

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
            state: State[Any] = AwaitingRetry(scheduled_time=due, message=message)
            item.failures = item.n_spared = 0
            self._settling.retry_after_crash(item, task_run, retries + 1, state)
            return
        self._board.logger.error("Task run %r crashed: %s", item.name, message)
        self._settling.settle_here(item, Crashed(message=message), task_run)


def _failed_on_cluster(item: Item) -> str | None:
    """What broke a value that the user had computed on the cluster and passed; None: nothing."""
    for one in (*item.references, *item.template.static_references):
        if isinstance(one, Future) and one.status in ("error", "cancelled"):
            error = one.exception() if one.status == "error" else None
            return f"{one.key!r} is {one.status} ({type(error).__name__}: {error})"
    return None


def _is_innocent(item: Item, job: SentJob, error: BaseException | None) -> bool:
    """Whether a run was only near when its worker died: it had not begun, or had ended; or whether
    it was to begin with an input that turned out lost.

    Bounded, for a worker may also die of what comes before a run's beginning.
    """
    if isinstance(error, ValueLostError):
        return item.n_spared < _MAX_SPARED
    return (
        isinstance(error, KilledWorker)
        and job.is_announced
        and job.last_begun is not item
        and item.n_spared < _MAX_SPARED
    )


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
