"""What every worker of a deepflow cluster needs: sizes that Dask can see, and a clean end.

The plugin is registered by the runner when it connects; workers that join later get it too.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import time
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING
from uuid import UUID

from distributed.diagnostics.plugin import WorkerPlugin

from deepflow.backend.contract import CONTEXTS, LAST_LINES, RUNNING, may_use
from deepflow.backend.tiers import TierOptions, install_tiers, tiers_of
from deepflow.backend.transfer.install import Options, install, transfer_of
from deepflow.decide.events import Moved, TasksNamed
from deepflow.runner.nested import close_nested
from deepflow.runner.options import FLUSH_TIMEOUT_S, this_process

if TYPE_CHECKING:
    from distributed import Worker

ON_DISK_SHARE = 0.125
"""Of a worker's memory: values that take more are opened from a file on disk."""
_ENGINE = "deepflow.runner.worker.execute"


class DeepflowWorkerPlugin(WorkerPlugin):
    """Registers sizes at start; sends the last events and logs before the worker is gone."""

    name = "deepflow"
    idempotent = True

    def __init__(
        self,
        driver: str,
        transfer: Options | None = None,
        tiers: TierOptions | None = None,
        *,
        shows_successes: bool = True,
        is_quiet: bool = False,
    ) -> None:
        self.driver = driver
        """`host:pid` of the process that registered it: there, Prefect's services go on."""
        self.transfer = transfer
        """How values are to travel; None: by Dask's own means."""
        self.tiers = tiers
        """Where they go when they outgrow the memory; None: where Dask puts them."""
        self.shows_successes = shows_successes
        """Whether the driver's terminal gets a line for each task run that is Completed."""
        self.is_quiet = is_quiet
        """Whether Dask logs nothing below WARNING in a worker process, unless it is set up to."""

    async def setup(self, worker: Worker) -> None:
        """Make Dask see the sizes of Prefect's values, and metrics appear where Dask serves its."""
        # Before the first task, and in one thread: two threads that import Prefect at once can
        # meet in a deadlock of import locks, which leaves half a Prefect behind.
        await asyncio.get_running_loop().run_in_executor(None, _import_engine)
        if this_process() != self.driver:
            # At its end Python looks through all that Prefect, Dask and the tasks have imported for
            # garbage: for seconds on a busy machine, while a nanny waits for four and then kills.
            atexit.unregister(gc.freeze)
            atexit.register(gc.freeze)
        from deepflow.backend.dask_logs import quiet_worker
        from deepflow.intermediates import registration
        from deepflow.intermediates.parcel import Parcel, lay_on_disk
        from deepflow.observe import metrics
        from deepflow.runner.console import leave_out_successes
        from deepflow.runner.wire import Outcomes

        if self.is_quiet and this_process() != self.driver:
            quiet_worker()
        if not self.shows_successes and this_process() != self.driver:
            leave_out_successes()
        registration.register(Outcomes, Parcel)
        if worker.memory_manager.memory_limit:
            limit_bytes = int(worker.memory_manager.memory_limit)
            lay_on_disk(worker.local_directory, int(ON_DISK_SHARE * limit_bytes))
        metrics.register()
        transfer = None if self.transfer is None else install(worker, self.transfer)
        tiers = None if self.tiers is None else install_tiers(worker, self.tiers)
        if transfer is not None and tiers is not None:
            tiers.forget, tiers.arena = transfer.sender.forget, transfer.arena
            transfer.fetcher.admit = tiers.admit

    async def teardown(self, worker: Worker) -> None:
        """Flush events and logs: without it the last lines of a retired worker are lost."""
        from deepflow.runner.worker.agent import forget_agent

        if (transfer := transfer_of(worker)) is not None:
            transfer.close()
        if (tiers := tiers_of(worker)) is not None:
            await asyncio.get_running_loop().run_in_executor(None, tiers.close)
        forget_agent(worker)
        await asyncio.get_running_loop().run_in_executor(None, flush_logs, self.driver)


def _import_engine() -> None:
    """Import what runs tasks, once it is sure that Prefect has what that leans on.

    Raises:
        IncompatibleVersionError: it has not.
    """
    may_use(RUNNING)
    may_use(CONTEXTS)
    import_module(_ENGINE)


def flush_logs(driver: str) -> None:
    """Send this process's queued logs and events to the server, unless it is the driver's own."""
    if this_process() == driver:
        return
    if not may_use(LAST_LINES):
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=FLUSH_TIMEOUT_S, at_exit=False)
    EventsWorker.drain_all(timeout=FLUSH_TIMEOUT_S, at_exit=False)


async def take_leave(
    driver: str, topic: str, run: str, dask_worker: Worker
) -> tuple[int, list[Moved], list[TasksNamed]]:
    """Send what this worker still has to say, and forget what belongs to the flow run.

    Returns how many reports it has sent to `topic`, which is the driver's, what the results of
    flow run `run` cost on their ways from here, and what the runs are called that were submitted
    inside tasks here.
    """
    from deepflow.runner.worker.agent import agent_of

    agent = agent_of(dask_worker)
    agent.flush()
    loop = asyncio.get_running_loop()
    named = await loop.run_in_executor(None, close_nested, topic)
    await loop.run_in_executor(None, flush_logs, driver)
    return agent.depart(topic), _moved(dask_worker, run), named


def _moved(worker: Worker, run: str) -> list[Moved]:
    transfer = transfer_of(worker)
    if transfer is None or not run:
        return []
    return [
        Moved(
            at_s=time.time(),
            run=run,
            task=task,
            worker=worker.address,
            n_values=account.n_values,
            raw_bytes=account.raw_bytes,
            wire_bytes=account.wire_bytes,
            shared_bytes=account.shared_bytes,
            copied_bytes=account.copied_bytes,
            duration_s=account.seconds,
            codecs=tuple((name, *sizes) for name, sizes in account.codecs.items()),
            choices=tuple(account.choices.values()),
        )
        for task, account in transfer.sender.ledger.take(run).items()
    ]


async def cancel_runs(events_topic: str, run_ids: Sequence[UUID], dask_worker: Worker) -> None:
    """Cancel task runs of one driver on this worker.

    A coroutine, for only those can be sent without waiting.
    """
    from deepflow.runner.worker.agent import agent_of

    agent_of(dask_worker).cancel(events_topic, run_ids)
