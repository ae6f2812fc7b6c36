"""What can never work is refused when a runner is made, before there is a flow run that it fails.

Nothing is connected to or started here. What depends on the machine that will run the flow, such as
whether its memory is enough, is looked at there: flows are also imported where they are deployed.
"""

from __future__ import annotations

import errno
import importlib.util
import inspect
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dask.utils import parse_bytes
from prefect.utilities.importtools import from_qualified_name

from deepflow.backend.tls import check_tls
from deepflow.decide.model import WorkerClass
from deepflow.decide.place.policy import Policy
from deepflow.decide.place.registry import policy_named
from deepflow.decide.transport import address_fault
from deepflow.errors import ConfigurationError, HistoryError, UnknownArgumentError, nearest
from deepflow.hints import in_binary_bytes
from deepflow.observe.history import check_target
from deepflow.runner.driver.placing import OFF
from deepflow.settings import Settings

__all__ = [
    "check_address",
    "check_classes",
    "check_cluster",
    "check_cluster_class",
    "check_free_port",
    "check_kwargs",
    "check_names",
    "check_policy",
    "check_report_path",
    "check_settings",
]

_SCALING: Final = ("minimum", "maximum", "interval", "wait_count", "target_duration", "worker_key")
_MAX_MEMORY_BYTES: Final = 64 * 1024**4
"""More than any machine has."""
_COUNTS: Final = {"n_workers": 0, "threads_per_worker": 1, "scheduler_port": 0}
"""Whole numbers among the arguments of a cluster, and the least that each may be."""


def check_names(said: Iterable[str], known: Sequence[str], what: str) -> None:
    """Refuse the first name that is none of the known ones, with the nearest.

    `what` is as in "DeepflowTaskRunner takes no argument".
    """
    for name in said:
        if name not in known:
            close = nearest(name, tuple(known))
            advice = f"did you mean {close!r}?" if close else f"known are {', '.join(known)}"
            raise UnknownArgumentError(f"{what} {name!r}; {advice}")


def check_address(address: object) -> None:
    """Refuse what cannot be a scheduler's address."""
    fault = address_fault(address)
    if fault is not None:
        raise ConfigurationError(f"address={address!r} {fault}")


def check_cluster(cluster: object) -> None:
    """Refuse what is mistaken for a running cluster."""
    if isinstance(cluster, (str, bytes)):
        raise ConfigurationError(
            f"cluster={cluster!r} is text; give a running cluster object, or the scheduler's "
            "address as address="
        )
    if isinstance(cluster, type):
        raise ConfigurationError(
            f"cluster={cluster.__name__} is a class; give a running cluster, or the class as "
            "cluster_class="
        )
    status = getattr(getattr(cluster, "status", None), "name", "")
    if status in ("closing", "closed", "failed"):
        raise ConfigurationError(
            f"cluster={getattr(cluster, 'name', cluster)!r} is {status}; give one that runs, or "
            "none, so that each flow run has its own"
        )


def check_cluster_class(cluster_class: object) -> Callable[..., Any]:
    """The class itself; refuses a name that cannot be imported, and what cannot be called."""
    found: Any = _imported(cluster_class) if isinstance(cluster_class, str) else cluster_class
    if not callable(found):
        raise ConfigurationError(
            f"cluster_class={cluster_class!r} is {type(found).__name__}, which makes no cluster; "
            "give a class, or its qualified name such as 'dask.distributed.LocalCluster'"
        )
    made_by: Callable[..., Any] = found
    return made_by


def _imported(name: str) -> Any:
    try:
        return from_qualified_name(name)
    except Exception as exc:  # noqa: BLE001 - importing runs the module's own code
        cause = f"{type(exc).__name__}: {exc}"
    module_name, _, attribute = name.rpartition(".")
    close = None
    if module_name:
        try:
            module = from_qualified_name(module_name)
        except Exception:  # noqa: BLE001 - as above; then nothing near is known
            module = None
        public = [one for one in dir(module) if not one.startswith("_")] if module else []
        close = nearest(attribute, public)
    advice = (
        f"did you mean '{module_name}.{close}'?"
        if close
        else "give the qualified name of a class, such as 'dask.distributed.LocalCluster', and "
        "install its package"
    )
    raise ConfigurationError(f"cluster_class={name!r} cannot be imported ({cause}); {advice}")


def check_kwargs(
    cluster_class: Callable[..., Any] | None,
    cluster_kwargs: Mapping[str, Any],
    adapt_kwargs: Mapping[str, Any],
    client_kwargs: Mapping[str, Any],
) -> None:
    """Refuse names that nobody takes, and numbers that are none, in arguments that are passed on.

    Of a cluster class that takes any keyword nothing is known, and nothing refused.
    """
    from distributed import Client, LocalCluster, Nanny, Worker
    from distributed.core import Server

    for name, value in (
        ("cluster_kwargs", cluster_kwargs),
        ("adapt_kwargs", adapt_kwargs),
        ("client_kwargs", client_kwargs),
    ):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ConfigurationError(f"{name}={value!r} is no mapping of names to values")
    called = "the embedded cluster"
    if cluster_class is None:
        cluster_class = LocalCluster
        check_names(adapt_kwargs, _SCALING, "adapt_kwargs: scaling takes no")
    else:
        called = getattr(cluster_class, "__name__", "the cluster class")
    known = _names(cluster_class)
    if isinstance(cluster_class, type) and issubclass(cluster_class, LocalCluster):
        # It hands on what it does not take itself.
        known = _names(cluster_class, LocalCluster, Nanny, Worker, Server)
        _check_numbers(cluster_kwargs)
    elif _takes_any(cluster_class):
        known = ()
    if known:
        check_names(cluster_kwargs, known, f"cluster_kwargs: {called} takes no")
    check_names(client_kwargs, _names(Client), "client_kwargs: the Dask client takes no")
    _check_scaling(adapt_kwargs)


def check_free_port(cluster_kwargs: Mapping[str, Any]) -> None:
    """Refuse a port for the scheduler of a local cluster that something listens on already."""
    port = cluster_kwargs.get("scheduler_port") or 0
    host = str(cluster_kwargs.get("host") or "127.0.0.1")
    try:
        socket.create_server((host, port)).close()
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            return  # a host that is no name, and what else Dask knows better
    else:
        return
    raise ConfigurationError(
        f"cluster_kwargs: scheduler_port={port} is in use on {host}; give another one, or none, "
        "for any that is free"
    )


def _check_numbers(cluster_kwargs: Mapping[str, Any]) -> None:
    for name, least in _COUNTS.items():
        number = cluster_kwargs.get(name)
        if number is not None and not _is_whole(number, least):
            raise ConfigurationError(
                f"cluster_kwargs: {name}={number!r}; give a whole number from {least} on"
            )
    memory = cluster_kwargs.get("memory_limit")
    if isinstance(memory, str) and memory != "auto" and not _is_size(memory):
        raise ConfigurationError(
            f'cluster_kwargs: memory_limit={memory!r} is no size; write "4 GiB", a number of '
            'bytes, a part of the machine such as 0.5, or "auto"'
        )


def _is_size(text: str) -> bool:
    try:
        parse_bytes(text)
    except ValueError:
        return False
    return True


def _check_scaling(adapt_kwargs: Mapping[str, Any]) -> None:
    least, most = adapt_kwargs.get("minimum"), adapt_kwargs.get("maximum")
    for name, number in (("minimum", least), ("maximum", most)):
        if number is not None and number != float("inf") and not _is_whole(number, 0):
            raise ConfigurationError(
                f"adapt_kwargs: {name}={number!r}; give a whole number from 0 on"
            )
    if least is not None and most is not None and least > most:
        raise ConfigurationError(
            f"adapt_kwargs: minimum={least} is above maximum={most}; exchange them"
        )


def _is_whole(number: object, least: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= least


def _names(*functions: Callable[..., Any]) -> tuple[str, ...]:
    """The arguments of these by name, in order; empty where one does not tell."""
    names: dict[str, None] = {}
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return ()
        for one in parameters:
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
                names[one.name] = None
    return tuple(names)


def _takes_any(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(one.kind is one.VAR_KEYWORD for one in parameters)


def check_classes(local: object) -> tuple[WorkerClass, ...]:
    """The worker classes of an embedded cluster; refuses what is none, doubles, and no worker."""
    example = 'such as local=[WorkerClass("cpu", count=2)]'
    if isinstance(local, WorkerClass):
        raise ConfigurationError(f"local={local.name!r} is one WorkerClass; give a list, {example}")
    if isinstance(local, (str, bytes, Mapping)) or not isinstance(local, Iterable):
        raise ConfigurationError(
            f"local={local!r} is {type(local).__name__}; give a list of deepflow.WorkerClass, "
            f"{example}"
        )
    classes = tuple(local)
    seen: set[str] = set()
    for worker_class in classes:
        if not isinstance(worker_class, WorkerClass):
            raise ConfigurationError(
                f"local has {worker_class!r} in it, which is no deepflow.WorkerClass; give a list "
                f"of them, {example}"
            )
        if worker_class.name in seen:
            raise ConfigurationError(
                f"local has two worker classes named {worker_class.name!r}; give each a name of "
                "its own, or one of them a higher count"
            )
        seen.add(worker_class.name)
        memory = worker_class.memory
        if memory != "auto" and memory > _MAX_MEMORY_BYTES:
            raise ConfigurationError(
                f"worker class {worker_class.name!r} asks for memory={in_binary_bytes(memory)} a "
                f"worker, more than any machine has; did you mean "
                f"{in_binary_bytes(memory / 1024)}?"
            )
    if not any(worker_class.count for worker_class in classes):
        raise ConfigurationError(
            f"local={[one.name for one in classes]} has no worker in it; "
            f"give at least one class a count of 1, {example}"
        )
    return classes


def check_policy(policy: object) -> None:
    """Refuse what is neither a policy nor the name of one."""
    if not isinstance(policy, (str, Policy)):
        raise ConfigurationError(
            f"policy={policy!r} is {type(policy).__name__}; give a policy's name, or a "
            "deepflow.decide.place.policy.Policy"
        )
    try:
        policy_named(policy)
    except ConfigurationError as exc:
        said = str(exc)
    else:
        return
    raise ConfigurationError(f"policy={policy!r}: {said}")


def check_report_path(path: object) -> None:
    """Refuse a file of a performance report that could not be written in the end."""
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigurationError(
            f"performance_report_path={path!r} is {type(path).__name__}; give the path of an HTML "
            "file"
        )
    folder = Path(path).expanduser().parent
    if not folder.is_dir():
        raise ConfigurationError(
            f"performance_report_path={str(path)!r}: there is no folder {folder}; make it, or "
            "give a path in one that exists"
        )
    if importlib.util.find_spec("bokeh") is None:
        raise ConfigurationError(
            f"performance_report_path={str(path)!r}: Dask draws its report with bokeh, which is "
            "not installed; pip install 'prefect-deepflow[report]'"
        )


def check_settings(settings: Settings, given: Mapping[str, str], address: str | None) -> None:
    """Refuse settings that this machine cannot follow.

    Args:
        settings: as they are in force now.
        given: where each comes from (`settings.setting_sources`). A default that cannot be followed
            is no mistake of the user's: the run does without, and says so.
        address: of the scheduler that the runner will connect to; None for a cluster of its own.
    """
    check_tls(settings.tls, address=address)
    if settings.history is not None and settings.history != OFF:
        try:
            check_target(settings.history)
        except HistoryError as exc:
            said = str(exc)
        else:
            said = ""
        if said:
            raise ConfigurationError(f"history (from {given['history']}): {said}")
    if given["state_dir"] != "default":
        _check_folder("state_dir", settings.state_dir.expanduser())
    if settings.tier_url is not None:
        _check_url("tier_url", settings.tier_url, is_opened_here=address is None)
    if given["shared_memory"] != "default" and address is None:
        _check_shared_memory(settings.shared_memory)
    if settings.metrics_port is not None:
        _check_listening(settings.metrics_host, settings.metrics_port)


def _check_folder(name: str, folder: Path) -> None:
    """Refuse a folder that is none, or cannot be made or written to."""
    standing = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not standing.is_dir():
        raise ConfigurationError(
            f"{name}={str(folder)!r}: {standing} is no folder; name a folder that can be written to"
        )
    if not os.access(standing, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"{name}={str(folder)!r}: nothing may be written to {standing}; change its rights, or "
            "name another folder"
        )


def _check_shared_memory(folder: str) -> None:
    """Refuse a folder that workers of this machine could not hand results over through."""
    if folder != OFF and not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"shared_memory={folder!r} is no folder that can be written to; name one that lies in "
            f"memory, such as /dev/shm, or set DEEPFLOW_SHARED_MEMORY={OFF}"
        )


_EXTRAS: Final = {"s3": "s3", "s3a": "s3", "hdfs": "hdfs", "webhdfs": "hdfs"}
"""Schemes for which there is an extra of ours."""


def _check_url(name: str, url: str, *, is_opened_here: bool) -> None:
    """Refuse a URL of a scheme that fsspec does not know, or whose package is missing here."""
    from fsspec.registry import available_protocols, known_implementations

    scheme = url.partition("://")[0].partition("::")[0]
    known = tuple(available_protocols())
    if "://" not in url:
        return
    if scheme in known:
        module = str(known_implementations.get(scheme, {}).get("class", "fsspec"))
        package = module.partition(".")[0]
        if is_opened_here and importlib.util.find_spec(package) is None:
            extra = _EXTRAS.get(scheme)
            what = f"'prefect-deepflow[{extra}]'" if extra else package
            raise ConfigurationError(
                f"{name}={url!r} needs the package {package}, which is not installed; "
                f"pip install {what}"
            )
        return
    close = nearest(scheme, known)
    advice = f"did you mean {close}://…?" if close else "fsspec.available_protocols() has them all"
    raise ConfigurationError(
        f"{name}={url!r} has the scheme {scheme!r}, which fsspec does not know; {advice}"
    )


def _check_listening(host: str, port: int) -> None:
    """Refuse a host that is none of this machine, and a port that may not be used.

    A port that is taken is no fault: most often another flow run on this machine exports there.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[
            0
        ]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            return
        cause = exc.strerror or str(exc)
    else:
        return
    raise ConfigurationError(
        f"metrics_host={host!r}, metrics_port={port}: nothing can listen there ({cause}); name an "
        "address of this machine and a port from 1024 on, or unset DEEPFLOW_METRICS_PORT"
    )
