"""What the driver tells each worker of its cluster: who it is, and how values travel and rest."""

from __future__ import annotations

import os
import socket
from typing import Final

from deepflow.backend.tiers import TierOptions
from deepflow.backend.transfer.install import Options
from deepflow.decide.place.registry import STOCK
from deepflow.settings import Settings

__all__ = ["FLUSH_TIMEOUT_S", "this_process", "tier_options", "transfer_options"]

FLUSH_TIMEOUT_S: Final = 5.0
"""Seconds that a worker's last log lines and events have to reach the server."""


def transfer_options(settings: Settings) -> Options | None:
    """How values are to travel between the processes of the cluster; None: as Dask does."""
    if settings.transfer == STOCK:
        return None
    folder = "" if settings.shared_memory == "off" else settings.shared_memory
    return Options(settings.compression, folder, settings.shared_memory_bytes)


def tier_options(settings: Settings) -> TierOptions | None:
    """Where values go that outgrow a worker's memory; None: where Dask puts them."""
    if settings.tiers == STOCK:
        return None
    return TierOptions(settings.tier_memory_bytes, settings.tier_disk_bytes, settings.tier_url)


def this_process() -> str:
    """`host:pid`, unique among the processes of a cluster."""
    return f"{socket.gethostname()}:{os.getpid()}"
