"""Fetch results from where they lie.

Dask's default way goes through the scheduler, which copies and forces an old pickle protocol:
100 MB take 325 ms, and 42 ms straight from the worker. Whether a worker can be reached from here
(it cannot from outside many clusters) is tried once per address, with a short deadline. From a
worker of this host the value is not copied at all (see `transfer`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from distributed.comm.core import connect

from deepflow.backend.contract import FETCHING, may_use
from deepflow.backend.transfer.install import Options, fetcher_of
from deepflow.observe.fallbacks import Fallback, fell_back

if TYPE_CHECKING:
    from distributed import Client, Future

_PROBE_TIMEOUT_S = 2.0
_reachable: WeakKeyDictionary[Any, dict[str, bool]] = WeakKeyDictionary()

_log = logging.getLogger(__name__)


async def _is_reachable(client: Client, address: str) -> bool:
    known = _reachable.setdefault(client, {})
    if address not in known:
        try:
            comm = await connect(address, timeout=_PROBE_TIMEOUT_S, **client.connection_args)
            await comm.close()
            known[address] = True
        except OSError:
            known[address] = False
            fell_back(Fallback.WORKER_UNREACHABLE)
    return known[address]


async def _fetch(
    client: Client, futures: Sequence[Future[Any]], transfer: Options | None
) -> list[Any]:
    for future in futures:
        # A future that belongs to a client has a state.
        assert future._state is not None
        await future._state.wait()
    assert client.scheduler is not None, "the client is connected while its runner is entered"
    who_has = await client.scheduler.who_has(keys=[future.key for future in futures])
    addresses = {address for holders in who_has.values() for address in holders}
    direct = bool(addresses)
    for address in addresses:
        direct = direct and await _is_reachable(client, address)
    taken: dict[Any, Any] = {}
    if direct and transfer is not None:
        taken = await _take(client, who_has, transfer)
    left = [future for future in futures if future.key not in taken]
    if left:
        values = await client._gather(left, direct=direct)
        taken.update(zip((future.key for future in left), values, strict=True))
    return [taken[future.key] for future in futures]


async def _take(
    client: Client, who_has: dict[Any, Sequence[str]], transfer: Options
) -> dict[Any, Any]:
    """What workers with deepflow hand over; what is not in the answer is left to Dask."""
    by_address: dict[str, list[Any]] = {}
    for key, holders in who_has.items():
        if holders and not holders[0].startswith("inproc://"):
            by_address.setdefault(holders[0], []).append(key)
    fetcher = fetcher_of(client, transfer)

    async def take(address: str, keys: list[Any]) -> dict[Any, Any]:
        try:
            card = await fetcher.card(address)
            fetched = await fetcher.fetch(address, card, keys) if card is not None else None
        except Exception as exc:  # noqa: BLE001 - Dask tries again, and says what is wrong
            fell_back(Fallback.FETCH_FAILED)
            _log.info("fetching from %s failed; again by Dask's own way: %s", address, exc)
            return {}
        return fetched.data if fetched is not None else {}

    taken: dict[Any, Any] = {}
    for data in await asyncio.gather(*(take(*item) for item in by_address.items())):
        taken.update(data)
    return taken


def fetch(
    client: Client,
    futures: Sequence[Future[Any]],
    timeout_s: float | None = None,
    transfer: Options | None = None,
) -> list[Any]:
    """The results of `futures`, gathered in one go; waits for those that are not done.

    `transfer`: how they are to travel; None: by Dask's own means.

    Raises:
        TimeoutError: not there after `timeout_s` seconds.
        Exception: what Dask says where a result is lost for good.
    """
    if may_use(FETCHING):
        how: tuple[Any, ...] = (_fetch, client, futures, transfer)
    else:
        how = (_gather_all, client, futures)
    values: list[Any] = client.sync(*how, callback_timeout=timeout_s)
    return values


async def _gather_all(client: Client, futures: Sequence[Future[Any]]) -> list[Any]:
    """The results by Dask's public way."""
    values: list[Any] = await client.gather(list(futures), asynchronous=True)
    return values
