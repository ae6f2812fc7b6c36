"""What a run's transaction leaves for the flow's, and how it is left.

A run on a worker whose flow has a transaction open is staged only; what its transaction holds
travels with its result as a :class:`StagedRecord`. What becomes of it then is in
`driver/transactions.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from prefect._internal.result_records import ResultRecord
from prefect.transactions import BaseTransaction, CommitMode, IsolationLevel, Transaction
from prefect.utilities.asyncutils import run_coro_as_sync
from pydantic import PrivateAttr

__all__ = ["StagedRecord", "in_transaction", "staged"]

in_transaction: ContextVar[bool] = ContextVar("deepflow_in_transaction", default=False)
"""On a worker: whether the flow had a transaction open when it submitted this run."""


class StagedRecord(ResultRecord[Any]):
    """A run's result with what its transaction held, on its way to the flow's transaction."""

    _values: dict[str, Any] = PrivateAttr(default_factory=dict)
    _writes: bool = PrivateAttr(default=False)
    _run: bytes = PrivateAttr(default=b"")
    """The pickled task run, for its end to be told anew if it is rolled back."""

    @classmethod
    def of(cls, record: ResultRecord[Any], transaction: BaseTransaction) -> StagedRecord:
        """The record of a run whose transaction is staged and has not committed.

        Transactions within it (of tasks that the run has called) commit here and now.
        """
        for child in transaction.children:
            ended: Any = child  # of either kind: Prefect's base has no `commit`
            committed = ended.commit()
            if inspect.iscoroutine(committed):
                run_coro_as_sync(committed)
        staged = cls.model_construct(metadata=record.metadata, result=record.result)
        staged._values = dict(transaction._stored_values)
        staged._writes = bool(
            transaction.write_on_commit and transaction.key and transaction.store is not None
        )
        return staged


@contextmanager
def staged() -> Generator[None, None, None]:
    """For the time of the block, transactions are children of one that never commits."""
    outer = Transaction(commit_mode=CommitMode.LAZY, isolation_level=IsolationLevel.READ_COMMITTED)
    token = BaseTransaction.__var__.set(outer)
    try:
        yield
    finally:
        BaseTransaction.__var__.reset(token)
