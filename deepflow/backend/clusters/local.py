"""Clusters on this machine: one that fits it, or one of unlike workers, each a process of its own.

How many threads a worker gets: Prefect's engine around a task is Python and holds the interpreter
lock, so processes scale and threads mostly wait for each other; but every process costs some
200 MB for its imports. So each core gets a process of one thread up to `MAX_PROCESSES`, and only
beyond that do workers get more threads. Numeric libraries are left at Dask's one native thread per
worker (``OMP_NUM_THREADS`` and its like), unless the environment says otherwise, so that
cores × tasks never multiply.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

import dask
from dask.system import CPU_COUNT
from distributed import LocalCluster, Nanny, Scheduler, SpecCluster
from distributed.security import Security
from distributed.system import MEMORY_LIMIT

from deepflow.backend.clusters import warm
from deepflow.backend.clusters.guard import refuse_unguarded_script
from deepflow.backend.contract import RESTARTS, may_use
from deepflow.backend.dask_logs import are_dask_logs_wanted
from deepflow.decide.model import WorkerClass
from deepflow.errors import ConfigurationError
from deepflow.hints import in_binary_bytes

__all__ = ["MAX_PROCESSES", "UnlikeWorkersCluster", "is_local", "local_cluster"]

MAX_PROCESSES: Final = 8
"""The most worker processes of the cluster made for this machine."""

RESTART_PATIENCE: Final = "120 s"
"""How long a worker that died may take to be back before the cluster goes on without it."""

_PATIENCE_SETTING: Final = "distributed.deploy.lost-worker-timeout"
_SAID_BY_CLASSES: Final = {
    "n_workers": "count",
    "threads_per_worker": "threads",
    "nthreads": "threads",
    "memory_limit": "memory",
    "resources": "resources",
    "worker_class": "name",
}


class _Patient(SpecCluster):
    """A cluster that waits for a worker that died to be started again by its nanny.

    Dask gives the nanny 15 s and then drops it, so on a busy machine, where starting takes longer,
    every death would make the cluster smaller for good, down to none.
    """

    def _update_worker_status(self, *arguments: Any) -> None:
        patience = RESTART_PATIENCE if may_use(RESTARTS) else dask.config.get(_PATIENCE_SETTING)
        with dask.config.set({_PATIENCE_SETTING: patience}):
            super()._update_worker_status(*arguments)  # type: ignore[no-untyped-call]


class AlikeWorkersCluster(_Patient, LocalCluster):
    """`distributed.LocalCluster`, patient with workers that are being started again."""


class UnlikeWorkersCluster(_Patient):
    """A local scheduler with workers of several classes, named ``<class>-<i>``."""

    def __init__(self, classes: Sequence[WorkerClass], **spec_cluster_kwargs: Any) -> None:
        self.worker_classes = tuple(classes)
        super().__init__(**spec_cluster_kwargs)  # type: ignore[no-untyped-call]

    def scale(self, n: int = 0, memory: Any = None, cores: Any = None) -> Any:
        """Refused but for 0 (as closing does): a number does not say which workers to start."""
        if n == 0 and memory is None and cores is None:
            return super().scale(0)  # type: ignore[no-untyped-call]
        raise ConfigurationError(
            f"cannot scale to n={n}: this cluster has workers of the classes "
            f"{', '.join(c.name for c in self.worker_classes)}, and a number does not say which; "
            "set the count of each WorkerClass instead"
        )

    def adapt(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused, for the same reason as `scale`."""
        raise ConfigurationError(
            "adaptive scaling (adapt_kwargs) does not know worker classes; "
            "leave out adapt_kwargs or the classes"
        )


def is_local(cluster: object) -> bool:
    """Whether it is a cluster object of this process that starts its workers on this machine."""
    return isinstance(cluster, LocalCluster | UnlikeWorkersCluster)


def local_cluster(
    classes: Sequence[WorkerClass] | None = None,
    *,
    imported: Sequence[str] | None = (),
    **cluster_kwargs: Any,
) -> LocalCluster | UnlikeWorkersCluster:
    """Start a cluster on this machine; close it with ``close()`` or by leaving ``with``.

    Without ``classes`` it is a `distributed.LocalCluster` made for this machine. With them, each
    class's workers get its threads, memory limit, resources and labels (see `deepflow.hints` for
    how labels travel), so that everything about unlike workers can be tried here; resources such
    as GPUs are taken at their word.

    Where that is possible, workers are forked from a process that has the libraries imported, and
    the modules that ``imported`` names; with None each worker imports them for itself
    (`deepflow.backend.clusters.warm`).

    ``cluster_kwargs`` are those of `LocalCluster`, and with classes all but the ones the classes
    say themselves. The dashboard listens on any free port of this host unless asked otherwise,
    and Dask logs nothing below WARNING unless somebody asked for it (`deepflow.backend.dask_logs`).
    Raises :class:`ConfigurationError` for what this machine cannot do, and where the calling script
    would be run again by each of the workers.
    """
    if cluster_kwargs.get("processes") is not False:
        refuse_unguarded_script()
    cluster_kwargs.setdefault("dashboard_address", "127.0.0.1:0")
    if are_dask_logs_wanted():
        cluster_kwargs.setdefault("silence_logs", False)
    nanny: type[Nanny] = Nanny
    if imported is not None and warm.is_possible():
        warm.preload(imported)
        nanny = warm.WarmNanny
    if classes is None:
        shape = _machine_shape(cluster_kwargs)
        if cluster_kwargs.get("processes") is not False and not cluster_kwargs.get("worker_class"):
            cluster_kwargs["worker_class"] = nanny
        return AlikeWorkersCluster(  # type: ignore[no-untyped-call]
            **shape, **cluster_kwargs
        )
    checked = _checked(classes)
    for said, instead in _SAID_BY_CLASSES.items():
        if said in cluster_kwargs:
            raise ConfigurationError(
                f"{said}={cluster_kwargs[said]!r} contradicts the worker classes; "
                f"set {instead!r} of each WorkerClass instead"
            )
    return _unlike_workers(checked, nanny, **cluster_kwargs)


def _machine_shape(cluster_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Processes and threads for this machine, unless the caller said anything about them."""
    if any(
        cluster_kwargs.get(said) is not None
        for said in ("n_workers", "threads_per_worker", "processes", "worker_class")
    ):
        return {}
    n_workers = min(CPU_COUNT, MAX_PROCESSES)
    return {"n_workers": n_workers, "threads_per_worker": math.ceil(CPU_COUNT / n_workers)}


def _checked(classes: Sequence[WorkerClass]) -> tuple[WorkerClass, ...]:
    seen: set[str] = set()
    for worker_class in classes:
        if not isinstance(worker_class, WorkerClass):
            raise ConfigurationError(
                f"{worker_class!r} is no worker class; give WorkerClass(name, count=..., ...)"
            )
        if worker_class.name in seen:
            raise ConfigurationError(
                f"two worker classes are named {worker_class.name!r}; "
                "give each a name of its own, or one of them a higher count"
            )
        seen.add(worker_class.name)
        if worker_class.memory != "auto" and worker_class.memory > MEMORY_LIMIT:
            raise ConfigurationError(
                f"worker class {worker_class.name!r} asks for memory="
                f"{in_binary_bytes(worker_class.memory)} a worker, but this machine has "
                f'{in_binary_bytes(MEMORY_LIMIT)}; lower it or leave it at "auto"'
            )
    if not any(worker_class.count for worker_class in classes):
        raise ConfigurationError(
            f"the worker classes {[c.name for c in classes]} have no worker among them; "
            "give at least one class a count of 1"
        )
    return tuple(classes)


def _unlike_workers(
    classes: tuple[WorkerClass, ...],
    nanny: type[Nanny],
    *,
    dashboard_address: str | None,
    name: str | None = None,
    host: str = "127.0.0.1",
    protocol: str | None = None,
    security: Security | bool | None = None,
    scheduler_port: int = 0,
    scheduler_kwargs: Mapping[str, Any] | None = None,
    silence_logs: int | bool = logging.WARNING,
    asynchronous: bool = False,
    processes: bool = True,
    **nanny_kwargs: Any,
) -> UnlikeWorkersCluster:
    if not processes:
        raise ConfigurationError(
            "processes=False is not possible with worker classes, whose memory limits need a "
            "process each; leave it out"
        )
    if security is True:
        security = Security.temporary()
    elif not security:
        security = Security()
    assert isinstance(security, Security)
    if protocol is None:
        protocol = "tls" if security.require_encryption else "tcp"
    common = {
        "host": host,
        "protocol": protocol.removesuffix("://") + "://",
        "security": security,
    }
    scheduler = {
        "cls": Scheduler,
        "options": {
            **common,
            "port": scheduler_port,
            "dashboard": dashboard_address is not None,
            "dashboard_address": dashboard_address,
            **(scheduler_kwargs or {}),
        },
    }
    total_threads = max(CPU_COUNT, sum(c.count * c.threads for c in classes))
    workers = {
        worker_name: {
            "cls": nanny,
            "options": {
                "dashboard": False,
                "silence_logs": silence_logs,
                **nanny_kwargs,
                **common,
                "nthreads": worker_class.threads,
                "memory_limit": _memory_bytes(worker_class, total_threads),
                "resources": worker_class.dask_resources(),
            },
        }
        for worker_class in classes
        for worker_name in worker_class.worker_names()
    }
    return UnlikeWorkersCluster(
        classes,
        name=name,
        scheduler=scheduler,
        workers=workers,
        security=security,
        silence_logs=silence_logs,
        asynchronous=asynchronous,
    )


def _memory_bytes(worker_class: WorkerClass, total_threads: int) -> int:
    """A worker's memory limit; ``auto`` is the part of the machine that its threads are."""
    if worker_class.memory == "auto":
        return int(MEMORY_LIMIT * worker_class.threads / total_threads)
    return worker_class.memory
