"""What a task runner was made with: one frozen, checked value.

`duplicate()`, equality and pickling of the runner derive from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import distributed
from prefect.utilities.importtools import from_qualified_name

from deepflow.backend.clusters.guard import refuse_unguarded_flow
from deepflow.decide.model import WorkerClass
from deepflow.decide.place.policy import Policy
from deepflow.errors import ConfigurationError
from deepflow.runner.driver.checks import (
    check_address,
    check_classes,
    check_cluster,
    check_cluster_class,
    check_kwargs,
    check_policy,
    check_report_path,
    check_settings,
)
from deepflow.settings import load_settings, setting_sources


@dataclass(frozen=True)
class RunnerConfig:
    """The arguments of `DeepflowTaskRunner`; see there for their meaning.

    Raises:
        ConfigurationError: (also a `ValueError`) arguments that exclude each other.
    """

    cluster: Any = None
    address: str | None = None
    cluster_class: str | Callable[..., Any] | None = None
    cluster_kwargs: dict[str, Any] = field(default_factory=dict)
    adapt_kwargs: dict[str, Any] = field(default_factory=dict)
    client_kwargs: dict[str, Any] = field(default_factory=dict)
    performance_report_path: str | None = None
    local: tuple[WorkerClass, ...] | None = None
    policy: str | Policy | None = None

    @classmethod
    def of(
        cls,
        *,
        cluster: Any,
        address: str | None,
        cluster_class: str | Callable[..., Any] | None,
        cluster_kwargs: dict[str, Any] | None,
        adapt_kwargs: dict[str, Any] | None,
        client_kwargs: dict[str, Any] | None,
        performance_report_path: str | None,
        local: Sequence[WorkerClass] | None,
        policy: str | Policy | None,
    ) -> RunnerConfig:
        """Check what a user passed, and the settings in force, and copy the arguments."""
        if address and (cluster or cluster_class or cluster_kwargs or adapt_kwargs):
            raise ConfigurationError(
                "Cannot specify `address` and "
                "`cluster`/`cluster_class`/`cluster_kwargs`/`adapt_kwargs`: there is a scheduler "
                f"at {address!r} already, the others make or scale one; leave one of them out"
            )
        if cluster and (cluster_class or cluster_kwargs):
            raise ConfigurationError(
                "Cannot specify `cluster` and `cluster_class`/`cluster_kwargs`: the first is a "
                "running cluster, the others make one; leave one of them out"
            )
        if local is not None and (address or cluster or cluster_class):
            raise ConfigurationError(
                "Cannot specify `local` and `address`/`cluster`/`cluster_class`: `local` describes "
                "an embedded cluster, the others name one that is elsewhere"
            )
        if local is not None and adapt_kwargs:
            raise ConfigurationError(
                "Cannot specify `local` and `adapt_kwargs`: the worker classes say how many "
                "workers there are"
            )
        for name, kwargs in (("client_kwargs", client_kwargs), ("cluster_kwargs", cluster_kwargs)):
            if kwargs and "asynchronous" in kwargs:
                raise ConfigurationError(
                    f"`{name}` cannot set `asynchronous`. This option is managed by Prefect; "
                    "leave it out."
                )
        if address is not None:
            check_address(address)
        if cluster is not None:
            check_cluster(cluster)
        made_by = None if cluster_class is None else check_cluster_class(cluster_class)
        check_kwargs(made_by, cluster_kwargs or {}, adapt_kwargs or {}, client_kwargs or {})
        classes = None if local is None else check_classes(local)
        if policy is not None:
            check_policy(policy)
        if performance_report_path is not None:
            check_report_path(performance_report_path)
        settings = load_settings()
        is_elsewhere = cluster or cluster_class or cluster_kwargs or local
        check_settings(
            settings,
            setting_sources(),
            address or (None if is_elsewhere else settings.address),
        )
        starts_processes = made_by is None or (
            isinstance(made_by, type) and issubclass(made_by, distributed.LocalCluster)
        )
        if (
            starts_processes
            and not (address or cluster or (settings.address and not is_elsewhere))
            and (cluster_kwargs or {}).get("processes") is not False
        ):
            refuse_unguarded_flow()
        return cls(
            cluster=cluster,
            address=address,
            cluster_class=cluster_class,
            cluster_kwargs=dict(cluster_kwargs or {}),
            adapt_kwargs=dict(adapt_kwargs or {}),
            client_kwargs={"set_as_default": False, **(client_kwargs or {})},
            performance_report_path=performance_report_path,
            local=classes,
            policy=policy,
        )

    def resolved_cluster_class(self) -> Callable[..., Any] | None:
        """The cluster class itself, where its name was given."""
        if isinstance(self.cluster_class, str):
            resolved: Callable[..., Any] = from_qualified_name(self.cluster_class)
            return resolved
        return self.cluster_class

    def portable(self) -> RunnerConfig:
        """The value to pickle: a live cluster is left behind, its address takes its place."""
        if self.cluster is None:
            return self
        address = getattr(self.cluster, "scheduler_address", None) or None
        return replace(self, cluster=None, address=address, adapt_kwargs={})
