"""What it is to be run on: classes of simulated workers, and the network between them.

Frozen values; times in seconds, sizes in bytes, bandwidths in bytes per second.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

__all__ = ["ClusterSpec", "LinkFailure", "NetworkSpec", "SimWorkerClass", "WorkerDeath"]


@dataclass(frozen=True, slots=True)
class SimWorkerClass:
    """Workers of one kind.

    The speed of a worker for a task: the first pattern of `speeds` that matches the task's kind,
    else `speed`. A task with `soft_gpu` that was given a GPU is looked up as `<kind>+gpu` first.
    """

    name: str
    count: int
    threads: int = 1
    memory_bytes: int = 0
    """0: without limit."""
    speed: float = 1.0
    speeds: tuple[tuple[str, float], ...] = ()
    """Pairs of a pattern (as in `fnmatch`) of kinds of work, and the speed for them."""
    resources: tuple[tuple[str, float], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    """Such as rack, zone, tier; a rack or zone given here is that of all its workers."""
    workers_per_host: int = 1
    nic_bytes_per_s: float = 125e6
    """What its host sends, and as much again receives, at once."""
    starts_after_s: float = 0.0

    def speed_for(self, kind: str, *, on_gpu: bool = False) -> float:
        """Seconds of work at speed 1 that a thread does in a second."""
        if on_gpu:
            for pattern, speed in self.speeds:
                if fnmatchcase(f"{kind}+gpu", pattern):
                    return speed
        for pattern, speed in self.speeds:
            if fnmatchcase(kind, pattern):
                return speed
        return self.speed


@dataclass(frozen=True, slots=True)
class LinkFailure:
    """Links that carry nothing for a while; flows over them stall and go on afterwards."""

    link: str
    """Name of a link or switch, or a pattern of names."""
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """How hosts are joined: see `topology` for what each one means."""

    topology: str = "tiers"
    """`tiers`, `fat-tree` or `three-layer`."""
    hosts_per_rack: int = 4
    racks_per_zone: int = 4
    rack_uplink_bytes_per_s: float = 1.25e9
    zone_uplink_bytes_per_s: float = 1.25e9
    edge_uplink_bytes_per_s: float = 12.5e6
    """Between a zone of tier `edge` and the rest."""
    process_bytes_per_s: float = 2e9
    """Between two workers of one host."""
    latency_s: tuple[float, float, float, float, float] = (2e-4, 5e-4, 5e-4, 2e-3, 2e-2)
    """Within a host, a rack, a zone, between zones, and to the edge."""
    fat_tree_k: int = 4
    failures: tuple[LinkFailure, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerDeath:
    """A worker that is lost with all it holds, and perhaps comes back empty."""

    worker: str
    """Name, `<class>-<number>`."""
    at_s: float
    back_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """Workers, network, and what goes wrong with them."""

    name: str
    classes: tuple[SimWorkerClass, ...]
    network: NetworkSpec = NetworkSpec()
    deaths: tuple[WorkerDeath, ...] = ()
    noise: float = 0.3
    """Standard deviation of the logarithm of the factor on each run time."""
    control_latency_s: float = 1e-3
    """From scheduler to worker and back, each way."""
