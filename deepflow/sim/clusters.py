"""Clusters to simulate: read from TOML files, built from measured speeds, and built in.

A file has this form; every key but `name`, `classes` and a class's `name` and `count` may be left
out. A bandwidth is text such as "10 Gbit/s" or "125 MB/s", or a number of bytes per second; a size
is text such as "16 GiB", or a number of bytes::

    name = "two-speeds"
    noise = 0.3                     # ClusterSpec has the meaning and default of each
    control_latency_s = 0.001
    gavel_file = "gavel_throughputs.json.zst"   # beside this file, or absolute

    [[classes]]
    name = "fast"
    count = 4
    threads = 2
    memory = "16 GiB"
    speed = 2.0
    speeds = { "infer+gpu" = 20.0, "decode*" = 2.5 }   # the first that matches counts
    gavel = "v100"                  # measured speeds, after those of `speeds`
    resources = { GPU = 1 }
    labels = { zone = "north", tier = "edge" }
    workers_per_host = 1
    nic = "10 Gbit/s"
    starts_after_s = 0

    [network]
    topology = "tiers"              # or "fat-tree", "three-layer"
    hosts_per_rack = 4
    racks_per_zone = 4
    rack_uplink = "10 Gbit/s"
    zone_uplink = "10 Gbit/s"
    edge_uplink = "100 Mbit/s"
    process = "2 GB/s"
    latency_s = [2e-4, 5e-4, 5e-4, 2e-3, 2e-2]
    fat_tree_k = 4

    [[failures]]
    link = "rack-uplink:*"
    from_s = 60
    to_s = 90

    [[deaths]]
    worker = "fast-0"
    at_s = 120
    back_after_s = 30
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from ast import literal_eval
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Annotated, Any
from zlib import crc32

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from deepflow.errors import ConfigurationError, HintError, nearest
from deepflow.hints import GPU_RESOURCE, label_resource, parse_bytes
from deepflow.sim.cluster import (
    ClusterSpec,
    LinkFailure,
    NetworkSpec,
    SimWorkerClass,
    WorkerDeath,
)
from deepflow.sim.network import Network, sites

__all__ = [
    "BUILTIN_CLUSTERS",
    "GAVEL_WORKER_TYPES",
    "builtin_cluster",
    "builtin_clusters",
    "gavel_assigned",
    "gavel_speeds",
    "parse_bandwidth",
    "read_cluster",
]

GAVEL_WORKER_TYPES = ("k80", "p100", "v100")
_BITS_PER_UNIT: dict[str, int] = {
    f"{prefix}{unit}": bits * scale
    for unit, bits in (("bit", 1), ("b", 8))
    for prefix, scale in (
        *((p, 1000**n) for n, p in enumerate(("", "k", "m", "g", "t"))),
        *((f"{p}i", 1024**n) for n, p in enumerate("kmgt", 1)),
    )
}


# Values as they stand in a file


def parse_bandwidth(value: object) -> float:
    """Bytes per second meant by text such as `"10 Gbit/s"`, `"125 MB/s"`, or a number of them.

    Raises ValueError for anything else, and for what is not finite and above 0.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]+)/s\s*", value, re.IGNORECASE)
        unit = match[2].lower() if match else ""
        if match is None or unit not in _BITS_PER_UNIT:
            raise ValueError('write a bandwidth as "10 Gbit/s", "125 MB/s" or a number of bytes/s')
        bandwidth = float(match[1]) * (_BITS_PER_UNIT[unit] / 8)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        bandwidth = float(value)
    else:
        raise ValueError('write a bandwidth as "10 Gbit/s", "125 MB/s" or a number of bytes/s')
    if not 0 < bandwidth < math.inf:
        raise ValueError("a bandwidth is finite and above 0")
    return bandwidth


def _parse_memory(value: object) -> int:
    if value == 0 and not isinstance(value, bool):
        return 0
    return parse_bytes(value)  # type: ignore[arg-type]


Bandwidth = Annotated[float, BeforeValidator(parse_bandwidth)]
Size = Annotated[int, BeforeValidator(_parse_memory)]
Speed = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _ClassTable(_Table):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    count: Count
    threads: Count = 1
    memory: Size = 0
    speed: Speed = 1.0
    speeds: dict[str, Speed] = {}
    gavel: str = ""
    resources: dict[str, Speed] = {}
    labels: dict[str, str] = {}
    workers_per_host: Count = 1
    nic: Bandwidth = SimWorkerClass("", 1).nic_bytes_per_s
    starts_after_s: Seconds = 0.0


class _NetworkTable(_Table):
    topology: str = NetworkSpec().topology
    hosts_per_rack: Count = NetworkSpec().hosts_per_rack
    racks_per_zone: Count = NetworkSpec().racks_per_zone
    rack_uplink: Bandwidth = NetworkSpec().rack_uplink_bytes_per_s
    zone_uplink: Bandwidth = NetworkSpec().zone_uplink_bytes_per_s
    edge_uplink: Bandwidth = NetworkSpec().edge_uplink_bytes_per_s
    process: Bandwidth = NetworkSpec().process_bytes_per_s
    latency_s: Annotated[list[Seconds], Field(min_length=5, max_length=5)] = list(
        NetworkSpec().latency_s
    )
    fat_tree_k: Count = NetworkSpec().fat_tree_k


class _FailureTable(_Table):
    link: str
    from_s: Seconds
    to_s: Annotated[float, Field(gt=0)]


class _DeathTable(_Table):
    worker: str
    at_s: Seconds
    back_after_s: Seconds | None = None


class _ClusterTable(_Table):
    name: str
    classes: Annotated[list[_ClassTable], Field(min_length=1)]
    network: _NetworkTable = _NetworkTable()
    failures: list[_FailureTable] = []
    deaths: list[_DeathTable] = []
    noise: Seconds = ClusterSpec("", ()).noise
    control_latency_s: Seconds = ClusterSpec("", ()).control_latency_s
    gavel_file: str = ""


_TABLES: dict[str, type[_Table]] = {
    "": _ClusterTable,
    "classes": _ClassTable,
    "network": _NetworkTable,
    "failures": _FailureTable,
    "deaths": _DeathTable,
}


def read_cluster(path: str | Path, *, kinds: Iterable[str] = ()) -> ClusterSpec:
    """The cluster that a TOML file describes; the form is at the top of this module.

    `kinds`: kinds of work in the workload that Gavel did not measure; classes with `gavel` have
    the speeds for them that :func:`gavel_assigned` says. Raises :class:`ConfigurationError` that
    names the file, every key that is unknown (with the nearest that is) or impossible, and why.
    """
    path = Path(path)
    try:
        table = _ClusterTable.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as e:
        raise ConfigurationError(
            f"cannot read the cluster {path}: {e.strerror or e}; give the path of a TOML file, or "
            f"a cluster that is built in: {', '.join(BUILTIN_CLUSTERS)}"
        ) from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigurationError(
            f"{path} is not TOML: {e}; correct that, text stands in quotes"
        ) from e
    except ValidationError as e:
        raise ConfigurationError(f"{path}: {_in_words(e)}") from e
    try:
        gavel_file = path.parent / table.gavel_file if table.gavel_file else None
        return _checked(_spec(table, gavel_file, tuple(kinds)))
    except (ConfigurationError, HintError) as e:
        raise ConfigurationError(f"{path}: {e}") from e


def _spec(table: _ClusterTable, gavel_file: Path | None, kinds: Sequence[str]) -> ClusterSpec:
    network = table.network
    return ClusterSpec(
        name=table.name,
        classes=tuple(_worker_class(c, gavel_file, kinds) for c in table.classes),
        network=NetworkSpec(
            topology=network.topology,
            hosts_per_rack=network.hosts_per_rack,
            racks_per_zone=network.racks_per_zone,
            rack_uplink_bytes_per_s=network.rack_uplink,
            zone_uplink_bytes_per_s=network.zone_uplink,
            edge_uplink_bytes_per_s=network.edge_uplink,
            process_bytes_per_s=network.process,
            latency_s=tuple(network.latency_s),  # type: ignore[arg-type]
            fat_tree_k=network.fat_tree_k,
            failures=tuple(LinkFailure(f.link, f.from_s, f.to_s) for f in table.failures),
        ),
        deaths=tuple(WorkerDeath(d.worker, d.at_s, d.back_after_s) for d in table.deaths),
        noise=table.noise,
        control_latency_s=table.control_latency_s,
    )


def _worker_class(
    table: _ClassTable, gavel_file: Path | None, kinds: Sequence[str]
) -> SimWorkerClass:
    speeds = tuple(table.speeds.items())
    if table.gavel:
        if gavel_file is None:
            raise ConfigurationError(
                f"class {table.name!r} has gavel={table.gavel!r}, but the cluster has no "
                "gavel_file; give the path of Gavel's throughputs"
            )
        measured = gavel_speeds(gavel_file, table.gavel)
        speeds += gavel_assigned(kinds, measured) + _exact(measured)
    for key, value in table.labels.items():
        label_resource(key, value)  # refuses what cannot be a label
    return SimWorkerClass(
        name=table.name,
        count=table.count,
        threads=table.threads,
        memory_bytes=table.memory,
        speed=table.speed,
        speeds=speeds,
        resources=tuple(sorted(table.resources.items())),
        labels=tuple(table.labels.items()),
        workers_per_host=table.workers_per_host,
        nic_bytes_per_s=table.nic,
        starts_after_s=table.starts_after_s,
    )


def _checked(cluster: ClusterSpec) -> ClusterSpec:
    """The cluster, if its parts agree."""
    names = [worker_class.name for worker_class in cluster.classes]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigurationError(f"two classes are named {twice[0]!r}; names are unique")
    hosts = sites(cluster)
    for death in cluster.deaths:
        if death.worker not in hosts:
            close = nearest(death.worker, tuple(hosts))
            raise ConfigurationError(
                f"deaths: no worker is named {death.worker!r}; "
                + (f"did you mean {close!r}?" if close else "names are <class>-<number from 0>")
            )
    Network(cluster.network, hosts)  # refuses what its topology cannot be
    return cluster


def _in_words(error: ValidationError) -> str:
    """pydantic's findings, each as key, value and what is wrong."""
    lines = []
    for finding in error.errors(include_url=False):
        *table, key = finding["loc"]
        name = ".".join(str(part) for part in finding["loc"])
        if finding["type"] == "extra_forbidden":
            model = _TABLES.get(str(table[0]) if table else "", _ClusterTable)
            close = nearest(str(key), tuple(model.model_fields))
            known = (
                f"did you mean {close!r}?" if close else f"known: {', '.join(model.model_fields)}"
            )
            lines.append(f"{name} is no key; {known}")
        elif finding["type"] == "missing":
            lines.append(f"{name} is missing")
        else:
            message = finding["msg"].removeprefix("Value error, ")
            message = message.replace("Input should be ", "give what is ", 1)
            lines.append(f"{name}={finding['input']!r}: {message}")
    return "; ".join(lines)


# Measured speeds


def gavel_speeds(path: str | Path, worker_type: str) -> tuple[tuple[str, float], ...]:
    """Pairs of a kind of work and the speed for it of `worker_type`, relative to `k80`.

    From the throughputs of Gavel (Narayanan et al., OSDI'20): training jobs alone on one GPU. The
    kinds are Gavel's names of the jobs, such as `ResNet-18 (batch size 16)`, sorted; jobs that
    some type could not run are left out. Raises :class:`ConfigurationError` for a file that is not
    there or is not Gavel's, and for another type.
    """
    if worker_type not in GAVEL_WORKER_TYPES:
        raise ConfigurationError(
            f"gavel={worker_type!r} is not a type that Gavel measured; "
            f"use one of {', '.join(GAVEL_WORKER_TYPES)}"
        )
    throughputs = _read_gavel(Path(path))
    try:
        alone = {
            type_: {
                literal_eval(job)[0]: float(beside["null"])
                for job, beside in throughputs[type_].items()
                if literal_eval(job)[1] == 1
            }
            for type_ in GAVEL_WORKER_TYPES
        }
    except (KeyError, ValueError, TypeError, SyntaxError, IndexError) as e:
        raise ConfigurationError(
            f"{path} does not have the form of Gavel's throughputs: {e!r}"
        ) from e
    jobs = sorted(
        job for job in alone["k80"] if all(alone[t].get(job, 0.0) > 0 for t in GAVEL_WORKER_TYPES)
    )
    if not jobs:
        raise ConfigurationError(f"{path} has no job that all of {GAVEL_WORKER_TYPES} ran")
    return tuple((job, alone[worker_type][job] / alone["k80"][job]) for job in jobs)


def gavel_assigned(
    kinds: Iterable[str], measured: Sequence[tuple[str, float]]
) -> tuple[tuple[str, float], ...]:
    """Measured speeds for kinds of work that Gavel did not measure.

    Each kind is given one of the measured jobs by the CRC-32 of its name, modulo their number: the
    same one in every process, on every class of worker and in every workload. Unlike kinds so have
    unlike speed-ups, as measured ones are, though none was measured for them. A kind that is a
    measured job keeps its own. Pairs as in `SimWorkerClass.speeds`, sorted by kind.
    """
    known = {job for job, _ in measured}
    return _exact(
        (kind, measured[crc32(kind.encode()) % len(measured)][1])
        for kind in sorted(set(kinds) - known)
    )


def _exact(pairs: Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    """Pairs whose kinds match as patterns what they are, whatever characters are in them."""
    return tuple((re.sub(r"([*?[])", r"[\1]", kind), speed) for kind, speed in pairs)


def _read_gavel(path: Path) -> Mapping[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise ConfigurationError(
            f"cannot read Gavel's throughputs {path}: {e.strerror or e}; they are "
            "simulation_throughputs.json of github.com/stanford-futuredata/gavel"
        ) from e
    if path.suffix == ".zst":
        import zstandard  # only where the file is compressed

        try:
            with zstandard.ZstdDecompressor().stream_reader(raw) as reader:
                raw = reader.read()
        except zstandard.ZstdError as e:
            raise ConfigurationError(f"{path} is damaged or not zstd-compressed: {e}") from e
    try:
        throughputs = json.loads(raw)
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ConfigurationError(f"{path} is not JSON: {e}") from e
    if not isinstance(throughputs, dict):
        raise ConfigurationError(f"{path} does not have the form of Gavel's throughputs")
    return throughputs


# Built in


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
                speeds=gavel_assigned(kinds, measured) + _exact(measured),
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
