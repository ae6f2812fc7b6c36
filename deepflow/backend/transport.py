"""Tries the ways to a scheduler and measures them: what `auto://host` stands for.

Each way is tried by connecting, asking who is there, and having a megabyte echoed; all of it by
Dask's own means, so that what is measured is what will be used.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import threading
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, TypeVar

from distributed.comm.core import connect
from distributed.core import send_recv
from distributed.protocol.serialize import to_serialize

from deepflow.decide.transport import AUTO, Trial, candidates, choose, endpoint
from deepflow.errors import ClusterUnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from distributed.comm.core import Comm
    from distributed.security import Security

__all__ = ["Choice", "is_auto", "pick", "pick_now", "reach_now", "try_address"]

T = TypeVar("T")

TIMEOUT_S: Final = 5.0
_ECHOED_BYTES: Final = 1 << 20
_TIMES: Final = 5
_GRACE_S: Final = 1.0
"""For the other ways, once one has answered."""
_STARTING_S: Final = 5.0
"""How long a scheduler of this machine may take to listen, and a name to become known."""
_SPEAKS_WITHIN_S: Final = 1.0
"""A scheduler greets whoever connects. One that says nothing for so long is busy, or is none."""
_ANSWERS_WITHIN_S: Final = 2.0
"""How long a web server may take to answer."""
_LOOK_EVERY_S: Final = 0.2
_DASHBOARD_PORT: Final = 8787


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
    address: str,
    security: Security | None,
    timeout_s: float = TIMEOUT_S,
    *,
    is_patient: bool = True,
) -> Trial:
    """Connect, ask, and have something echoed. Raises nothing: what went wrong is in the trial.

    `is_patient`: where the connection is refused, try again until `timeout_s` is over, since a
    scheduler may be starting.
    """
    return (await _try_all([address], security, timeout_s, is_patient))[0]


async def pick(
    address: str,
    security: Security | None,
    timeout_s: float = TIMEOUT_S,
    *,
    is_patient: bool = True,
) -> Choice:
    """Try every way to ``auto://host``, and take the best; `is_patient` as in `try_address`.

    `ClusterUnreachableError`, with what each failed of, where nothing answers.
    """
    ways = candidates(address, _encrypts(security))
    trials = await _try_all(ways, security, timeout_s, is_patient)
    chosen = choose(trials)
    if chosen is None:
        failed = "; ".join(f"{trial.address}: {trial.error}" for trial in trials)
        raise ClusterUnreachableError(
            f"no Dask scheduler answers at {address}. Tried {failed}. Start one there "
            "(`dask scheduler --protocol tcp,ws --port 8786,8787`), or correct the address",
            address=address,
        )
    return Choice(chosen.address, tuple(trials))


async def _try_all(
    ways: Sequence[str], security: Security | None, timeout_s: float, is_patient: bool
) -> list[Trial]:
    """All at once up to who answers, for Dask goes on trying until the deadline where nobody does;
    then one after the other, lest they share the link while they are measured."""
    arguments: dict[str, Any] = {}
    if security is not None and _encrypts(security):
        arguments = security.get_connection_args("client")
    greet = _greet if is_patient else _greet_now
    greeting = [asyncio.create_task(greet(way, arguments, timeout_s)) for way in ways]
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
        return Trial(address, error=_why(exc))
    try:
        return await asyncio.wait_for(_measured(address, comm, connect_s), timeout_s)
    except Exception as exc:  # noqa: BLE001 - as above
        return Trial(address, error=_in_words(exc))
    finally:
        comm.abort()


async def _greet_now(
    address: str, arguments: dict[str, Any], timeout_s: float
) -> tuple[Comm, float]:
    """As `_greet`; Dask would go on trying where the connection is refused."""
    found = endpoint(address)
    if found is not None:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(*found), timeout_s)
        try:
            if await _is_web_server(address, reader):
                raise ConnectionError(_WEB_SERVER)
        finally:
            writer.close()
    return await _greet(address, arguments, timeout_s)


_WEB_SERVER: Final = (
    "a web server answers there, such as Prefect's API or a dashboard, and no Dask scheduler"
)


async def _is_web_server(address: str, reader: asyncio.StreamReader) -> bool:
    """Whether whoever was connected to speaks HTTP. It is asked only where it does not speak first,
    as schedulers do, and not where HTTP is what the address is about."""
    scheme = address.partition("://")[0] if "://" in address else "tcp"
    found = endpoint(address)
    if scheme != "tcp" or found is None:
        return False
    try:
        await asyncio.wait_for(reader.read(1), _SPEAKS_WITHIN_S)
    except (OSError, TimeoutError):
        pass
    else:
        return False
    try:
        answer, writer = await asyncio.wait_for(asyncio.open_connection(*found), _ANSWERS_WITHIN_S)
        try:
            writer.write(b"HEAD / HTTP/1.0\r\n\r\n")
            return await asyncio.wait_for(answer.read(5), _ANSWERS_WITHIN_S) == b"HTTP/"
        finally:
            writer.close()
    except (OSError, TimeoutError):
        return False


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
    cause = _root(exc)
    return f"{type(cause).__name__}: {cause}".strip().rstrip(":")


def _root(exc: BaseException) -> BaseException:
    """What Dask's errors about a connection were raised from."""
    while exc.__cause__ is not None and not isinstance(exc, TimeoutError):
        exc = exc.__cause__
    return exc


async def reach(address: str, security: Security | None, timeout_s: float) -> None:
    """Return once a scheduler answers at an address.

    It may be starting, so it is given time: `timeout_s`, but only a few seconds where this very
    machine refuses the connection or the host's name is not known, and none where a web server
    answers. `ClusterUnreachableError` says
    why, and how long was waited. Addresses without a socket are not looked at.
    """
    found = endpoint(address)
    if found is None:
        return
    host, port = found
    began_s = time.monotonic()

    def left_s() -> float:
        return max(0.1, began_s + timeout_s - time.monotonic())

    while True:
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), left_s())
            break
        except (OSError, TimeoutError) as exc:
            patience_s = timeout_s
            if isinstance(exc, socket.gaierror) or (
                isinstance(exc, ConnectionRefusedError) and _is_here(host)
            ):
                patience_s = min(_STARTING_S, timeout_s)
            if time.monotonic() - began_s + _LOOK_EVERY_S > patience_s:
                raise _unreachable(address, port, _why(exc), began_s) from None
        await asyncio.sleep(_LOOK_EVERY_S)
    try:
        is_web_server = await _is_web_server(address, reader)
    finally:
        writer.close()
    if is_web_server:
        raise _unreachable(address, port, _WEB_SERVER, began_s)
    arguments: dict[str, Any] = {}
    if security is not None and _encrypts(security):
        arguments = security.get_connection_args("client")
    try:
        comm, _ = await asyncio.wait_for(_greet(address, arguments, left_s()), left_s())
    except Exception as exc:  # noqa: BLE001 - whatever the greeting fails of is said
        raise _unreachable(address, port, _why(exc), began_s) from None
    comm.abort()


def _unreachable(address: str, port: int, why: str, began_s: float) -> ClusterUnreachableError:
    waited_s = time.monotonic() - began_s
    nearest = f" ({_DASHBOARD_PORT} is Dask's dashboard)" if port == _DASHBOARD_PORT else ""
    return ClusterUnreachableError(
        f"no Dask scheduler answers at {address}{nearest}: {why}; waited {waited_s:.1f} s. Start "
        "one there (`dask scheduler`), or correct `address=` or DEEPFLOW_ADDRESS",
        address=address,
    )


def _why(exc: BaseException) -> str:
    """The cause in a few words."""
    cause = _root(exc)
    if isinstance(cause, TimeoutError):
        return "nothing that is a scheduler answered"
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused, nothing listens there"
    if isinstance(cause, ConnectionError) and str(cause) == _WEB_SERVER:
        return _WEB_SERVER
    if isinstance(cause, socket.gaierror):
        return f"no host of this name is known ({cause.strerror})"
    return _in_words(exc)


def _is_here(host: str) -> bool:
    """Whether a host is this machine."""
    if host in ("localhost", socket.gethostname()):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def reach_now(address: str, security: Security | None, timeout_s: float) -> None:
    """As `reach`, for callers that may have an event loop of their own."""
    _in_own_loop(lambda: reach(address, security, timeout_s))


def pick_now(
    address: str,
    security: Security | None,
    timeout_s: float = TIMEOUT_S,
    *,
    is_patient: bool = True,
) -> Choice:
    """As `pick`, for callers that may have an event loop of their own."""
    return _in_own_loop(lambda: pick(address, security, timeout_s, is_patient=is_patient))


def _in_own_loop(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What a coroutine comes to, run on a thread of its own."""
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(asyncio.run(make()))
        except BaseException as exc:  # noqa: BLE001 - raised again by the waiting thread
            failed.append(exc)

    thread = threading.Thread(target=run, name="deepflow-pick", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]
