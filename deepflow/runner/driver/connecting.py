"""Connecting to a Dask cluster, or starting one, for the time that a task runner is entered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import dask
import distributed
from dask.utils import parse_timedelta
from prefect.context import FlowRunContext
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.importtools import to_qualified_name

from deepflow.backend.clusters.guard import refuse_unguarded_script
from deepflow.backend.clusters.local import is_local, local_cluster
from deepflow.backend.dask_logs import are_dask_logs_wanted
from deepflow.backend.scheduler_plugin import ReportDeaths
from deepflow.backend.tls import security_of
from deepflow.backend.transport import is_auto, pick_now, reach_now
from deepflow.decide.place.registry import STOCK
from deepflow.errors import ClusterUnreachableError
from deepflow.runner.console import are_successes_wanted
from deepflow.runner.driver.checks import check_cluster, check_free_port
from deepflow.runner.driver.client import DeepflowClient
from deepflow.runner.driver.config import RunnerConfig
from deepflow.runner.driver.placing import Placing
from deepflow.runner.options import this_process, tier_options, transfer_options
from deepflow.runner.worker_side import WorkerSide
from deepflow.settings import Settings

__all__ = ["Connection"]


class Connection:
    """A Dask client, with the cluster that was started for it and what was told to its workers.

    Raises:
        ClusterUnreachableError: nothing answers at the address.
    """

    def __init__(
        self,
        config: RunnerConfig,
        settings: Settings,
        worker_side: WorkerSide,
        logger: Any,
        run_logger: Any,
    ) -> None:
        self._config = config
        self._settings = settings
        self._worker_side = worker_side
        self._logger = logger
        self._run_logger = run_logger
        self._stack = ExitStack()
        self.cluster: Any = None
        """The cluster object in use; None where only a scheduler's address is known."""
        self.client: Any = None
        self.placing: Placing | None = None
        try:
            self._connect()
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        """Disconnect, and end the cluster if it was started here."""
        self._stack.close()

    def _connect(self) -> None:
        config, logger = self._config, self._logger
        connect_to: Any
        client_kwargs = config.client_kwargs
        if config.cluster is not None:
            logger.info(f"Connecting to existing Dask cluster {config.cluster}")
            check_cluster(config.cluster)
            connect_to = self.cluster = config.cluster
            self._adapt()
        else:
            address = config.address or (
                None
                if config.cluster_class or config.cluster_kwargs or config.local
                else self._settings.address or _ambient_address()
            )
            if address:
                logger.info(f"Connecting to an existing Dask cluster at {address}")
                connect_to = address
                security = security_of(self._settings.tls, address=address)
                if security is not None:
                    client_kwargs = {"security": security, **client_kwargs}
                if is_auto(address):
                    choice = pick_now(address, client_kwargs.get("security"))
                    connect_to = choice.address
                    client_kwargs = {**client_kwargs, "auto": address, "choice": choice}
                    self._run_logger.info("Connected by %s", choice.in_words())
            else:
                connect_to = self.cluster = self._make_cluster()
                self._adapt()
        if isinstance(connect_to, str):
            reach_now(connect_to, client_kwargs.get("security"), _patience_s(client_kwargs))
        try:
            client = DeepflowClient(connect_to, **client_kwargs)
        except OSError as exc:
            # The chain behind it has a link for each of Dask's attempts, and this says the last.
            raise ClusterUnreachableError(
                f"no Dask scheduler answers at {connect_to}: {exc}. Start one there "
                "(`dask scheduler`), or correct `address=` or DEEPFLOW_ADDRESS",
                address=str(connect_to),
            ) from None
        self.client = self._stack.enter_context(client)
        plugin = self._worker_side.plugin(
            this_process(),
            transfer_options(self._settings),
            tier_options(self._settings),
            shows_successes=are_successes_wanted(self.cluster),
            is_quiet=is_local(self.cluster) and not are_dask_logs_wanted(),
        )
        self.client.register_plugin(plugin)
        self.client.register_plugin(ReportDeaths())
        self._place()
        if config.performance_report_path:
            self._stack.enter_context(distributed.Client.as_current(self.client))
            self._stack.enter_context(
                distributed.performance_report(config.performance_report_path)
            )
        if self.client.dashboard_link and self._has_dashboard():
            logger.info(f"The Dask dashboard is available at {self.client.dashboard_link}")

    def _has_dashboard(self) -> bool:
        """Whether a page is at the dashboard's address: Dask needs bokeh to draw it."""
        return not is_local(self.cluster) or find_spec("bokeh") is not None

    def _place(self) -> None:
        """Hand placement to the plugin, unless Dask is to do it."""
        policy = self._config.policy or self._settings.placement
        if policy == STOCK:
            return
        placing = Placing(self.client, self._settings, policy, self._run_logger)
        flow_run = FlowRunContext.get()
        placing.register(
            flow_run.flow.name if flow_run and flow_run.flow else None,
            flow_run.flow_run if flow_run else None,
        )
        self.placing = placing

    def _make_cluster(self) -> Any:
        config = self._config
        make = config.resolved_cluster_class()
        if make is None:
            self._logger.info("Starting an embedded Dask cluster")
            # Read by the scheduler when it is made. Dask's default is five minutes of silence.
            silence = {"distributed.scheduler.worker-ttl": f"{self._settings.worker_silence_s} s"}
            security = security_of(self._settings.tls)
            check_free_port(config.cluster_kwargs)
            encrypted = {} if security is None else {"security": security}
            with dask.config.set(silence):
                return self._stack.enter_context(
                    local_cluster(
                        config.local,
                        imported=self._settings.preloaded_modules,
                        **{**encrypted, **config.cluster_kwargs},
                    )
                )
        is_here = isinstance(make, type) and issubclass(make, distributed.LocalCluster)
        if is_here and config.cluster_kwargs.get("processes") is not False:
            refuse_unguarded_script()
        name = to_qualified_name(make)
        self._logger.info(f"Creating a new Dask cluster with `{name}`")
        try:
            return self._stack.enter_context(make(**config.cluster_kwargs))
        except Exception:
            self._logger.error(f"Failed to create {name} cluster: ", exc_info=True)
            raise

    def _adapt(self) -> None:
        if self._config.adapt_kwargs:
            maybe_coroutine = self.cluster.adapt(**self._config.adapt_kwargs)
            if asyncio.iscoroutine(maybe_coroutine):
                run_coro_as_sync(maybe_coroutine)


def _patience_s(client_kwargs: Mapping[str, Any]) -> float:
    """Seconds that connecting may take: the client's, else Dask's own."""
    timeout = client_kwargs.get("timeout") or dask.config.get("distributed.comm.timeouts.connect")
    return float(parse_timedelta(timeout, default="s"))


def _ambient_address() -> str | None:
    """The scheduler of a Dask client that the user has set as the current one."""
    try:
        client = distributed.get_client()
    except ValueError:
        return None
    address: str | None = client.scheduler.address if client.scheduler is not None else None
    return address
