"""Clusters to simulate that are built in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import geometric_mean

from deepflow.errors import ConfigurationError, nearest
from deepflow.hints import GPU_RESOURCE
from deepflow.sim.cluster import ClusterSpec, NetworkSpec, SimWorkerClass
from deepflow.sim.gavel import exact, gavel_assigned, gavel_speeds

__all__ = ["BUILTIN_CLUSTERS", "builtin_cluster", "builtin_clusters"]


def builtin_clusters(
    *, gavel_file: str | Path | None = None, kinds: Iterable[str] = ()
) -> dict[str, ClusterSpec]:
    """The clusters that are built in, by name; `gavel` only where its file is given."""
    kinds = tuple(kinds)
    return {
        name: builtin_cluster(name, gavel_file=gavel_file, kinds=kinds)
        for name in BUILTIN_CLUSTERS
        if name != "gavel" or gavel_file is not None
    }


def builtin_cluster(
    name: str, *, gavel_file: str | Path | None = None, kinds: Iterable[str] = ()
) -> ClusterSpec:
    """A cluster that is built in.

    `gavel_file` and `kinds` are for `gavel` alone: the path of Gavel's throughputs, and the kinds
    of work in the workload. Raises :class:`ConfigurationError` for a name that is not in
    `BUILTIN_CLUSTERS` and for `gavel` without its file.
    """
    if name == "gavel":
        return _gavel(gavel_file, kinds)
    if name not in _BUILDERS:
        close = nearest(name, BUILTIN_CLUSTERS)
        hint = f"did you mean {close!r}?" if close else f"known: {', '.join(BUILTIN_CLUSTERS)}"
        raise ConfigurationError(f"no cluster {name!r} is built in; {hint}")
    return _BUILDERS[name]()


def _homogeneous() -> ClusterSpec:
    """16 workers alike, 1 Gbit/s: what stock Dask is made for."""
    return ClusterSpec("homogeneous", (SimWorkerClass("plain", 16),))


def _three_speeds() -> ClusterSpec:
    """16 workers: 4 of speed 2 at 10 Gbit/s, 8 of speed 1 at 1 Gbit/s, 4 of speed 0.4 at
    100 Mbit/s."""
    return ClusterSpec(
        "three-speeds",
        (
            SimWorkerClass("fast", 4, speed=2.0, nic_bytes_per_s=1.25e9),
            SimWorkerClass("plain", 8, speed=1.0, nic_bytes_per_s=125e6),
            SimWorkerClass("slow", 4, speed=0.4, nic_bytes_per_s=12.5e6),
        ),
    )


def _edge() -> ClusterSpec:
    """A site and an edge: 4 workers of 4 threads and speed 2 at 10 Gbit/s in one zone; in another,
    behind an uplink of 100 Mbit/s and 20 ms, 12 workers of one thread and speed 0.5."""
    return ClusterSpec(
        "edge",
        (
            SimWorkerClass(
                "site",
                4,
                threads=4,
                speed=2.0,
                nic_bytes_per_s=1.25e9,
                labels=(("zone", "site"),),
            ),
            SimWorkerClass(
                "edge",
                12,
                speed=0.5,
                nic_bytes_per_s=12.5e6,
                labels=(("zone", "edge"), ("tier", "edge")),
            ),
        ),
        network=NetworkSpec(edge_uplink_bytes_per_s=12.5e6),
    )


def _gpu_mixed() -> ClusterSpec:
    """16 workers of 2 threads at 10 Gbit/s, all CPUs alike; 4 have a GPU, on which inference (kind
    `infer+gpu`, see `generators`) runs ten times as fast."""
    return ClusterSpec(
        "gpu-mixed",
        (
            SimWorkerClass("cpu", 12, threads=2, nic_bytes_per_s=1.25e9),
            SimWorkerClass(
                "gpu",
                4,
                threads=2,
                nic_bytes_per_s=1.25e9,
                speeds=(("infer+gpu", 10.0),),
                resources=((GPU_RESOURCE, 1.0),),
            ),
        ),
    )


def _gavel(gavel_file: str | Path | None, kinds: Iterable[str]) -> ClusterSpec:
    """16 workers with the measured speeds of 4 V100, 4 P100 (10 Gbit/s) and 8 K80 (1 Gbit/s).

    Speeds depend on the kind of work: some kinds gain twelvefold, some lose, and the P100 is at
    times ahead of the V100. Kinds that were not named have the geometric mean of the type.
    """
    if gavel_file is None:
        raise ConfigurationError(
            "the cluster 'gavel' is made of measured speeds; give gavel_file (for the command "
            "line in a cluster file), the path of Gavel's throughputs "
            "(simulation_throughputs.json of github.com/stanford-futuredata/gavel)"
        )
    kinds = tuple(kinds)
    classes = []
    for worker_type, count, nic in (("v100", 4, 1.25e9), ("p100", 4, 1.25e9), ("k80", 8, 125e6)):
        measured = gavel_speeds(gavel_file, worker_type)
        classes.append(
            SimWorkerClass(
                worker_type,
                count,
                speed=geometric_mean(speed for _, speed in measured),
                speeds=gavel_assigned(kinds, measured) + exact(measured),
                nic_bytes_per_s=nic,
            )
        )
    return ClusterSpec("gavel", tuple(classes))


_BUILDERS = {
    "homogeneous": _homogeneous,
    "three-speeds": _three_speeds,
    "edge": _edge,
    "gpu-mixed": _gpu_mixed,
}
BUILTIN_CLUSTERS = (*_BUILDERS, "gavel")
"""Names of the clusters that are built in."""
