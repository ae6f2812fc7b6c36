"""A flow's transaction and the runs submitted in it.

Under Prefect's thread pool a run's transaction becomes a child of the one that the flow has open:
the run's result is written, and its `on_commit` hooks run, when the flow's transaction commits; its
`on_rollback` hooks run when that rolls back. On a worker there is no parent: a run's transaction
commits as the run ends, there, and nothing of it is rolled back later. That is said once for a
task that has such hooks, for the user would wait for them in vain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect.transactions import get_transaction

from deepflow.observe import metrics

if TYPE_CHECKING:
    from prefect.tasks import Task


def remark_on(task: Task[Any, Any]) -> str | None:
    """What is to be said of submitting `task` now; None where its hooks miss nothing."""
    if get_transaction() is None or not (task.on_rollback_hooks or task.on_commit_hooks):
        return None
    metrics.inc("deepflow_fallbacks_total", kind="run_outside_of_transaction")
    return (
        f"Task {task.name!r} has rollback or commit hooks and is submitted within a transaction, "
        "which does not reach its run on a worker: the run commits on its own when it ends, and is "
        "not rolled back with the flow's transaction. Call the task instead of submitting it, or "
        "undo what it did in an `except` around the transaction"
    )
