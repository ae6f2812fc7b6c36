"""Whether any worker could ever meet a task's needs, and if not, the nearest thing on offer.

Looks at what workers have in all, not at what is free now: a need that must wait is possible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deepflow.decide.model import WorkerOffer
from deepflow.errors import nearest
from deepflow.hints import CLASS_LABEL, GPU_RESOURCE, Hints, in_binary_bytes, label_resource

__all__ = ["Impossible", "impossible", "soft_gpu"]


@dataclass(frozen=True, slots=True)
class Impossible:
    """No worker on offer meets the need."""

    wanted: str
    """The need as a user writes it: ``gpu=2``."""
    nearest_offer: str | None
    """The closest thing some worker has; None when there is nothing of the kind."""
    reason: str
    """A sentence: what is wanted, what there is, what to do."""


@dataclass(frozen=True, slots=True)
class _Need:
    """One thing a worker must have, in words and as a test."""

    wanted: str
    is_met_by: Callable[[WorkerOffer], bool]
    explain: Callable[[Sequence[WorkerOffer]], tuple[str | None, str]]
    """The nearest offer among these workers, and what to do; asked only if none meets the need."""


def soft_gpu(offers: Sequence[WorkerOffer]) -> float:
    """What ``gpu="soft"`` comes to: the need of one GPU (or the largest part on offer), or 0."""
    return min(1.0, max((dict(o.resources).get(GPU_RESOURCE, 0.0) for o in offers), default=0.0))


def impossible(hints: Hints, offers: Sequence[WorkerOffer]) -> Impossible | None:
    """None if some worker meets every need at once, else the first need that cannot be met.

    With no worker at all nothing is known, and so nothing is impossible: they may still join.
    A soft GPU is never impossible. O(workers × needs).
    """
    needs = _needs(hints)
    if not offers or not needs:
        return None
    candidates: Sequence[WorkerOffer] = offers
    for i, need in enumerate(needs):
        left = [offer for offer in candidates if need.is_met_by(offer)]
        if left:
            candidates = left
            continue
        met_before = [n.wanted for n in needs[:i]]
        anywhere = any(need.is_met_by(offer) for offer in offers)
        return _refusal(need, candidates, met_before, is_met_elsewhere=anywhere)
    return None


def _refusal(
    need: _Need, candidates: Sequence[WorkerOffer], met_before: list[str], *, is_met_elsewhere: bool
) -> Impossible:
    """The sentence. ``candidates`` are the workers that meet all needs before this one."""
    found, advice = need.explain(candidates)
    if is_met_elsewhere:
        together = ", ".join((*met_before, need.wanted))
        nearby = f" (with {', '.join(met_before)}: {found})" if found else ""
        sentence = (
            f"no worker offers {together} together{nearby}; "
            "drop one of these needs or add a worker class that meets them all"
        )
        return Impossible(together, found, sentence)
    nearby = f" ({found})" if found else ""
    return Impossible(need.wanted, found, f"no worker offers {need.wanted}{nearby}; {advice}")


def _needs(hints: Hints) -> list[_Need]:
    """Class and labels first, then amounts: so an amount is explained within the chosen class."""
    wanted_labels = hints.wanted_labels
    needs = [_label_need(key, value) for key, value in sorted(wanted_labels.items(), key=_by_class)]
    if isinstance(hints.gpu, float) and hints.gpu > 0:
        needs.append(_resource_need("gpu", GPU_RESOURCE, hints.gpu))
    needs += [_resource_need(name, name, amount) for name, amount in hints.resources]
    if hints.cpu is not None:
        needs.append(_cpu_need(hints.cpu))
    if hints.memory is not None:
        needs.append(_memory_need(hints.memory))
    return needs


def _by_class(label: tuple[str, str]) -> tuple[bool, str]:
    return (label[0] != CLASS_LABEL, label[0])


def _label_need(key: str, value: str) -> _Need:
    resource = label_resource(key, value)
    what = "worker class" if key == CLASS_LABEL else f"label {key!r}"
    wanted = f"worker_class={value!r}" if key == CLASS_LABEL else f"label {key}={value!r}"

    def explain(offers: Sequence[WorkerOffer]) -> tuple[str | None, str]:
        known = sorted({v for offer in offers for v in offer.labels.get(key, ())})
        if not known:
            return (f"no worker has a {what}", f"leave it out or give workers the {what}")
        close = nearest(value, known)
        advice = f"did you mean {close!r}?" if close else "choose one of these or add such a worker"
        return (f"known: {', '.join(known)}", advice)

    return _Need(wanted, lambda offer: dict(offer.resources).get(resource, 0) > 0, explain)


def _resource_need(name: str, resource: str, amount: float) -> _Need:
    def explain(offers: Sequence[WorkerOffer]) -> tuple[str | None, str]:
        found = _largest(offers, name, lambda offer: dict(offer.resources).get(resource, 0.0))
        if found is not None:
            return (found, "lower the need or add a worker class")
        known = sorted({r for o in offers for r, _ in o.resources if not r.startswith("deepflow.")})
        close = nearest(resource, known)
        if close is not None:
            return (f"none has any; there is {close!r}", f"did you mean {close!r}?")
        return ("none has any", "leave it out or add a worker class that has it")

    return _Need(
        f"{name}={amount:g}",
        lambda offer: dict(offer.resources).get(resource, 0.0) >= amount,
        explain,
    )


def _cpu_need(threads: float) -> _Need:
    def explain(offers: Sequence[WorkerOffer]) -> tuple[str | None, str]:
        found = _largest(offers, "threads", lambda offer: offer.threads)
        return (found, "lower cpu or add a worker class with more threads")

    return _Need(f"cpu={threads:g}", lambda offer: offer.threads >= threads, explain)


def _memory_need(n_bytes: int) -> _Need:
    def explain(offers: Sequence[WorkerOffer]) -> tuple[str | None, str]:
        found = _largest(
            offers, "memory", lambda offer: offer.memory_bytes or 0, show=in_binary_bytes
        )
        return (found, "lower memory or add a worker class with more")

    return _Need(
        f"memory={in_binary_bytes(n_bytes)}",
        lambda offer: offer.memory_bytes is None or offer.memory_bytes >= n_bytes,
        explain,
    )


def _largest(
    offers: Sequence[WorkerOffer],
    name: str,
    amount_of: Callable[[WorkerOffer], float],
    show: Callable[[float], str] = lambda amount: f"{amount:g}",
) -> str | None:
    """``largest: gpu=1 on 3 workers``; None if no worker has any."""
    most = max((amount_of(offer) for offer in offers), default=0.0)
    if most <= 0:
        return None
    n_workers = sum(amount_of(offer) == most for offer in offers)
    on = "1 worker" if n_workers == 1 else f"{n_workers} workers"
    return f"largest: {name}={show(most)} on {on}"
