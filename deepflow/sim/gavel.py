"""Speeds of GPUs for kinds of work, as Gavel (Narayanan et al., OSDI'20) measured them."""

from __future__ import annotations

import json
import re
from ast import literal_eval
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

from deepflow.errors import ConfigurationError

__all__ = ["GAVEL_WORKER_TYPES", "exact", "gavel_assigned", "gavel_speeds"]

GAVEL_WORKER_TYPES = ("k80", "p100", "v100")


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
    return exact(
        (kind, measured[crc32(kind.encode()) % len(measured)][1])
        for kind in sorted(set(kinds) - known)
    )


def exact(pairs: Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
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
