"""Clusters to simulate, read from TOML files.

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

import math
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from deepflow.errors import ConfigurationError, HintError, nearest
from deepflow.hints import label_resource, parse_bytes
from deepflow.sim.builtin import BUILTIN_CLUSTERS
from deepflow.sim.cluster import (
    ClusterSpec,
    LinkFailure,
    NetworkSpec,
    SimWorkerClass,
    WorkerDeath,
)
from deepflow.sim.gavel import exact, gavel_assigned, gavel_speeds
from deepflow.sim.network import Network, sites

__all__ = [
    "parse_bandwidth",
    "read_cluster",
]

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
        speeds += gavel_assigned(kinds, measured) + exact(measured)
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
