"""What is said of runs that a flow's transaction does not reach."""

from __future__ import annotations

from prefect import task
from prefect.transactions import CommitMode, IsolationLevel, transaction

from deepflow.observe import metrics
from deepflow.runner.driver.transactions import open_transaction, remark_on


@task
def undone() -> None:
    pass


@undone.on_rollback
def undo(_: object) -> None:
    pass


@task
def plain() -> None:
    pass


def test_a_task_with_hooks_is_remarked_on_where_its_runs_are_no_part_of_the_transaction() -> None:
    before = metrics.value("deepflow_fallbacks_total", kind="run_outside_of_transaction")
    assert remark_on(undone) is None
    with transaction():
        assert open_transaction() is not None
        assert remark_on(undone) is None
    with transaction(commit_mode=CommitMode.EAGER):
        assert open_transaction() is None
        said = remark_on(undone)
        assert remark_on(plain) is None
    assert said is not None
    assert "'undone'" in said
    assert "Call the task instead of submitting it" in said
    after = metrics.value("deepflow_fallbacks_total", kind="run_outside_of_transaction")
    assert after == before + 1


def test_a_serializable_transaction_keeps_its_runs_on_their_workers() -> None:
    with transaction(isolation_level=IsolationLevel.SERIALIZABLE):
        assert open_transaction() is None
