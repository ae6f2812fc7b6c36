"""A flow's transaction and the runs submitted in it.

Under Prefect's thread pool a run's transaction becomes a child of the one that the flow has open:
the run's result is written, and its `on_commit` hooks run, when the flow's transaction commits; its
`on_rollback` hooks run when that rolls back. A run on a worker has no such parent. So it is told
that the flow has one: there it is staged only, and what its transaction holds travels with its
result. In the driver, the flow's transaction has one child for all of its runs (`RunsOnWorkers`),
which commits those that are done in the order in which they ended, or rolls them back in reverse.

Not as in the thread pool: a run that fails rolls the flow's transaction back only if the flow lets
its exception out of the `with` block; and a run cannot read what the flow has `set`. Transactions
that are `SERIALIZABLE` hold a lock, so their runs commit on the worker, as they end; so do those of
runs that tasks submit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect.context import TaskRunContext
from prefect.results import get_result_store
from prefect.transactions import (
    BaseTransaction,
    CommitMode,
    IsolationLevel,
    Transaction,
    TransactionState,
    get_transaction,
)
from pydantic import PrivateAttr

from deepflow.backend.contract import TRANSACTIONS, may_use
from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.runner.staged import StagedRecord

if TYPE_CHECKING:
    from prefect.tasks import Task

    from deepflow.runner.driver.future import DeepflowFuture

STAGED_MODES = (CommitMode.LAZY, CommitMode.OFF)


def open_transaction() -> Transaction | None:
    """The transaction that the flow's own code has open now, where runs can be its children."""
    transaction = get_transaction()
    if (
        not isinstance(transaction, BaseTransaction)
        or TaskRunContext.get() is not None
        or transaction.commit_mode not in STAGED_MODES
        or transaction.isolation_level == IsolationLevel.SERIALIZABLE
        or not may_use(TRANSACTIONS)
    ):
        return None
    return transaction  # type: ignore[return-value]


class RunsOnWorkers(Transaction):
    """The child of a flow's transaction that stands for the runs submitted in it."""

    _futures: list[Any] = PrivateAttr(default_factory=list)
    _runs: list[tuple[Transaction, Any, bytes]] = PrivateAttr(default_factory=list)

    def _children(self) -> list[Any]:
        """A transaction for each run that has completed, in the order in which they ended."""
        found: list[tuple[Any, Transaction]] = []
        self._runs = []
        for future in self._futures:
            if not future.done():
                continue
            state = future.state
            if not state.is_completed() or not isinstance(state.data, StagedRecord):
                continue
            child = self._child(future._item.template.prefect_task, state)
            found.append((state.timestamp, child))
            self._runs.append((child, future, state.data._run))
        found.sort(key=lambda pair: pair[0])
        return [child for _, child in found]

    def _child(self, task: Task[Any, Any], state: Any) -> Transaction:
        from deepflow.runner.results.storage import DeepflowResultStore

        record = state.data
        store = None
        if record._writes:
            here: Any = get_result_store()
            store = DeepflowResultStore.of(here.update_for_task(task, _sync=True))
        child = Transaction(
            key=record.metadata.storage_key if record._writes else None,
            store=store,
            commit_mode=self.commit_mode,
            isolation_level=IsolationLevel.READ_COMMITTED,
            on_commit_hooks=list(task.on_commit_hooks),
            on_rollback_hooks=list(task.on_rollback_hooks),
            logger=self.logger,
        )
        child._stored_values = record._values
        child._staged_value = record
        child.state = TransactionState.STAGED
        return child

    def commit(self) -> bool:
        """Commit the runs that are done."""
        if self.state not in (TransactionState.ROLLED_BACK, TransactionState.COMMITTED):
            self.children = self._children()
        return super().commit()

    def rollback(self) -> bool:
        """Roll the runs that are done back."""
        if self.state not in (TransactionState.ROLLED_BACK, TransactionState.COMMITTED):
            self.children = self._children()
        done = super().rollback()
        for child, future, run in self._runs:
            if child.state == TransactionState.ROLLED_BACK and run:
                future._dispatcher.tell_rolled_back(run)
        return done


def take_part(futures: list[DeepflowFuture[Any]]) -> None:
    """Make runs, submitted just now, part of the transaction that the flow has open."""
    transaction = open_transaction()
    if transaction is None:
        return
    for child in transaction.children:
        if isinstance(child, RunsOnWorkers):
            child._futures.extend(futures)
            return
    child = RunsOnWorkers(
        commit_mode=transaction.commit_mode,
        isolation_level=IsolationLevel.READ_COMMITTED,
        logger=transaction.logger,
        state=TransactionState.STAGED,
    )
    child._futures.extend(futures)
    transaction.add_child(child)


def remark_on(task: Task[Any, Any]) -> str | None:
    """What is to be said of submitting `task` now; None where its hooks miss nothing."""
    if (
        get_transaction() is None
        or open_transaction() is not None
        or not (task.on_rollback_hooks or task.on_commit_hooks)
    ):
        return None
    fell_back(Fallback.RUN_OUTSIDE_OF_TRANSACTION)
    return (
        f"Task {task.name!r} has rollback or commit hooks and is submitted within a transaction "
        "that does not reach its run on a worker (it commits eagerly, is SERIALIZABLE, or belongs "
        "to a task): the run commits on its own when it ends, and is not rolled back with that "
        "transaction. Call the task instead of submitting it, or undo what it did in an `except` "
        "around the transaction"
    )
