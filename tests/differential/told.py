"""Outcomes as plain values, so that one failing member of a case does not hide the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["each", "ended", "tell", "together"]


def tell(call: Callable[[], Any]) -> Any:
    """What the call returns, or the type and the text of what it raises."""
    try:
        return call()
    except Exception as exc:  # noqa: BLE001 - told instead of raised
        return f"{type(exc).__name__}: {exc}"


def each(names: Iterable[str], call: Callable[[str], Any]) -> dict[str, Any]:
    """What the call says of each name."""
    return {name: tell(lambda name=name: call(name)) for name in names}  # type: ignore[misc]


def ended(future: Any, timeout_s: float = 30.0) -> str:
    """The name of the state that a future ends in; says so where it does not end."""
    future.wait(timeout_s)
    state = future.state
    return state.name if state.is_final() or state.name == "NotReady" else f"still {state.name}"


def together(kinds: Iterable[str], submit: Callable[[str], Any]) -> dict[str, Any]:
    """As `each`, of the runs that `submit` submits: all are submitted before one is waited for."""
    futures: dict[str, Any] = {}

    def submitted(kind: str) -> None:
        futures[kind] = submit(kind)

    refused = each(kinds, submitted)
    return each(kinds, lambda kind: refused[kind] or futures[kind].result())
