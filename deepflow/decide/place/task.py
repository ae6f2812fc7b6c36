"""What is known of a ready task, and of the job (a flow run) it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from deepflow.decide.place.hold import Hold
from deepflow.decide.place.sources import Sources

__all__ = ["Job", "RunSeconds", "Task"]

RunSeconds = Callable[[str], float]
"""Expected run time in seconds by the name of a worker class (`<class>+gpu`: with a GPU)."""

_GOOD_SHARE: Final = 0.25


class Task:
    """A ready task: all its inputs exist. Fields are set once, but `rank_s` may rise."""

    __slots__ = (
        "away_s",
        "close",
        "dask_order",
        "flow",
        "held",
        "held_because",
        "input_bytes",
        "inputs",
        "job",
        "key",
        "local_bytes",
        "main_holder",
        "memory_bytes",
        "n_runs",
        "name",
        "near",
        "needs",
        "only",
        "priority",
        "rank_s",
        "ready_s",
        "run_s",
        "shape",
        "soft_gpu",
        "sort_key",
        "sources",
    )

    def __init__(
        self,
        key: object,
        name: str,
        job: Job,
        *,
        run_s: RunSeconds,
        ready_s: float = 0.0,
        rank_s: float = 0.0,
        priority: int = 0,
        dask_order: object = (),
        inputs: Sequence[tuple[int, Sequence[str]]] = (),
        input_bytes: int = 0,
        needs: tuple[tuple[str, float], ...] = (),
        soft_gpu: float = 0.0,
        memory_bytes: int = 0,
        n_runs: int = 1,
        only: frozenset[str] | None = None,
        near: frozenset[str] = frozenset(),
        away_s: float = 0.0,
    ) -> None:
        self.key = key
        self.name = name
        self.job = job
        self.flow = job.flow
        self.run_s = run_s
        self.ready_s = ready_s
        self.rank_s = rank_s
        """Seconds from its start to the end of its job along the longest path."""
        self.priority = priority
        self.dask_order = dask_order
        """Where Dask itself would put it among the others; lower first."""
        self.inputs = inputs
        """Bytes of each input, and the ids of the workers that hold it."""
        self.input_bytes = input_bytes
        """All it reads: inputs, and what lies outside the cluster."""
        self.needs = needs
        """Dask resources it takes, sorted by name; labels among them."""
        self.soft_gpu = soft_gpu
        self.memory_bytes = memory_bytes
        self.n_runs = n_runs
        self.only = only
        """Ids of the workers it is confined to; None: any."""
        self.near = near
        """Ids of workers that are close to inputs that are not Dask data."""
        self.away_s = away_s
        """Seconds that those inputs take to come to a worker that is not near them."""
        self.shape = (needs, only, soft_gpu, memory_bytes)
        """What decides which workers can take it."""
        self.local_bytes: dict[str, int] = {}
        """Bytes of its inputs on each worker that holds some."""
        self.close = near
        """Ids of the workers that are near its inputs, or hold a good part of them."""
        if inputs:
            self._locate(inputs)
        self.sources: Sources | None = None
        """Its inputs by holder; the binder's, and renewed when workers come or go."""
        self.held: Hold | None = None
        """Why it waits for a better worker, as of the last look."""
        self.main_holder = max(self.local_bytes, key=self.local_bytes.__getitem__, default="")
        """Id of the worker that holds most of its inputs' bytes; empty: none does."""
        self.held_because = ""
        self.sort_key: tuple[object, ...] = ()

    def _locate(self, inputs: Sequence[tuple[int, Sequence[str]]]) -> None:
        local = self.local_bytes
        total = 0
        for n_bytes, holders in inputs:
            total += n_bytes
            for holder in holders:
                local[holder] = local.get(holder, 0) + n_bytes
        good_part = _GOOD_SHARE * total
        self.close = self.near.union([holder for holder, n in local.items() if n >= good_part])


class Job:
    """A flow run: tasks that serve one end, and so have one place in the order of jobs."""

    __slots__ = ("arrived_s", "done_work_s", "expected_work_s", "flow", "known_work_s", "run")

    def __init__(self, run: str, flow: str, arrived_s: float, expected_work_s: float = 0.0) -> None:
        self.run = run
        self.flow = flow
        self.arrived_s = arrived_s
        self.expected_work_s = expected_work_s
        """Seconds of work of a whole run of this flow, from earlier runs; 0: not known."""
        self.known_work_s = 0.0
        """Expected seconds of the tasks that were submitted."""
        self.done_work_s = 0.0
        """The part of it that is done."""

    @property
    def work_s(self) -> float:
        """Expected seconds of the whole job: what was seen of it, or what earlier runs took."""
        return max(self.known_work_s, self.expected_work_s)

    @property
    def remaining_s(self) -> float:
        """Expected seconds of work that are left."""
        return max(self.work_s - self.done_work_s, 0.0)
