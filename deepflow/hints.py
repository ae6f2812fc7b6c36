"""What a user says about a task: what it needs, what it should be near, how it should run.

One function, :func:`hints`, says it in two ways, which may be combined::

    @hints(gpu=1, memory="4 GiB")          # on a task, above or below @task
    @task
    def train(block): ...

    with hints(priority=10, near=block):   # around submit and map
        train.submit(block)

Nested contexts merge and the inner one wins; a context wins over what the task itself says.
The result is a frozen :class:`Hints`, which travels with each task.

Labels on Dask
--------------
A worker offers each of its labels (``rack=a``, ``zone=eu``) as an amount of a Dask *resource* named
by :func:`label_resource`, and a task that wants the label needs a tiny part of it. So Dask's own
scheduler honours labels, also for workers that join later and with no plugin installed. A worker's
class is the label ``class``. The name has the form ``deepflow.label.<key>:<value>``: a colon, since
``dask worker --resources`` splits its pairs at ``=``. The amounts are powers of two, so taking and
giving back is exact however often it happens.

This module imports the standard library only, and all of it is in one file: every task definition
pays for the import.
"""

from __future__ import annotations

import copy
import math
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, TypedDict, TypeVar, Unpack, cast
from urllib.parse import unquote, urlsplit

from deepflow.errors import HintError, nearest

__all__ = [
    "CLASS_LABEL",
    "GPU_RESOURCE",
    "LABEL_NEED",
    "LABEL_OFFER",
    "HintKeywords",
    "Hints",
    "HintsScope",
    "Near",
    "current_hints",
    "hints",
    "in_binary_bytes",
    "label_resource",
    "parse_bytes",
    "parse_label_resource",
]

T = TypeVar("T")

GPU_RESOURCE: Final = "GPU"
LABEL_OFFER: Final = 1.0
"""How much of each of its labels a worker offers."""
LABEL_NEED: Final = 2.0**-30
"""How much of a label a task takes: small enough never to limit how many run side by side."""

CLASS_LABEL: Final = "class"
_LABEL_PREFIX: Final = "deepflow.label."
_ATTRIBUTE: Final = "__deepflow_hints__"

_BYTES_PER_UNIT: Final = {
    "": 1,
    "b": 1,
    **{f"{p}b": 1000**n for n, p in enumerate("kmgtp", 1)},
    **{f"{p}ib": 1024**n for n, p in enumerate("kmgtp", 1)},
}
# Patterns are text: `re` compiles and caches them on first use, which an import need not pay for.
_SIZE: Final = r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-z]*)\s*"
_HOST_WORD: Final = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_HOST: Final = rf"{_HOST_WORD}(?:\.{_HOST_WORD})*\.?(?::[0-9]+)?"
_IPV6: Final = r"\[?[0-9a-f]*:[0-9a-f:.]*:[0-9a-f:.]*(?:\](?::[0-9]+)?)?"
_WINDOWS_DRIVE: Final = r"[A-Za-z]:[\\/]"
_COMM_SCHEMES: Final = frozenset({"tcp", "tls", "ws", "wss", "ucx", "ucxx", "inproc"})
_LABEL_WORD: Final = r"[^\s,=:]+"
_LABEL_VALUE: Final = r"[^\s,=]+"

NearKind = Literal["future", "host", "path", "url"]


def parse_bytes(size: int | float | str) -> int:
    """Bytes meant by ``size``: a whole number, or text such as ``"4 GiB"`` or ``"500MB"``.

    ``kB MB GB TB PB`` are powers of 1000, ``KiB MiB GiB TiB PiB`` of 1024, in any case.
    Raises :class:`HintError` for anything else and for less than one byte.
    """
    if isinstance(size, str):
        match = re.fullmatch(_SIZE, size, re.IGNORECASE)
        unit = match.group(2).lower() if match else ""
        if match is None or unit not in _BYTES_PER_UNIT:
            raise HintError(
                f'{size!r} is not a size; write bytes as a number, or "4 GiB", "500 MB"'
            )
        n_bytes = float(match.group(1)) * _BYTES_PER_UNIT[unit]
    elif isinstance(size, bool) or not isinstance(size, (int, float)):
        raise HintError(
            f'{size!r} ({type(size).__name__}) is not a size; write bytes as a number, or "4 GiB"'
        )
    else:
        n_bytes = size
    if not math.isfinite(n_bytes) or n_bytes < 1:
        raise HintError(f"{size!r} is not a size; it must be at least one byte and finite")
    return int(n_bytes)


def in_binary_bytes(n_bytes: float) -> str:
    """A size as `parse_bytes` reads it and a person writes it: ``4 GiB``, ``900 TiB``."""
    for unit, size in (("PiB", 1024**5), ("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2)):
        if n_bytes >= size:
            return f"{n_bytes / size:.4g} {unit}"
    return f"{n_bytes / 1024:.4g} KiB" if n_bytes >= 1024 else f"{n_bytes:.4g} B"


def label_resource(key: str, value: str) -> str:
    """The name of the Dask resource by which a worker offers the label ``key=value``."""
    if not isinstance(key, str) or not re.fullmatch(_LABEL_WORD, key):
        raise HintError(
            f"{key!r} cannot be the name of a label; use text without spaces, ',', '=' and ':'"
        )
    if not isinstance(value, str) or not re.fullmatch(_LABEL_VALUE, value):
        raise HintError(
            f"{value!r} cannot be the value of label {key!r}; use text without spaces, ',' and '='"
        )
    return f"{_LABEL_PREFIX}{key}:{value}"


def parse_label_resource(resource: str) -> tuple[str, str] | None:
    """``(key, value)`` if the Dask resource stands for a label, else None; undoes the above."""
    if not resource.startswith(_LABEL_PREFIX):
        return None
    key, colon, value = resource[len(_LABEL_PREFIX) :].partition(":")
    return (key, value) if colon else None


@dataclass(frozen=True, slots=True)
class Near:
    """One thing a task wants to run near.

    ``value`` is the task run's id for a ``future``, the name or address of a ``host``, the path as
    given for a ``path``, and the whole URL for a ``url``.
    """

    kind: NearKind
    value: str

    @classmethod
    def of(cls, thing: object) -> Near:
        """Tell what ``thing`` is: a future, a path, a storage URL or a host.

        Text with a ``scheme://`` is a URL (``file://`` a path, ``tcp://`` and other Dask addresses
        a host); text that begins like a path (``/``, ``./``, ``../``, ``~``) or contains a slash is
        a path; other text must be a host name. So a file in the working directory is written
        ``./flights.csv`` or given as ``pathlib.Path``. Raises :class:`HintError`.
        """
        if isinstance(thing, Near):
            return thing
        task_run_id = getattr(thing, "task_run_id", None)
        if task_run_id is not None:
            return cls("future", str(task_run_id))
        if isinstance(thing, os.PathLike):
            path = os.fspath(thing)
            return cls("path", os.fsdecode(path))
        if isinstance(thing, str) and thing.strip():
            return cls._of_text(thing.strip())
        raise HintError(
            f"near={thing!r} ({type(thing).__name__}) is nothing a task can be near; "
            "give a future, a host name, a path or a storage URL"
        )

    @classmethod
    def _of_text(cls, text: str) -> Near:
        if "://" in text:
            url = urlsplit(text)
            if url.scheme == "file":
                return cls("path", unquote(url.path))
            if url.scheme in _COMM_SCHEMES:
                return cls("host", text)
            return cls("url", text)
        if text[0] in "/~." or "/" in text or re.match(_WINDOWS_DRIVE, text) or os.sep in text:
            return cls("path", text)
        if re.fullmatch(f"{_HOST}|{_IPV6}", text, re.IGNORECASE):
            return cls("host", text)
        raise HintError(
            f"near={text!r} is neither a host name, a path nor a URL; "
            f"write ./{text} or pathlib.Path({text!r}) if it is a file"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """All that was said about a task. Frozen, hashable, picklable; every field has a default.

    Arguments are checked and brought into one form (``memory="4 GiB"`` becomes an integer,
    mappings sorted pairs, ``near`` a tuple of :class:`Near`). Raises :class:`HintError`.
    """

    cpu: float | None = None
    """Threads of the worker the task keeps busy."""
    gpu: float | Literal["soft"] | None = None
    """GPUs (or a part of one) the task needs; ``"soft"``: it can use
    one, and is given one where it is expected to end sooner for it."""
    memory: int | None = None
    """Bytes the task needs at its peak."""
    resources: tuple[tuple[str, float], ...] = ()
    """Amounts of named Dask resources, sorted by name."""
    worker_class: str | None = None
    """The name of the class of workers to run on."""
    labels: tuple[tuple[str, str], ...] = ()
    """Labels the worker must have, sorted by key."""
    near: tuple[Near, ...] = ()
    """What to run near, most wanted first."""
    strict: bool = False
    """``near`` is a demand, not a wish."""
    priority: int = 0
    """Higher runs earlier among the tasks that could run."""
    isolate: bool = False
    """Run in a process of its own, which can be killed."""
    batch: bool | None = None
    """Whether it may share a Dask task with its neighbours in a ``map``; None: as found best."""
    durable: bool = False
    """Write the result to result storage before reporting it, and never run it again."""

    given: frozenset[str] = field(default=frozenset(), repr=False)
    """Which fields were said rather than left at their default; merging goes by it."""

    def __post_init__(self) -> None:
        put = object.__setattr__  # the dataclass is frozen; this is its constructor
        put(self, "cpu", _amount("cpu", self.cpu, zero=False))
        if self.gpu != "soft":
            put(self, "gpu", _amount("gpu", self.gpu, zero=True, or_word='"soft"'))
        if self.memory is not None:
            put(self, "memory", _memory(self.memory))
        put(self, "resources", _resources(self.resources))
        put(self, "worker_class", _worker_class(self.worker_class))
        put(self, "labels", _labels(self.labels))
        put(self, "near", _near(self.near))
        for name in ("strict", "isolate", "durable"):
            put(self, name, _flag(name, getattr(self, name)))
        if self.batch is not None:
            _flag("batch", self.batch)
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            raise HintError(
                f"priority={self.priority!r} must be a whole number; higher runs earlier"
            )
        said = {name for name in _NAMES if getattr(self, name) != _DEFAULTS[name]}
        put(self, "given", frozenset(self.given) | said)
        class_label = dict(self.labels).get(CLASS_LABEL)
        if self.worker_class and class_label and class_label != self.worker_class:
            raise HintError(
                f"worker_class={self.worker_class!r} and labels={{'class': {class_label!r}}} "
                "contradict each other; say one of them"
            )

    @classmethod
    def of(cls, **said: Any) -> Hints:
        """Hints from keywords; a misspelt one is refused with the nearest known name.

        A keyword said with its default value counts as said, so that an inner
        ``hints(isolate=False)`` undoes an outer ``hints(isolate=True)``.
        """
        for name in said:
            if name not in _NAMES:
                close = nearest(name, _NAMES)
                known = f"did you mean {close!r}?" if close else f"known are {', '.join(_NAMES)}"
                raise HintError(f"unknown hint {name!r}; {known}")
        return cls(**said, given=frozenset(said))

    def merge(self, inner: Hints) -> Hints:
        """These hints with ``inner`` said on top.

        What ``inner`` says wins. ``resources`` and ``labels`` merge key by key; things to be
        ``near`` are put before the outer ones; saying any of the three empty clears it.
        """
        if not inner.given:
            return self
        merged = {name: getattr(self, name) for name in self.given}
        for name in inner.given:
            value = getattr(inner, name)
            if name in ("resources", "labels") and value:
                value = {**dict(getattr(self, name)), **dict(value)}
            elif name == "near" and value:
                value = tuple(dict.fromkeys((*value, *self.near)))
            merged[name] = value
        return Hints(**merged, given=self.given | inner.given)

    @property
    def wanted_labels(self) -> dict[str, str]:
        """The labels a worker must have, its class among them."""
        labels = dict(self.labels)
        if self.worker_class:
            labels[CLASS_LABEL] = self.worker_class
        return labels

    def dask_resources(self, *, soft_gpu: float = 0.0) -> dict[str, float]:
        """What Dask must hold for the task: ``annotate(resources=...)``.

        ``soft_gpu`` is what ``gpu="soft"`` comes to here, as `deepflow.decide.offers.soft_gpu`
        works it out. ``cpu`` and ``memory`` are no Dask resources and so are not among them.
        """
        needs = dict(self.resources)
        gpu = soft_gpu if self.gpu == "soft" else (self.gpu or 0.0)
        if gpu:
            needs[GPU_RESOURCE] = gpu
        for key, value in self.wanted_labels.items():
            needs[label_resource(key, value)] = LABEL_NEED
        return needs

    def __bool__(self) -> bool:
        """Whether anything was said at all."""
        return bool(self.given)

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={getattr(self, name)!r}" for name in _NAMES if name in self.given)
        return f"Hints({said})"


_DEFAULTS: Final[dict[str, object]] = {
    f.name: f.default for f in fields(Hints) if f.name != "given"
}
_NAMES: Final[tuple[str, ...]] = tuple(_DEFAULTS)

_in_context: ContextVar[tuple[Hints, ...]] = ContextVar("deepflow_hints", default=())


class HintsScope:
    """What :func:`hints` returns: a decorator for tasks and a context manager around calls.

    It holds no state of its own, so one scope may be entered many times, nested, and from many
    threads at once.
    """

    __slots__ = ("hints",)

    def __init__(self, said: Hints) -> None:
        self.hints = said

    def __enter__(self) -> Hints:
        """Put the hints in force; gives what is in force now, outer contexts included."""
        stack = _in_context.get()
        merged = stack[-1].merge(self.hints) if stack else self.hints
        _in_context.set((*stack, merged))
        return merged

    def __exit__(self, *exc_info: object) -> None:
        _in_context.set(_in_context.get()[:-1])

    def __call__(self, target: T) -> T:
        """A copy of a function or Prefect task that carries the hints; the original has none.

        Copied because Prefect's ``with_options`` shares one function among several tasks, and a
        hint given to one variant must not reach the others.
        """
        if hasattr(target, "fn") and hasattr(target, "with_options"):
            if not hasattr(target, "map"):
                raise HintError(
                    f"hints() decorates tasks, not the flow {getattr(target, 'name', target)!r}; "
                    "put it on the flow's tasks, or use 'with hints(...):' inside the flow"
                )
            task = cast(Any, copy.copy(target))
            original = task.fn
            task.fn = self._carrier(original)
            if getattr(task, "__wrapped__", None) is original:  # else both would be pickled
                task.__wrapped__ = task.fn
            return cast(T, task)
        if not callable(target) or isinstance(target, type):
            raise HintError(
                f"hints() cannot decorate {target!r}; give it a function or a Prefect task"
            )
        return cast(T, self._carrier(target))

    def _carrier(self, fn: Callable[..., object]) -> object:
        """A copy of ``fn`` that carries these hints on top of those it had."""
        outer = getattr(fn, _ATTRIBUTE, None)
        said = outer.merge(self.hints) if isinstance(outer, Hints) else self.hints
        twin = _copied_function(fn) if isinstance(fn, types.FunctionType) else copy.copy(fn)
        try:
            setattr(twin, _ATTRIBUTE, said)
        except (AttributeError, TypeError) as error:
            raise HintError(
                f"hints() cannot decorate {fn!r}, which takes no attributes; wrap it in a function"
            ) from error
        return twin

    def __repr__(self) -> str:
        return repr(self.hints).replace("Hints", "hints", 1)


class HintKeywords(TypedDict, total=False):
    """The keywords of :func:`hints`, for type checkers; meanings are at the fields of `Hints`."""

    cpu: float | None
    gpu: float | Literal["soft"] | None
    memory: int | str | None
    resources: Mapping[str, float]
    worker_class: str | None
    labels: Mapping[str, str]
    near: object
    strict: bool
    priority: int
    isolate: bool
    batch: bool | None
    durable: bool


def hints(**said: Unpack[HintKeywords]) -> HintsScope:
    """Say what a task needs and how it should run, as a decorator or around ``submit`` and ``map``.

    The fields of :class:`Hints` tell what each keyword means; ``memory`` also takes text such as
    ``"4 GiB"``, ``resources`` and ``labels`` take mappings, and ``near`` one thing or several.
    Raises :class:`HintError` at once for a misspelt keyword or an impossible value.
    """
    return HintsScope(Hints.of(**said))


def current_hints(task: object = None) -> Hints:
    """The hints in force for ``task`` here and now: its own, with those of the context on top."""
    carried = getattr(getattr(task, "fn", task), _ATTRIBUTE, None)
    own = carried if isinstance(carried, Hints) else _NOTHING_SAID
    stack = _in_context.get()
    return own.merge(stack[-1]) if stack else own


def _copied_function(fn: types.FunctionType) -> types.FunctionType:
    """A second function with the same code, closure and attributes."""
    twin = types.FunctionType(
        fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__
    )
    twin.__kwdefaults__ = fn.__kwdefaults__
    twin.__annotations__ = fn.__annotations__
    twin.__qualname__ = fn.__qualname__
    twin.__module__ = fn.__module__
    twin.__doc__ = fn.__doc__
    twin.__dict__.update(fn.__dict__)
    if sys.version_info >= (3, 12):
        twin.__type_params__ = fn.__type_params__
    return twin


def _amount(name: str, value: object, *, zero: bool, or_word: str = "") -> float | None:
    """``value`` as a finite float above zero (or from zero on), None staying None."""
    if value is None:
        return None
    ok = isinstance(value, (int, float)) and not isinstance(value, bool)
    number = float(cast(float, value)) if ok else math.nan
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        allowed = "a finite number from 0 on" if zero else "a finite number above 0"
        raise HintError(f"{name}={value!r} must be {allowed}{' or ' + or_word if or_word else ''}")
    return number


def _memory(size: int | float | str) -> int:
    try:
        return parse_bytes(size)
    except HintError as error:
        raise HintError(f"memory={error}") from None


def _pairs(name: str, value: object) -> list[tuple[Any, Any]]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple) and all(isinstance(p, tuple) and len(p) == 2 for p in value):
        return list(value)
    raise HintError(f"{name}={value!r} must be a mapping, such as {{'name': ...}}")


def _resources(value: object) -> tuple[tuple[str, float], ...]:
    amounts = []
    for name, amount in _pairs("resources", value):
        if not isinstance(name, str) or not name.strip():
            raise HintError(f"resources has the name {name!r}; a Dask resource is named by text")
        checked = _amount(f"resources[{name!r}]", amount, zero=False)
        if checked is None:
            raise HintError(f"resources[{name!r}]=None must be a finite number above 0")
        amounts.append((name, checked))
    return tuple(sorted(amounts))


def _labels(value: object) -> tuple[tuple[str, str], ...]:
    pairs = _pairs("labels", value)
    for key, label in pairs:
        label_resource(key, label)  # refuses what cannot be the name of a resource
    return tuple(sorted(pairs))


def _worker_class(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(_LABEL_VALUE, value):
        raise HintError(
            f"worker_class={value!r} must be the name of a worker class, "
            "text without spaces, ',' and '='"
        )
    return value


def _near(value: object) -> tuple[Near, ...]:
    """One thing or several, each classified, without doubles, in order."""
    if value is None:
        return ()
    single = isinstance(value, (str, Near, os.PathLike)) or hasattr(value, "task_run_id")
    things: Iterable[object] = (
        [value] if single or not isinstance(value, Iterable) else cast(Iterable[object], value)
    )
    return tuple(dict.fromkeys(Near.of(thing) for thing in things))


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise HintError(f"{name}={value!r} must be True or False")
    return value


_NOTHING_SAID: Final = Hints()
