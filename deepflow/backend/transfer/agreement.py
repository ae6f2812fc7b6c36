"""What two processes tell each other before the first value: version, port, and shared memory.

A worker adds it to the answer to Dask's ``identity``; one that does not is a foreign peer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

__all__ = ["FIELD", "VERSION", "Card", "read_card"]

VERSION: Final = 1
FIELD: Final = "deepflow"


@dataclass(frozen=True, slots=True)
class Card:
    """What a worker says of itself. ``port`` 0: no streams; ``key_name`` empty: no segments."""

    version: int
    port: int
    key_name: str

    def to_message(self) -> dict[str, Any]:
        """As it travels."""
        return asdict(self)


def read_card(identity: object) -> Card | None:
    """The card in a worker's identity; None for a foreign peer, or one of another version."""
    said = identity.get(FIELD) if isinstance(identity, dict) else None
    if not isinstance(said, dict) or said.get("version") != VERSION:
        return None
    port, key_name = said.get("port"), said.get("key_name")
    if not isinstance(port, int) or not isinstance(key_name, str):
        return None
    return Card(VERSION, port, key_name)
