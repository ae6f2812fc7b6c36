"""The scheduler's table of locks, and Prefect's lock in memory as it travels."""

from __future__ import annotations

from copy import deepcopy

import cloudpickle
from prefect.cache_policies import INPUTS
from prefect.locking.memory import MemoryLockManager
from prefect.transactions import IsolationLevel

from deepflow.backend.locks import LockTable
from deepflow.runner.worker import locking


def test_a_lock_belongs_to_one_holder_until_it_is_released() -> None:
    table = LockTable()
    assert table.acquire("a", "one", "w1")
    assert table.acquire("a", "one", "w1"), "it has it already"
    assert not table.acquire("a", "two", "w2")
    assert table.holder("a") == "one"
    assert not table.release("a", "two")
    assert table.release("a", "one")
    assert table.holder("a") is None
    assert table.acquire("a", "two", "w2")


def test_a_lock_is_free_when_its_time_is_over_or_its_process_is_gone() -> None:
    now_s = 0.0
    table = LockTable(lambda: now_s)
    assert table.acquire("timed", "one", "w1", 5.0)
    assert table.acquire("other", "one", "w1")
    now_s = 4.9
    assert not table.acquire("timed", "two", "w2")
    now_s = 5.0
    assert table.acquire("timed", "two", "w2")
    table.drop("w1")
    assert table.holder("other") is None
    assert table.holder("timed") == "two"


def test_a_request_is_answered_as_it_arrives() -> None:
    table = LockTable()
    assert table.answer("holder", "a") is None
    assert table.answer("acquire", "a", "one", "w1") is True
    assert table.answer("holder", "a") == "one"
    assert table.answer("release", "a", "one") is True


def test_a_policy_with_a_lock_in_memory_can_be_sent_and_copied() -> None:
    policy = INPUTS.configure(
        lock_manager=MemoryLockManager(), isolation_level=IsolationLevel.SERIALIZABLE
    )
    assert deepcopy(policy).lock_manager is MemoryLockManager()
    assert cloudpickle.loads(cloudpickle.dumps(policy)).lock_manager is MemoryLockManager()
    assert locking.ClusterLockManager is not MemoryLockManager
