"""`DeepflowTaskRunner`: what Prefect calls.

It turns a call of `task.submit` or `task.map` into items for the dispatcher. Its life: made
(anywhere, for free), duplicated and entered by the flow engine, connected on first use, left at
the end of the flow. On a worker it exists once more, nested: there it submits through the worker's
own Dask client, and what it has to say about task runs goes to the driver of the flow run.
"""

from __future__ import annotations

import copy
import inspect
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

import distributed
from prefect._flow_run_suspension import raise_if_flow_run_suspension_requested
from prefect.client.schemas.objects import RunInput
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner
from prefect.tasks import Task

from deepflow.backend.dask_logs import quiet_dask_logs
from deepflow.decide.model import WorkerClass
from deepflow.decide.place.policy import Policy
from deepflow.errors import DeepflowError, GeneratorTaskError
from deepflow.runner.driver.call import Call
from deepflow.runner.driver.checks import check_names
from deepflow.runner.driver.config import RunnerConfig
from deepflow.runner.driver.future import DeepflowFuture, DeepflowFutureList
from deepflow.runner.driver.session import Session, session_on_worker
from deepflow.runner.driver.transactions import remark_on, take_part
from deepflow.runner.results.serializer import (
    DeepflowSerializer as DeepflowSerializer,  # Prefect knows it now
)
from deepflow.runner.worker.side import WORKER_SIDE

if TYPE_CHECKING:
    from distributed.deploy.cluster import Cluster

# At import, so that whatever a script says about logging afterwards holds.
quiet_dask_logs()


class _Live:
    """Running objects, shared between a runner and its duplicates."""

    def __init__(self) -> None:
        self.sessions: weakref.WeakSet[Session] = weakref.WeakSet()


# `Any`: Prefect's class is invariant in its future, and `@flow(task_runner=...)` takes no more
# exact a type than a runner of any future; `submit` and `map` below say the exact one.
class DeepflowTaskRunner(TaskRunner[Any]):
    """A Prefect task runner backed by Dask; takes the place of `prefect_dask.DaskTaskRunner`.

    Args:
        cluster: A running Dask cluster object to use. It is not closed at the end.
        address: Address of a running Dask scheduler. `DEEPFLOW_ADDRESS` gives a default.
        cluster_class: Class of the cluster to make for the flow run, or its qualified name.
        cluster_kwargs: Arguments for the cluster class; without one, for the embedded cluster.
        adapt_kwargs: Arguments for the cluster's `adapt`; it scales only if they are given.
        client_kwargs: Arguments for the Dask client.
        performance_report_path: Where to save Dask's performance report.
        local: Worker classes of an embedded cluster of unlike workers, e.g.
            `[WorkerClass("cpu", count=2), WorkerClass("gpu", gpu=1, labels={"rack": "b"})]`.
        policy: How it is decided where and in which order tasks run: a policy's name, or a
            `deepflow.decide.place.policy.Policy`; `"stock"`: as Dask does. Where the cluster has a
            policy already, that one stays. Unless given, `DEEPFLOW_PLACEMENT`.

    Without arguments the runner starts an embedded cluster made for this machine.

    Raises:
        ConfigurationError: (a `ValueError`) for arguments and settings that cannot be; a misspelt
            argument is an `UnknownArgumentError` (also a `TypeError`).

    Example:
        >>> @flow(task_runner=DeepflowTaskRunner())
        ... def my_flow():
        ...     return my_task.map(range(1000)).result()
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse misspelt arguments with the nearest, before Python does it without."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            known = [one.name for one in parameters if one.name != "self"]
            check_names(kwargs, known, f"{cls.__name__} takes no argument")
        return super().__new__(cls)

    def __init__(
        self,
        cluster: Cluster | None = None,
        address: str | None = None,
        cluster_class: str | Callable[..., Cluster] | None = None,
        cluster_kwargs: dict[str, Any] | None = None,
        adapt_kwargs: dict[str, Any] | None = None,
        client_kwargs: dict[str, Any] | None = None,
        performance_report_path: str | None = None,
        *,
        local: Sequence[WorkerClass] | None = None,
        policy: str | Policy | None = None,
    ) -> None:
        try:
            config = RunnerConfig.of(
                cluster=cluster,
                address=address,
                cluster_class=cluster_class,
                cluster_kwargs=cluster_kwargs,
                adapt_kwargs=adapt_kwargs,
                client_kwargs=client_kwargs,
                performance_report_path=performance_report_path,
                local=local,
                policy=policy,
            )
        except DeepflowError as error:
            raise error.with_traceback(None) from None  # which check it was tells a user nothing
        self._begin(config, _Live())

    def _begin(self, config: RunnerConfig, live: _Live, events_topic: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Prefect's is not annotated
        self.config = config
        self._live = live
        self._events_topic = events_topic
        self._session: Session | None = None
        self._session_lock = threading.Lock()

    @classmethod
    def _of(
        cls, config: RunnerConfig, live: _Live, events_topic: str | None = None
    ) -> DeepflowTaskRunner:
        runner = cls.__new__(cls)
        runner._begin(config, live, events_topic)
        return runner

    def duplicate(self) -> DeepflowTaskRunner:
        """A runner of the same configuration that shares what is running."""
        return self._of(self.config, self._live, self._events_topic)

    def nested(self, events_topic: str) -> DeepflowTaskRunner:
        """The runner as it is inside a task on a worker."""
        return self._of(self.config, _Live(), events_topic)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DeepflowTaskRunner):
            return NotImplemented
        return self.config == other.config

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return _restore, (type(self), self.config.portable())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config})"

    # -- what DaskTaskRunner has as attributes -------------------------------------------------

    @property
    def address(self) -> str | None:
        """Address of the scheduler, as given."""
        return self.config.address

    @property
    def cluster_class(self) -> str | Callable[..., Any] | None:
        """Cluster class, as given."""
        return self.config.cluster_class

    @property
    def resolved_cluster_class(self) -> Callable[..., Any] | None:
        """Cluster class, where a name was given the class it names."""
        return self.config.resolved_cluster_class()

    @property
    def cluster_kwargs(self) -> dict[str, Any]:
        """Arguments for the cluster class; a copy, like those below."""
        return copy.copy(self.config.cluster_kwargs)

    @property
    def adapt_kwargs(self) -> dict[str, Any]:
        """Arguments for `adapt`."""
        return copy.copy(self.config.adapt_kwargs)

    @property
    def client_kwargs(self) -> dict[str, Any]:
        """Arguments for the client."""
        return copy.copy(self.config.client_kwargs)

    @property
    def performance_report_path(self) -> str | None:
        """Where Dask's performance report goes."""
        return self.config.performance_report_path

    @property
    def _cluster(self) -> Cluster | None:
        cluster: Cluster | None = self.config.cluster
        return self._session.cluster if self._session is not None else cluster

    @property
    def _client(self) -> Any:
        return self._session.client if self._session is not None else None

    @property
    def client(self) -> Any:
        """The Dask client; the first use connects, or starts the cluster.

        Raises:
            ClusterUnreachableError: (a `ConnectionError`) nothing answers at the address.
        """
        return self._connected().client

    # -- life ----------------------------------------------------------------------------------

    def __enter__(self) -> DeepflowTaskRunner:
        super().__enter__()
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        session, self._session = self._session, None
        try:
            if session is not None and self._events_topic is None:
                session.close(failed=exc_type is not None)
        finally:
            super().__exit__(exc_type, exc_value, traceback)

    def _connected(self) -> Session:
        session = self._session
        if session is None:
            with self._session_lock:
                session = self._session
                if session is None:
                    try:
                        session = self._connect()
                    except DeepflowError as error:
                        # Where in here it was raised tells a user nothing, and every line of it is
                        # printed twice: by Prefect's engine and by the script.
                        raise error.with_traceback(None) from None
                    self._session = session
                    self._live.sessions.add(session)
        return session

    def _connect(self) -> Session:
        try:
            worker = distributed.get_worker()
        except ValueError:
            worker = None
        if worker is not None and self._events_topic is not None:
            return session_on_worker(self.config, self._events_topic, self.logger, WORKER_SIDE)
        return Session(self.config, self.logger, WORKER_SIDE)

    def cancel_all(self) -> None:
        """Cancel everything submitted through this runner or a duplicate of it."""
        for session in list(self._live.sessions):
            session.dispatcher.cancel_all()

    # -- submitting ----------------------------------------------------------------------------

    def submit(
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
    ) -> DeepflowFuture[Any]:
        """Submit one run of `task`.

        Raises:
            HintError: its hints ask for what no worker offers.
            GeneratorTaskError: the task is a generator, whose values could not be streamed back.
        """
        self._check_may_submit(task)
        call = self._call(task)
        self._remark_on(task, call.session)
        future = call.future(parameters, wait_for, dependencies)
        call.session.dispatcher.submit_item(future._item)
        take_part([future])
        return future

    def map(
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
    ) -> DeepflowFutureList[Any]:
        """Submit one run of `task` for each element of its iterable parameters.

        Same meaning as Prefect's; what all runs have in common is sent once, and tiny runs share
        Dask tasks (`hints(batch=False)` turns that off).

        Raises:
            MappingMissingIterable: there is nothing to map over.
            MappingLengthMismatch: the iterables differ in length.
        """
        self._check_may_submit(task)
        call = self._call(task, is_map=True)
        self._remark_on(task, call.session)
        futures = call.mapped(parameters, wait_for)
        call.session.dispatcher.submit_map([future._item for future in futures])
        take_part(futures)
        # Prefect's list says it is an iterator, and is none.
        return DeepflowFutureList(futures)  # type: ignore[abstract]

    def _call(self, task: Task[Any, Any], *, is_map: bool = False) -> Call:
        session = self._connected()
        try:
            return Call(session, task, is_map=is_map)
        except DeepflowError as error:
            raise error.with_traceback(None) from None  # as in `_connected`

    def _remark_on(self, task: Task[Any, Any], session: Session) -> None:
        remark = remark_on(task)
        if remark is not None:
            session.dispatcher.log_once(f"transaction of {task.task_key}", remark)

    def _check_may_submit(self, task: Task[Any, Any]) -> None:
        if not self._started:
            raise RuntimeError("The task runner must be started before submitting work.")
        raise_if_flow_run_suspension_requested()
        if task.isgenerator:
            raise GeneratorTaskError(
                f"task {task.name!r} is a generator: its values cannot be streamed from a worker. "
                "Return a list, or call the task directly instead of submitting it"
            )


def _restore(cls: type[DeepflowTaskRunner], config: RunnerConfig) -> DeepflowTaskRunner:
    return cls._of(config, _Live())
