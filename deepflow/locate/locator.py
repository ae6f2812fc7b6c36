"""Where inputs lie, asked side by side, under a deadline, and remembered.

One locator serves a whole driver. What it is asked about goes to resolvers in a few daemon threads;
the caller waits for the deadline at most. Late answers are kept for the next time. Nothing here
ever raises for an input that cannot be located: the answer is None, the cause one line in the log.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final
from urllib.parse import urlsplit

from deepflow.decide.fallbacks import Fallback
from deepflow.decide.location import Holder, Location, WorkerPlace
from deepflow.errors import ConfigurationError, nearest
from deepflow.hints import Near
from deepflow.locate.hdfs import HdfsResolver
from deepflow.locate.hosts import HostResolver, lookup
from deepflow.locate.object_store import S3Resolver
from deepflow.locate.paths import PathResolver
from deepflow.locate.resolvers import Resolver, added_resolvers, register_resolver
from deepflow.locate.storage import safe_text, scheme_of

__all__ = ["Locator", "Resolver", "register_resolver"]

_log = logging.getLogger("deepflow.locate")

_MAX_CAUSES: Final = 1000
"""Causes that are remembered as said; beyond that, no more are written to the log."""

_Key = tuple[str, str]
"""Scheme, and what the resolver calls the key."""
_Site = tuple[str, str]
"""Scheme and server: what is down or slow as one."""


@dataclass(frozen=True, slots=True)
class _Known:
    """An answer, and until when it holds. None: it could not be had."""

    location: Location | None
    until_s: float


@dataclass(frozen=True, slots=True)
class _Asked:
    key: _Key
    answer: Future[Location | None]


class Locator:
    """Tells where things to be near lie, within `timeout_s`, or that it does not know.

    `storage_options` are fsspec's, by scheme (`{"s3": {"endpoint_url": …}}`); what fsspec has in
    its own configuration need not be given. `resolvers` win over registered and built-in ones.
    Answers hold for `ttl_s`, failures for `failed_ttl_s`; a server that does not answer at all is
    left alone for `failed_ttl_s` too, so that a thousand inputs on it cost one deadline. `count`
    is called for everything that could not be located: `NEAR_UNKNOWN` (no resolver),
    `NEAR_FAILED`, `NEAR_TIMEOUT`. Thread-safe. Call `close` at the end.
    """

    def __init__(
        self,
        *,
        storage_options: Mapping[str, Mapping[str, object]] | None = None,
        resolvers: Iterable[Resolver] = (),
        timeout_s: float = 2.0,
        ttl_s: float = 300.0,
        failed_ttl_s: float = 30.0,
        max_known: int = 10_000,
        n_threads: int = 8,
        count: Callable[[Fallback], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value in (("timeout_s", timeout_s), ("n_threads", n_threads)):
            if value <= 0:
                raise ConfigurationError(f"{name}={value!r} must be above 0")
        self._timeout_s, self._ttl_s, self._failed_ttl_s = timeout_s, ttl_s, failed_ttl_s
        self._max_known = max_known
        self._count = count or (lambda kind: None)
        self._clock = clock
        built_in = (
            HostResolver(),
            PathResolver(),
            HdfsResolver(storage_options),
            S3Resolver(storage_options),
        )
        self._resolvers: dict[str, Resolver] = {
            **{scheme: resolver for resolver in built_in for scheme in resolver.schemes},
            **added_resolvers(),
            **{scheme: resolver for resolver in resolvers for scheme in resolver.schemes},
        }
        self._lock = threading.Lock()
        self._known: OrderedDict[_Key, _Known] = OrderedDict()
        self._open: dict[_Key, Future[Location | None]] = {}
        self._said: set[tuple[str, ...]] = set()
        self._threads = _DaemonThreads(n_threads)

    def locate(self, near: Near) -> Location | None:
        """Where `near` lies; None if that is not known, or not within the deadline."""
        return self.locate_all((near,))[0]

    def locate_all(self, nears: Sequence[Near]) -> tuple[Location | None, ...]:
        """Where each of `nears` lies, in their order, all within one deadline.

        Futures are the runner's own: for them it is None without a word.
        """
        asked = [(near, self._ask(near)) for near in nears]
        wait([one.answer for _, one in asked if one is not None], timeout=self._timeout_s)
        found: list[Location | None] = []
        late: list[tuple[Near, _Key]] = []
        for near, one in asked:
            in_time = one is not None and one.answer.done()
            found.append(one.answer.result() if one is not None and in_time else None)
            if one is not None and not in_time:
                late.append((near, one.key))
        if late:
            pairs = zip(nears, found, strict=True)
            self._give_up_on(late, answered={_site(n) for n, where in pairs if where is not None})
        return tuple(found)

    def place(self, address: str, labels: Mapping[str, str] | None = None) -> WorkerPlace:
        """Where the worker at a Dask address runs, with every name of its machine that is known.

        May wait for DNS the first time (a second at most), if the address has a name in it.
        """
        host = self._within_ttl(("host-names", address), lambda: _names_as_location(address))
        aliases = host.hosts[0].names if host is not None else ()
        return WorkerPlace.of(address, labels, aliases)

    def close(self) -> None:
        """End its threads. What is still being asked ends by itself and is not waited for."""
        self._threads.close()

    def __enter__(self) -> Locator:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- asking --------------------------------------------------------------------------------

    def _ask(self, near: Near) -> _Asked | None:
        """The answer to come (or here already); None where nothing is to be had."""
        scheme = _scheme(near)
        resolver = self._resolvers.get(scheme)
        if resolver is None:
            if near.kind != "future":
                self._fail(
                    (scheme, "unknown"),
                    Fallback.NEAR_UNKNOWN,
                    f"There is no resolver for {scheme}://, so near={safe_text(near.value)} places "
                    f"nothing; {self._nearest_scheme(scheme)}, or add one with "
                    "deepflow.register_resolver",
                )
            return None
        try:
            key = (scheme, resolver.key(near))
        except Exception as error:  # noqa: BLE001 - a resolver may be another package's code
            self._fail_with(near, error)
            return None
        with self._lock:
            answer: Future[Location | None] = Future()
            known = self._fresh(key)
            if known is not None:
                answer.set_result(known.location)
                return _Asked(key, answer)
            if key in self._open:
                return _Asked(key, self._open[key])
            if self._fresh(_down(near)) is not None:
                return None
            self._open[key] = answer
        self._threads.run(lambda: self._resolve(resolver, near, key, answer))
        return _Asked(key, answer)

    def _nearest_scheme(self, scheme: str) -> str:
        """The scheme that was meant, or which there are."""
        known = [name for name in self._resolvers if name not in ("host", "path")]
        close = nearest(scheme, known)
        return f"did you mean {close}://" if close else f"use one of {', '.join(known)}"

    def _resolve(
        self, resolver: Resolver, near: Near, key: _Key, answer: Future[Location | None]
    ) -> None:
        """Runs in a thread of the pool."""
        location = None
        try:
            location = resolver.resolve(near)
            if not isinstance(location, Location):
                raise TypeError(f"{resolver!r} answered {location!r}, which is no Location")
        except Exception as error:  # noqa: BLE001 - a resolver's failure must not fail the task
            location = None
            self._fail_with(near, error)
        finally:
            with self._lock:
                self._remember(key, location)
                self._open.pop(key, None)
                if location is not None:
                    self._known.pop(_down(near), None)
            answer.set_result(location)

    def _give_up_on(self, late: Sequence[tuple[Near, _Key]], answered: set[_Site]) -> None:
        """Say what was too slow; a server that answered nothing is left alone for a while."""
        for near, key in late:
            site = _site(near)
            with self._lock:
                if key in self._open:  # else it has come in the meantime
                    self._remember(key, None)
                if site not in answered:
                    self._remember(_down(near), None)
            self._fail(
                (*site, "timeout"),
                Fallback.NEAR_TIMEOUT,
                f"Where near={safe_text(near.value)} lies was not known within "
                f"{self._timeout_s:g} s; tasks run without that. It is not asked again for "
                f"{self._failed_ttl_s:g} s if nothing there answers",
            )

    # -- remembering ---------------------------------------------------------------------------

    def _fresh(self, key: _Key) -> _Known | None:
        known = self._known.get(key)
        if known is None or known.until_s <= self._clock():
            return None
        self._known.move_to_end(key)
        return known

    def _remember(self, key: _Key, location: Location | None) -> None:
        holds_s = self._ttl_s if location is not None else self._failed_ttl_s
        self._known[key] = _Known(location, self._clock() + holds_s)
        self._known.move_to_end(key)
        while len(self._known) > self._max_known:
            self._known.popitem(last=False)

    def _within_ttl(self, key: _Key, find: Callable[[], Location]) -> Location | None:
        with self._lock:
            known = self._fresh(key)
        if known is not None:
            return known.location
        location = find()
        with self._lock:
            self._remember(key, location)
        return location

    # -- saying --------------------------------------------------------------------------------

    def _fail_with(self, near: Near, error: Exception) -> None:
        scheme, server = _site(near)
        is_missing = isinstance(error, ImportError)  # the same for every server
        if isinstance(error, OSError) and not isinstance(error, _ABOUT_ONE_INPUT):
            with self._lock:
                self._remember(_down(near), None)
        self._fail(
            (scheme, "" if is_missing else server, type(error).__name__),
            Fallback.NEAR_FAILED,
            f"Where near={safe_text(near.value)} lies is not known, tasks run without that: "
            f"{type(error).__name__}: {safe_text(str(error)) or 'no reason given'}",
        )

    def _fail(self, cause: tuple[str, ...], kind: Fallback, sentence: str) -> None:
        """Count it; write it to the log if this cause was not written before."""
        self._count(kind)
        with self._lock:
            if cause in self._said or len(self._said) >= _MAX_CAUSES:
                return
            self._said.add(cause)
        _log.warning("%s.", sentence.rstrip("."))


_ABOUT_ONE_INPUT: Final = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)
"""Errors that say nothing of the next input on the same server."""


class _DaemonThreads:
    """Runs functions in a few threads, started as needed.

    Not `concurrent.futures`: its threads are joined when the interpreter ends, and one that waits
    for a dead server would hold that up.
    """

    def __init__(self, n_threads: int) -> None:
        self._n_threads = n_threads
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0
        self._idle = 0

    def run(self, function: Callable[[], None]) -> None:
        """Have it run, sooner or later; it must not raise."""
        with self._lock:
            starts = self._idle <= self._work.qsize() and self._started < self._n_threads
            self._started += starts
            self._work.put(function)
        if starts:
            threading.Thread(target=self._serve, name="deepflow-locate", daemon=True).start()

    def close(self) -> None:
        with self._lock:
            for _ in range(self._started):
                self._work.put(None)

    def _serve(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            function = self._work.get()
            with self._lock:
                self._idle -= 1
                if function is None:
                    self._started -= 1
                    return
            function()


def _scheme(near: Near) -> str:
    return scheme_of(near.value) if near.kind == "url" else near.kind


def _site(near: Near) -> _Site:
    """Scheme and server; for a host itself, and for paths the whole machine is one."""
    if near.kind == "url":
        return (_scheme(near), urlsplit(near.value).netloc.rsplit("@", 1)[-1])
    return (near.kind, near.value if near.kind == "host" else "")


def _down(near: Near) -> _Key:
    """The key under which it is remembered that a whole server does not answer."""
    scheme, server = _site(near)
    return (f"down: {scheme}", server)


def _names_as_location(address: str) -> Location:
    return Location(hosts=(Holder(address, aliases=lookup(address)),))
