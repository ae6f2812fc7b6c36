"""Unpickling that keeps runs apart: functions are made anew, classes keep their identity.

Cloudpickle pickles by value what cannot be imported. A function that is unpickled is a new
function with globals, closure and defaults of its own, so each load is apart from every other.
For a class, cloudpickle remembers in each process which class it has made of a definition, and
a later load sets the attributes of that same class again, also while another thread uses it.
Here a `Scope` decides which class a load gets:

- Where the class was defined, it is that class, and no load ever changes it.
- Elsewhere, in a worker, a run takes the process's class and gives it the attributes that it
  had when the run was submitted. If another run has taken it and is under way, the run gets a
  class of its own with the same identity on the wire: what it returns is an instance of the
  class at home.

Source: `cloudpickle.cloudpickle`, `_make_skeleton_class` and what is around it (version 3).
"""

from __future__ import annotations

import contextlib
import io
import pickle
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from cloudpickle import cloudpickle

__all__ = ["HOME", "Scope", "loads"]

_lock: Final = threading.RLock()
_made: weakref.WeakSet[type] = weakref.WeakSet()
"""Classes that a load has made: all others were defined here, and are left as they are."""
_n_users: dict[str, int] = {}
"""By cloudpickle's id of a class: how many runs have taken the process's class."""
_set_here: weakref.WeakKeyDictionary[type, frozenset[str]] = weakref.WeakKeyDictionary()
"""The attributes that a class had after a load had set them."""


class Scope:
    """The classes that the loads of one run get. Thread-safe.

    `is_home`: a class that is there already stays as it is, wherever it comes from.
    """

    def __init__(self, *, is_home: bool = False) -> None:
        self._is_home = is_home
        self._classes: dict[str, type] = {}
        self._taken: list[str] = []
        self._unset: set[int] = set()

    def release(self) -> None:
        """The run is over: other runs may set the attributes of the classes that it had."""
        with _lock:
            for class_id in self._taken:
                _n_users[class_id] -= 1
                if not _n_users[class_id]:
                    del _n_users[class_id]
            self._taken.clear()

    def find_class(self, module: str, name: str) -> Callable[..., Any] | None:
        """What stands in for cloudpickle's function of this name; None: that function itself."""
        if module != "cloudpickle.cloudpickle":
            return None
        if name == "_make_skeleton_class":
            return self._make_class
        if name == "_make_skeleton_enum":
            return self._make_enum
        return self._set_state if name == "_class_setstate" else None

    def _make_class(
        self, kind: Any, name: str, bases: Any, kwargs: Any, class_id: str | None, extra: Any
    ) -> type:
        def make() -> type:
            made: type = cloudpickle._make_skeleton_class(kind, name, bases, kwargs, None, extra)
            return made

        return self._class(class_id, make)

    def _make_enum(
        self,
        bases: Any,
        name: str,
        qualname: str,
        members: Any,
        module: str,
        class_id: str | None,
        extra: Any,
    ) -> type:
        def make() -> type:
            made: type = cloudpickle._make_skeleton_enum(
                bases, name, qualname, members, module, None, extra
            )
            return made

        return self._class(class_id, make)

    def _class(self, class_id: str | None, make: Callable[[], type]) -> type:
        if class_id is None:
            made = make()
            self._unset.add(id(made))
            return made
        with _lock:
            known = self._classes.get(class_id)
            if known is not None:
                return known
            there: type | None = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(class_id)
            if there is not None and (self._is_home or there not in _made):
                return there
            if there is not None and not _n_users.get(class_id):
                chosen = there
            else:
                chosen = make()
                _made.add(chosen)
                with cloudpickle._DYNAMIC_CLASS_TRACKER_LOCK:
                    cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS[chosen] = class_id
                    if there is None:
                        cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID[class_id] = chosen
            self._unset.add(id(chosen))
            if self._is_home:
                return chosen
            if there is None or chosen is there:
                _n_users[class_id] = _n_users.get(class_id, 0) + 1
                self._taken.append(class_id)
            self._classes[class_id] = chosen
            return chosen

    def _set_state(self, cls: type, state: Any) -> type:
        """Set the class's attributes, the first time that the run loads it."""
        with _lock:
            if id(cls) not in self._unset:
                return cls
            self._unset.discard(id(cls))
            before = _set_here.get(cls)
            if before is not None:
                _forget(cls, set(cls.__dict__) - before - set(state[0]))
            cloudpickle._class_setstate(cls, state)
            _set_here[cls] = frozenset(cls.__dict__)
        return cls


def _forget(cls: type, names: Iterable[str]) -> None:
    """Remove what earlier runs have added to a class; what Python keeps there stays."""
    for name in names:
        if not (name.startswith("__") and name.endswith("__")) and name != "_abc_impl":
            with contextlib.suppress(AttributeError, TypeError):
                delattr(cls, name)


HOME: Final = Scope(is_home=True)
"""For loads in the process of the flow, and for what must not change a class."""


class _Unpickler(pickle.Unpickler):
    def __init__(
        self,
        file: io.BytesIO,
        buffers: Iterable[Any] | None,
        scope: Scope,
        find: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(file, buffers=buffers)
        self._scope = scope
        self._find = find

    def find_class(self, module: str, name: str) -> Any:
        return self._scope.find_class(module, name) or super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        if self._find is None:
            raise pickle.UnpicklingError(f"the pickle refers to {pid!r}, which was not given")
        return self._find(pid)


def loads(
    blob: bytes | memoryview,
    scope: Scope,
    *,
    buffers: Sequence[Any] | None = None,
    find: Callable[[Any], Any] | None = None,
) -> Any:
    """Unpickle `blob`; `find` gives what its persistent ids stand for.

    Raises what unpickling raises: it runs code of the classes in it.
    """
    return _Unpickler(io.BytesIO(blob), buffers, scope, find).load()
