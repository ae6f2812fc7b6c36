"""Tries the ways to a scheduler and measures them: what `auto://host` stands for.

Each way is tried by connecting, asking who is there, and having a megabyte echoed; all of it by
Dask's own means, so that what is measured is what will be used.
"""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from distributed.comm.core import connect
from distributed.core import send_recv
from distributed.protocol.serialize import to_serialize

from deepflow.decide.transport import AUTO, Trial, candidates, choose
from deepflow.errors import ClusterUnreachableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distributed.comm.core import Comm
    from distributed.security import Security

__all__ = ["Choice", "is_auto", "pick", "pick_now", "try_address"]

TIMEOUT_S: Final = 5.0
_ECHOED_BYTES: Final = 1 << 20
_TIMES: Final = 5
_GRACE_S: Final = 1.0
"""For the other ways, once one has answered."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The way that is taken, and what came of trying each."""

    address: str
    trials: tuple[Trial, ...]

    def in_words(self) -> str:
        """A sentence for logs and reports."""
        chosen = next(trial for trial in self.trials if trial.address == self.address)
        told = [
            f"{self.address} ({chosen.round_trip_s * 1e3:.2g} ms a round trip, "
            f"{chosen.bytes_per_s / 1e6:.3g} MB/s)"
        ]
        for trial in self.trials:
            if trial is chosen:
                continue
            why = trial.error or (
                f"slower: {trial.round_trip_s * 1e3:.2g} ms, {trial.bytes_per_s / 1e6:.3g} MB/s"
            )
            told.append(f"not {trial.address}: {why}")
        return "; ".join(told)


def is_auto(address: object) -> bool:
    """Whether an address asks to be picked."""
    return isinstance(address, str) and address.startswith(f"{AUTO}://")


async def try_address(
    address: str, security: Security | None, timeout_s: float = TIMEOUT_S
) -> Trial:
    """Connect, ask, and have something echoed. Raises nothing: what went wrong is in the trial."""
    return (await _try_all([address], security, timeout_s))[0]


async def pick(address: str, security: Security | None, timeout_s: float = TIMEOUT_S) -> Choice:
    """Try every way to ``auto://host``, and take the best.

    `ClusterUnreachableError`, with what each failed of, where nothing answers.
    """
    trials = await _try_all(candidates(address, _encrypts(security)), security, timeout_s)
    chosen = choose(trials)
    if chosen is None:
        failed = "; ".join(f"{trial.address}: {trial.error}" for trial in trials)
        raise ClusterUnreachableError(
            f"no Dask scheduler answers at {address}. Tried {failed}. Start one there "
            "(`dask scheduler --protocol tcp,ws --port 8786,8787`), or correct the address",
            address=address,
        )
    return Choice(chosen.address, tuple(trials))


async def _try_all(ways: Sequence[str], security: Security | None, timeout_s: float) -> list[Trial]:
    """All at once up to who answers, for Dask goes on trying until the deadline where nobody does;
    then one after the other, lest they share the link while they are measured."""
    arguments: dict[str, Any] = {}
    if security is not None and _encrypts(security):
        arguments = security.get_connection_args("client")
    greeting = [asyncio.create_task(_greet(way, arguments, timeout_s)) for way in ways]
    deadline_s = time.monotonic() + timeout_s
    open_tasks: set[asyncio.Task[tuple[Comm, float]]] = set(greeting)
    while open_tasks and time.monotonic() < deadline_s:
        done, open_tasks = await asyncio.wait(
            open_tasks,
            timeout=deadline_s - time.monotonic(),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if any(task.exception() is None for task in done):
            deadline_s = min(deadline_s, time.monotonic() + _GRACE_S)
    for task in open_tasks:
        task.cancel()
    await asyncio.gather(*open_tasks, return_exceptions=True)
    return [await _outcome(way, task, timeout_s) for way, task in zip(ways, greeting, strict=True)]


async def _outcome(
    address: str, greeted: asyncio.Task[tuple[Comm, float]], timeout_s: float
) -> Trial:
    try:
        comm, connect_s = greeted.result()
    except asyncio.CancelledError:
        return Trial(address, error="no answer in time")
    except Exception as exc:  # noqa: BLE001 - whatever a way fails of, the next one is tried
        return Trial(address, error=_in_words(exc))
    try:
        return await asyncio.wait_for(_measured(address, comm, connect_s), timeout_s)
    except Exception as exc:  # noqa: BLE001 - as above
        return Trial(address, error=_in_words(exc))
    finally:
        comm.abort()


async def _greet(address: str, arguments: dict[str, Any], timeout_s: float) -> tuple[Comm, float]:
    began_s = time.perf_counter()
    comm = await connect(address, timeout=timeout_s, **arguments)
    try:
        who = await send_recv(comm, op="identity", n_workers=0)
        if not isinstance(who, dict) or who.get("type") != "Scheduler":
            raise ConnectionError("who answers there is no Dask scheduler")
    except BaseException:
        comm.abort()
        raise
    return comm, time.perf_counter() - began_s


async def _measured(address: str, comm: Comm, connect_s: float) -> Trial:
    round_trips = []
    for _ in range(_TIMES):
        sent_s = time.perf_counter()
        await send_recv(comm, op="echo", data=b"")
        round_trips.append(time.perf_counter() - sent_s)
    sent_s = time.perf_counter()
    await send_recv(comm, op="echo", data=to_serialize(bytes(_ECHOED_BYTES)))
    echo_s = time.perf_counter() - sent_s
    round_trip_s = statistics.median(round_trips)
    # A round trip of little may take longer than one of much: small packets wait for each other.
    moving_s = max(echo_s - round_trip_s, 0.1 * echo_s)
    return Trial(address, "", connect_s, round_trip_s, 2 * _ECHOED_BYTES / moving_s)


def _encrypts(security: Security | None) -> bool:
    """A client without certificates has a `Security`, too."""
    return security is not None and bool(
        security.require_encryption or getattr(security, "tls_ca_file", None)
    )


def _in_words(exc: BaseException) -> str:
    cause = exc.__cause__ or exc
    return f"{type(cause).__name__}: {cause}".strip().rstrip(":")


def pick_now(address: str, security: Security | None, timeout_s: float = TIMEOUT_S) -> Choice:
    """As `pick`, for callers that may have an event loop of their own."""
    found: list[Choice | BaseException] = []

    def run() -> None:
        try:
            found.append(asyncio.run(pick(address, security, timeout_s)))
        except BaseException as exc:  # noqa: BLE001 - raised again by the waiting thread
            found.append(exc)

    thread = threading.Thread(target=run, name="deepflow-pick", daemon=True)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]
