"""What can go wrong, as one tree.

    DeepflowError
    ├── ConfigurationError        ValueError       a setting or argument that cannot be
    │   └── UnknownArgumentError  TypeError        an argument that nobody takes
    ├── HintError                 ValueError       a hint misspelt or with an impossible value
    │   └── UnplaceableError                       a valid hint that no worker on offer can meet
    ├── ClusterUnreachableError   ConnectionError  no scheduler answers at the address
    ├── IncompatibleVersionError  RuntimeError     versions that cannot work together
    ├── JournalError              ValueError       a journal that is foreign, damaged or not there
    ├── FrameError                ValueError       stored or sent bytes that are damaged or foreign
    ├── GeneratorTaskError        TypeError        a generator that would be silently emptied
    ├── UnresolvedInputError      TypeError        a future where Prefect resolves none
    ├── UnpicklableResultError    TypeError        a result that cannot leave its worker
    ├── RemoteTaskError           RuntimeError     stands for an exception that cannot travel
    ├── TaskCancelledError                         cancelled by the user or with its flow run
    ├── IsolatedProcessError      RuntimeError     the process of an ``isolate=True`` task died
    ├── HistoryError              RuntimeError     what was learned from past runs cannot be read
    ├── StoredResultError         RuntimeError     a persisted result cannot be read or written
    └── InfrastructureError       RuntimeError     a worker or connection was lost
        ├── ContextMissingError                    a worker has no context of the flow run
        └── ValueLostError                         a worker's stored copy of a result is lost

(The middle column is the built-in class that each also is.)

Every message says what happened, with which values, and what to do. All of them survive pickling
with their fields, since they travel from workers to the driver and into Prefect states.
"""

from __future__ import annotations

__all__ = [
    "ClusterUnreachableError",
    "ConfigurationError",
    "ContextMissingError",
    "DeepflowError",
    "FrameError",
    "GeneratorTaskError",
    "HintError",
    "HistoryError",
    "IncompatibleVersionError",
    "InfrastructureError",
    "IsolatedProcessError",
    "JournalError",
    "RemoteTaskError",
    "StoredResultError",
    "TaskCancelledError",
    "UnknownArgumentError",
    "UnpicklableResultError",
    "UnplaceableError",
    "UnresolvedInputError",
    "ValueLostError",
    "advice_on_place",
    "nearest",
]


class DeepflowError(Exception):
    """The root: catch this to catch everything deepflow raises on purpose."""


class ConfigurationError(DeepflowError, ValueError):
    """A setting, or an argument of the runner or a cluster, cannot be what it is."""


class UnknownArgumentError(ConfigurationError, TypeError):
    """An argument that nobody takes, most often a misspelt one."""


class HintError(DeepflowError, ValueError):
    """A hint is misspelt or has a value that can never make sense."""


class UnplaceableError(HintError):
    """A valid hint that no worker on offer can meet.

    ``wanted`` names the need as the user wrote it (``gpu=2``), ``nearest_offer`` the closest thing
    some worker has, or None when there is nothing of the kind.
    """

    def __init__(
        self, message: str, *, wanted: str | None = None, nearest_offer: str | None = None
    ) -> None:
        super().__init__(message)
        self.wanted = wanted
        self.nearest_offer = nearest_offer


class ClusterUnreachableError(DeepflowError, ConnectionError):
    """No Dask scheduler answers, or it stopped answering for longer than allowed."""

    def __init__(self, message: str, *, address: str | None = None) -> None:
        super().__init__(message)
        self.address = address


class IncompatibleVersionError(DeepflowError, RuntimeError):
    """Driver, scheduler and workers run versions that cannot work together."""


class JournalError(DeepflowError, ValueError):
    """A file that is no journal, a damaged one, or one that lacks what is asked of it."""


class FrameError(DeepflowError, ValueError):
    """Bytes that were stored or sent are damaged, cut off, foreign, or need what is not here.

    The copy they came from is lost: read another one, or compute the value again.
    """


class GeneratorTaskError(DeepflowError, TypeError):
    """A generator task was submitted where its items could not be streamed."""


class UnresolvedInputError(DeepflowError, TypeError):
    """An argument holds a future or a state where Prefect does not put its value in its place."""


class UnpicklableResultError(DeepflowError, TypeError):
    """A result cannot be pickled, and was asked for outside the process that made it."""


class RemoteTaskError(DeepflowError, RuntimeError):
    """A task raised an exception that can neither be pickled nor rebuilt from its parts.

    ``original_type`` is the name of its type; the message has its text.
    """

    def __init__(self, message: str, *, original_type: str = "") -> None:
        super().__init__(message)
        self.original_type = original_type


class TaskCancelledError(DeepflowError):
    """The task was cancelled, by ``future.cancel()`` or with its flow run."""


class IsolatedProcessError(DeepflowError, RuntimeError):
    """The process that ran an ``isolate=True`` task ended without an answer.

    ``exit_code`` is as in ``subprocess``: negative for the signal that killed it, None if unknown.
    """

    def __init__(self, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class HistoryError(DeepflowError, RuntimeError):
    """What was learned from past runs cannot be read or added to.

    ``source`` says where it was to come from, such as a path or a URL without its password.
    """

    def __init__(self, message: str, *, source: str | None = None) -> None:
        super().__init__(message)
        self.source = source


class StoredResultError(DeepflowError, RuntimeError):
    """A persisted result is damaged or foreign, or its storage does not answer."""


class InfrastructureError(DeepflowError, RuntimeError):
    """What carried the task broke, not the task: a lost worker, connection or scheduler.

    ``cause`` is a short word of a bounded set (it labels a metric), such as ``worker_lost``;
    ``worker`` the address or name of the worker that had the task last, if known; ``attempts``
    how often the task was tried in all, the first time included (0: unknown).
    """

    def __init__(
        self,
        message: str,
        *,
        cause: str = "unknown",
        worker: str | None = None,
        attempts: int = 0,
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.worker = worker
        self.attempts = attempts


class ContextMissingError(InfrastructureError):
    """A worker lacks the context that all tasks of a flow run share, and could not fetch it."""


class ValueLostError(InfrastructureError):
    """The copy of a result that a worker had stored away is damaged or gone."""


def advice_on_place(error: OSError) -> str:
    """What to do where a file could not be written or read, for messages."""
    import errno  # only needed when something is wrong already

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room there, or name another place"
    return "check the path and your rights there, or name another place"


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str | None:
    """The known word closest to a misspelt one, for messages; None if nothing is close.

    Case and ``-`` against ``_`` do not count. O(len(known)).
    """
    from difflib import get_close_matches  # only needed when something is wrong already

    folded = {name.lower().replace("-", "_"): name for name in known}
    wanted = word.lower().replace("-", "_")
    close = get_close_matches(wanted, list(folded), n=1, cutoff=0.55)
    if close:
        return folded[close[0]]
    contained = [name for key, name in folded.items() if len(wanted) > 2 and wanted in key]
    return contained[0] if contained else None
