"""A Dask client that also takes Prefect tasks, and clients for use inside flows and tasks."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from distributed import Client, Future, get_client, get_worker
from prefect._internal.uuid7 import uuid7
from prefect.context import FlowRunContext, TaskRunContext, serialize_context
from prefect.tasks import Task
from prefect.utilities.callables import get_call_parameters
from prefect.utilities.engine import collect_task_run_inputs_sync

from deepflow.backend.contract import PLAIN_CLIENT, RECONNECTING, may_use
from deepflow.backend.transport import Choice, pick
from deepflow.errors import ClusterUnreachableError
from deepflow.observe.fallbacks import Fallback, fell_back

_log = logging.getLogger(__name__)


def _run_prefect_task(task: bytes, context: bytes, **kwargs: Any) -> Any:
    """On a worker: run one Prefect task in the context it was submitted from."""
    import asyncio
    import pickle

    from prefect.task_engine import run_task_async, run_task_sync

    prefect_task, hydrated = pickle.loads(task), pickle.loads(context)
    if prefect_task.isasync:
        return asyncio.run(run_task_async(prefect_task, context=hydrated, **kwargs))
    return run_task_sync(prefect_task, context=hydrated, **kwargs)


class DeepflowClient(Client):
    """`distributed.Client` whose `submit` and `map` also take Prefect tasks.

    With a Prefect task they return a Dask future of the task's return value, with the id of its
    task run as `task_run_id`. This is the plain way, one Dask task a run; flows go through
    `DeepflowTaskRunner`, which batches, reports and recovers.

    `choice`: what was picked for an ``auto://`` address; it is picked anew before it connects
    again, since what has broken may be the way itself.
    """

    def __init__(
        self,
        address: Any = None,
        *,
        auto: str | None = None,
        choice: Choice | None = None,
        **kw: Any,
    ) -> None:
        self.auto, self.choice = auto, choice
        # Dask's constructor is not annotated.
        super().__init__(address, **kw)  # type: ignore[no-untyped-call]

    async def _ensure_connected(self, timeout: Any = None) -> None:
        auto, is_anew = self.auto, self.choice is None and self.scheduler is not None
        if auto is not None and is_anew and may_use(RECONNECTING):
            try:
                choice = await pick(auto, self.security)
            except ClusterUnreachableError as exc:
                _log.warning("%s", exc)  # Dask asks again until its own deadline
            else:
                self.choice = choice
                self.scheduler = self.rpc(choice.address)
                fell_back(Fallback.PICKED_ANEW)
                _log.warning("connecting again by %s", choice.in_words())
        await super()._ensure_connected(timeout=timeout)  # type: ignore[no-untyped-call]

    async def _reconnect(self) -> None:
        self.choice = None
        await super()._reconnect()

    def submit(self, func: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        """As `distributed.Client.submit`; `func` may be a Prefect task."""
        if not isinstance(func, Task):
            return super().submit(func, *args, **kwargs)
        may_use(PLAIN_CLIENT)
        import cloudpickle

        dask_names = (
            "key",
            "workers",
            "resources",
            "retries",
            "priority",
            "fifo_timeout",
            "allow_other_workers",
            "actor",
            "actors",
        )
        dask_kwargs = {name: kwargs.pop(name) for name in dask_names if name in kwargs}
        kwargs.pop("pure", None)
        passed = kwargs.pop("dependencies", None) or {}
        wait_for = kwargs.pop("wait_for", None)
        return_type = kwargs.pop("return_type", "result")
        parameters = kwargs.pop("parameters", None)
        if parameters is None:
            parameters = get_call_parameters(func, args, kwargs)
        dependencies = {
            name: collect_task_run_inputs_sync(value, future_cls=Future) | passed.get(name, set())
            for name, value in parameters.items()
        }
        run_id = uuid7()
        context = serialize_context(
            asset_ctx_kwargs={
                "task": func,
                "task_run_id": run_id,
                "task_inputs": dependencies,
                "copy_to_child_ctx": True,
            }
        )
        dask_kwargs.setdefault("key", f"{func.name}-{run_id}")
        future = super().submit(
            _run_prefect_task,
            cloudpickle.dumps(func),
            cloudpickle.dumps(context),
            task_run_id=run_id,
            parameters=parameters,
            wait_for=wait_for,
            return_type=return_type,
            dependencies=dependencies,
            pure=False,
            **dask_kwargs,
        )
        future.task_run_id = run_id  # type: ignore[attr-defined]  # as prefect_dask's client does
        return future

    def map(self, func: Any, *iterables: Iterable[Any], **kwargs: Any) -> list[Future[Any]]:
        """As `distributed.Client.map`; `func` may be a Prefect task."""
        if not isinstance(func, Task):
            # Dask makes lists of them; that they have to be collections is only its annotation.
            mapped: list[Future[Any]] = super().map(func, *iterables, **kwargs)  # type: ignore[arg-type]
            return mapped
        kwargs.pop("batch_size", None)
        return [self.submit(func, *args, **kwargs) for args in zip(*iterables, strict=False)]


def _client_arguments(timeout: Any, client_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Where a client made inside a run should connect: the run's cluster, else its runner's."""
    arguments = dict(client_kwargs)
    if timeout is not None:
        arguments["timeout"] = timeout
    if "address" in arguments:
        return arguments
    try:
        arguments["address"] = get_worker().scheduler.address
        return arguments
    except ValueError:
        pass
    flow_run = FlowRunContext.get()
    if flow_run is not None and TaskRunContext.get() is None:
        runner_client = getattr(flow_run.task_runner, "client", None)
        if runner_client is not None:
            arguments["address"] = runner_client.scheduler.address
            arguments.setdefault("security", runner_client.security)
            return arguments
    # No cluster anywhere: the client starts a local one, as Dask's own would.
    with suppress(ValueError):
        scheduler = get_client().scheduler
        if scheduler is not None:
            arguments["address"] = scheduler.address
    return arguments


@contextmanager
def get_dask_client(
    timeout: int | float | str | None = None, **client_kwargs: Any
) -> Generator[Client, None, None]:
    """A Dask client of the cluster that the current flow or task runs on."""
    with Client(**_client_arguments(timeout, client_kwargs), set_as_default=False) as client:
        yield client


@asynccontextmanager
async def get_async_dask_client(
    timeout: int | float | str | None = None, **client_kwargs: Any
) -> AsyncGenerator[Client, None]:
    """The same as `get_dask_client`, for `async with`."""
    arguments = _client_arguments(timeout, client_kwargs)
    async with Client(**arguments, asynchronous=True, set_as_default=False) as client:
        yield client
