"""The workers of a simulation: how they come and go, and what passes between them and Dask."""

from __future__ import annotations

from itertools import count
from typing import Any

from distributed.scheduler import heartbeat_interval

from deepflow.decide.events import Failed, Placed, WorkerJoined, WorkerLeft
from deepflow.errors import DeepflowError
from deepflow.hints import CLASS_LABEL, LABEL_OFFER, label_resource
from deepflow.sim._jobs import Jobs
from deepflow.sim._stage import Stage
from deepflow.sim._worker import Gather, SimWorker, WorkerLimits
from deepflow.sim.cluster import SimWorkerClass, WorkerDeath
from deepflow.sim.network import HostSite, Network

__all__ = ["STEAL_CONFIRMED", "Members"]

STEAL_CONFIRMED = frozenset({"ready", "constrained", "waiting"})
"""States in which a worker gives a task away (as in `distributed.stealing`)."""


class Members:
    """All workers that were ever part of the cluster.

    Args:
        stage: time and journal.
        scheduler: Dask's.
        jobs: whose tasks the workers run.
        sites: where each worker is, by name.
        seed: decides what a worker's state machine draws by lot.
        validate: whether Dask checks its state at each step.
        is_told_of_placing: whether to note in the journal where Dask places each task.
    """

    def __init__(
        self,
        stage: Stage,
        scheduler: Any,
        jobs: Jobs,
        network: Network,
        sites: dict[str, HostSite],
        limits: WorkerLimits,
        *,
        seed: int,
        validate: bool,
        is_told_of_placing: bool,
    ) -> None:
        self._stage = stage
        self._scheduler = scheduler
        self._jobs = jobs
        self._network = network
        self._sites = sites
        self._limits = limits
        self._seed = seed
        self._validate = validate
        self._is_told_of_placing = is_told_of_placing
        self.n_steals = 0
        """Tasks that one worker gave away and another was given."""
        self._by_name: dict[str, SimWorker] = {}
        self._by_address: dict[str, SimWorker] = {}
        self._gathers: dict[int, Gather] = {}
        self._flow_ids = count()
        self._ports = count(20000)
        self._hosts: dict[str, int] = {}
        self._stolen: str | None = None
        """The key that is being given to its thief, while that is so."""

    # --- workers that come and go

    async def joins(self, name: str, worker_class: SimWorkerClass) -> None:
        """A worker starts and registers with the scheduler."""
        site = self._sites[name]
        host = self._hosts.setdefault(site.host, len(self._hosts))
        address = f"tcp://{_ip(host)}:{next(self._ports)}"
        worker = SimWorker(
            stage=self._stage,
            jobs=self._jobs,
            around=self,
            limits=self._limits,
            name=name,
            worker_class=worker_class,
            site=site,
            address=address,
            resources=_offers(worker_class, site),
            seed=self._seed,
            validate=self._validate,
        )
        self._by_name[name] = self._by_address[address] = worker
        self._stage.worker_names[address] = name
        now_s = self._stage.clock.now_s
        self._stage.emit(
            WorkerJoined(
                now_s,
                name,
                worker_class.name,
                worker_class.threads,
                memory_bytes=worker_class.memory_bytes,
                host=site.host,
                rack=site.rack,
                zone=site.zone,
                tier=site.tier,
                resources=tuple(sorted(worker.resources.items())),
            )
        )
        scheduler = self._scheduler
        await scheduler.add_worker(
            _Reply(),
            address=address,
            status="running",
            server_id=f"Worker-{address}",
            nthreads=worker_class.threads,
            name=name,
            resolve_address=False,
            now=now_s,
            resources=worker.resources,
            memory_limit=worker_class.memory_bytes or None,
            metrics=worker.metrics(),
            services={},
            local_directory="",
            versions={},
            nanny="",
            extra={},
            stimulus_id="worker-connect",
        )
        scheduler.stream_comms[address].connect(
            lambda messages: self._send_to_worker(worker, messages)
        )

    async def dies(self, death: WorkerDeath) -> None:
        """A worker dies, and may come back."""
        worker = self._by_name.get(death.worker)
        if worker is None or not worker.is_alive:
            return
        self.worker_ends(worker, cause="died")
        if death.back_after_s is not None:
            # Not before the scheduler has seen it go: it takes no name twice.
            back_s = max(death.back_after_s, self._stage.latency_s)
            self._stage.ahead(
                self._stage.clock.now_s + back_s, self.joins, worker.name, worker.worker_class
            )

    def worker_ends(self, worker: SimWorker, *, cause: str) -> None:
        """A worker is gone with all it held; the scheduler and its peers see that later."""
        now_s = self._stage.clock.now_s
        worker.is_alive = False
        for key in worker.running:
            self._stage.emit(Failed(now_s, key, worker.name, f"worker {cause}"))
        self._stage.emit(WorkerLeft(now_s, worker.name, cause))
        self._stage.arrive(self._scheduler_loses, worker)
        for flow, gather in list(self._gathers.items()):
            if worker in (gather.source, gather.target):
                self._network.cancel(flow, now_s)
                del self._gathers[flow]
                if gather.source is not None:
                    gather.source.n_outgoing -= 1
                if gather.target is not worker:
                    self._stage.arrive(gather.target.gather_fails, gather)

    async def _scheduler_loses(self, worker: SimWorker) -> None:
        await self._scheduler.remove_worker(
            worker.address, stimulus_id="handle-worker-cleanup", close=False
        )

    def worker_at(self, address: str) -> SimWorker | None:
        """The living worker at an address."""
        worker = self._by_address[address]
        return worker if worker.is_alive else None

    def heartbeats(self) -> None:
        """Every worker tells how it is, at the interval that the scheduler asks for."""
        for worker in list(self._by_name.values()):
            if worker.is_alive and worker.address in self._scheduler.workers:
                worker.heartbeat(self._scheduler)
        self._stage.later(heartbeat_interval(len(self._scheduler.workers)), self.heartbeats)

    # --- messages between scheduler and workers

    def _send_to_worker(self, worker: SimWorker, messages: tuple[dict[str, Any], ...]) -> None:
        for message in messages:
            if message["op"] == "compute-task":
                is_stolen = message["key"] == self._stolen
                self.n_steals += is_stolen
                if self._is_told_of_placing:
                    reason = "stolen" if is_stolen else ""
                    self._stage.emit(
                        Placed(
                            self._stage.clock.now_s,
                            message["key"],
                            worker.name,
                            "stock",
                            reason=reason,
                        )
                    )
        if worker.is_alive:
            self._stage.arrive(worker.receive, messages)

    def send_to_scheduler(self, worker: SimWorker, message: dict[str, Any]) -> None:
        """A message of a worker sets out."""
        self._stage.arrive(self._scheduler_hears, worker, message)

    def _scheduler_hears(self, worker: SimWorker, message: dict[str, Any]) -> None:
        if worker.address not in self._scheduler.workers:
            return
        op = message.pop("op")
        if op == "task-finished":
            self._jobs.note_result(worker.name, message)
        elif op == "steal-response" and message["state"] in STEAL_CONFIRMED:
            self._stolen = message["key"]
        try:
            self._scheduler.stream_handlers[op](worker=worker.address, **message)
        finally:
            self._stolen = None

    # --- run times and transfers

    def execution_starts(self, worker: SimWorker, key: str, until_s: float) -> None:
        """A task runs on a worker until then."""

        def ends() -> None:
            if worker.is_alive:
                worker.execution_ends(key)

        self._stage.ahead(until_s, ends)

    def gather_starts(self, gather: Gather) -> None:
        """Data sets out to a worker."""
        flow = next(self._flow_ids)
        self._gathers[flow] = gather
        assert gather.source is not None
        gather.source.n_outgoing += 1
        self._network.start(
            flow,
            gather.source.name,
            gather.target.name,
            sum(gather.sizes.values()),
            self._stage.clock.now_s,
        )

    def gather_ends(self, flow: int) -> None:
        """Data has arrived at a worker."""
        gather = self._gathers.pop(flow)
        assert gather.source is not None
        gather.source.n_outgoing -= 1
        self._stage.has_progressed()
        gather.target.gather_ends(gather)


class _Reply:
    """Takes what the scheduler answers to a worker that registers."""

    async def write(self, message: dict[str, Any]) -> None:
        """Refuse to go on where the scheduler refuses the worker."""
        if message["status"] != "OK":
            raise DeepflowError(f"the scheduler does not take the worker: {message['message']}")


def _offers(worker_class: SimWorkerClass, site: HostSite) -> dict[str, float]:
    """A worker's Dask resources, its labels among them as a real worker offers them."""
    labels = {
        "host": site.host,
        "rack": site.rack,
        "zone": site.zone,
        **({"tier": site.tier} if site.tier else {}),
        CLASS_LABEL: worker_class.name,
        **dict(worker_class.labels),
    }
    return {
        **dict(worker_class.resources),
        **{label_resource(key, value): LABEL_OFFER for key, value in labels.items()},
    }


def _ip(host: int) -> str:
    """An address for a host: Dask looks names up, and takes workers of one address to be near."""
    return f"10.{host >> 16 & 255}.{host >> 8 & 255}.{host & 255}"
