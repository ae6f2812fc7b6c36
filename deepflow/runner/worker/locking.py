"""Prefect's `MemoryLockManager` for runs in several processes.

A task whose cache policy has a `MemoryLockManager` wants its transactions to exclude each other.
Under Prefect's thread pool they do, for all are in one process. On workers the lock is kept by the
scheduler instead. What runs in the driver itself (a task that is called, not submitted) and stores
that a task makes for itself keep Prefect's lock, which binds their own process only.
"""

from __future__ import annotations

import asyncio
import copyreg
import time
from typing import TYPE_CHECKING, Any

from distributed import get_worker
from distributed.utils import sync
from prefect.locking.memory import MemoryLockManager
from prefect.locking.protocol import LockManager

from deepflow.backend.locks import LOCK
from deepflow.runner.slots import slot_left

if TYPE_CHECKING:
    from prefect.tasks import Task

_FIRST_WAIT_S = 0.01
_LONGEST_WAIT_S = 0.25


class ClusterLockManager(LockManager):
    """Prefect's protocol, answered by the scheduler. Use it on a worker."""

    def _ask(self, action: str, key: str, **arguments: Any) -> Any:
        worker = get_worker()
        ask = getattr(worker.scheduler, LOCK)
        return sync(worker.loop, ask, action=action, name=key, owner=worker.address, **arguments)

    def acquire_lock(
        self,
        key: str,
        holder: str,
        acquire_timeout: float | None = None,
        hold_timeout: float | None = None,
    ) -> bool:
        """Whether the lock was got within `acquire_timeout` seconds; waiting leaves the slot."""

        def is_got() -> bool:
            return bool(self._ask("acquire", key, holder=holder, hold_s=hold_timeout))

        return _wait_until(is_got, acquire_timeout)

    async def aacquire_lock(
        self,
        key: str,
        holder: str,
        acquire_timeout: float | None = None,
        hold_timeout: float | None = None,
    ) -> bool:
        """As `acquire_lock`, beside the event loop."""
        return await asyncio.to_thread(
            self.acquire_lock, key, holder, acquire_timeout, hold_timeout
        )

    def release_lock(self, key: str, holder: str) -> None:
        """Free the lock.

        Raises:
            ValueError: `holder` does not have it.
        """
        if not self._ask("release", key, holder=holder):
            raise ValueError(f"No lock held by {holder} for transaction with key {key}")

    def is_locked(self, key: str) -> bool:
        """Whether anybody has the lock."""
        return self._ask("holder", key) is not None

    def is_lock_holder(self, key: str, holder: str) -> bool:
        """Whether `holder` has the lock."""
        return bool(self._ask("holder", key) == holder)

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Whether the lock was free within `timeout` seconds; waiting leaves the slot."""
        return _wait_until(lambda: not self.is_locked(key), timeout)

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """As `wait_for_lock`, beside the event loop."""
        return await asyncio.to_thread(self.wait_for_lock, key, timeout)


def _wait_until(claim: Any, timeout_s: float | None) -> bool:
    if claim():
        return True
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    wait_s = _FIRST_WAIT_S
    with slot_left():
        while deadline_s is None or time.monotonic() < deadline_s:
            time.sleep(wait_s)
            if claim():
                return True
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
    return False


def lock_for_the_cluster(task: Task[Any, Any]) -> None:
    """Have a run's own copy of its task ask the scheduler where it has a lock in memory."""
    policy = task.cache_policy
    if isinstance(getattr(policy, "lock_manager", None), MemoryLockManager):
        # Prefect annotates what `configure` gives as a policy, and the field as more.
        task.cache_policy = policy.configure(lock_manager=ClusterLockManager())


def _reduce(_: MemoryLockManager) -> Any:
    return MemoryLockManager, ()


# There is one in each process, and what it holds cannot travel.
copyreg.pickle(MemoryLockManager, _reduce)
