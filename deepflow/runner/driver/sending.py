"""How batches get to Dask: many at once, as one graph, with nothing that Dask would have to hash.

Graphs are sent by the reactor's thread, which takes all that has come together by then: to the
scheduler a graph of many tasks costs little more than a graph of one.
"""

from __future__ import annotations

import itertools
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

from dask.base import annotate
from distributed import Future as DaskFuture

from deepflow.backend.contract import SENDING, may_use
from deepflow.backend.keys import make_key
from deepflow.backend.placement.annotation import OURS
from deepflow.decide.batching import split_after_s
from deepflow.errors import InfrastructureError
from deepflow.observe.text import clean, cleaned
from deepflow.runner.driver.board import Board
from deepflow.runner.driver.items import Item, SentBatch, SharedArgument, Template
from deepflow.runner.driver.lifecycle import Event
from deepflow.runner.driver.naming import RunNames
from deepflow.runner.driver.reactor import Reactor
from deepflow.runner.wire import (
    Awaited,
    Batch,
    BatchOptions,
    Ended,
    Foreign,
    Inline,
    ItemSpec,
    Remote,
    Shared,
    Source,
    Wait,
)
from deepflow.runner.worker_side import WorkerSide

if TYPE_CHECKING:
    from distributed import Client, Future

    from deepflow.settings import Settings

OnEnd = Callable[[SentBatch, "str | None", BaseException | None], None]
"""Called on the reactor with a batch, the status of its Dask future, and its error."""


_Graph = Mapping[str, tuple[bytes, Sequence[str]]]
"""By a Dask task's key: its pickled batch, and the keys that it depends on."""


class Sender:
    """Sends batches; says to `on_end` what Dask says of them. Use in a turn, except as said."""

    def __init__(
        self,
        client: Client,
        settings: Settings,
        board: Board,
        reactor: Reactor,
        worker_side: WorkerSide,
        *,
        results_topic: str,
        events_topic: str,
        on_end: OnEnd,
        names: RunNames,
    ) -> None:
        self._client = client
        self._settings = settings
        self._board = board
        self._reactor = reactor
        self._run_batch = worker_side.run_batch
        self._results_topic = results_topic
        self._events_topic = events_topic
        self._on_end = on_end
        self._names = names
        self._outgoing: list[SentBatch] = []
        self._sending = threading.Lock()
        """One graph after the other, in the order in which they were put. Not taken in a turn."""
        self._is_flush_due = False
        self._numbers = itertools.count()

    def put(self, items: list[Item]) -> SentBatch:
        """Make these items one Dask task of the next graph."""
        batch = SentBatch(self._key(items[0].template), items)
        for item in items:
            item.batch = batch
        self._outgoing.append(batch)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._reactor.soon(self.flush)
        return batch

    def _key(self, template: Template) -> str:
        run_id = self._board.flow_run_id
        return make_key(
            clean(template.name, "task name"), next(self._numbers), run_id, template.salt
        )

    def flush(self) -> None:
        """Send what is queued: consecutive batches of the same placement as one graph.

        Any thread, but not in a turn: large arguments that the cluster has not, or has lost, go
        there first, and nobody's turn waits for the network.
        """
        with self._sending:
            with self._board.turn():
                self._is_flush_due = False
                outgoing, self._outgoing = self._outgoing, []
                arguments = _arguments(outgoing)
            broken = self._put_arguments(arguments)
            with self._board.turn():
                batches = []
                for batch in outgoing:
                    batch.items = batch.open_items()
                    error = None
                    if broken and batch.items:
                        error = _first(broken, _arguments([batch]))
                    if error is not None:
                        self._reactor.soon(partial(self._on_end, batch, "error", error))
                    elif batch.items:
                        batches.append(batch)
                for _, graph in itertools.groupby(batches, key=_placement):
                    self._send_graph(list(graph))

    def _put_arguments(
        self, arguments: Iterable[SharedArgument]
    ) -> dict[SharedArgument, Exception]:
        """Have these on the cluster; returns those that cannot be, with why."""
        broken: dict[SharedArgument, Exception] = {}
        for argument in arguments:
            try:
                argument.put(self._client)
            except Exception as exc:  # noqa: BLE001 - it becomes the end of the runs that need it
                broken[argument] = exc
        return broken

    def _send_graph(self, batches: list[SentBatch]) -> None:
        try:
            graph = {}
            for batch in batches:
                batch.is_announced = self._is_announced(batch.items)
                blob, dependencies = self._batch_blob(batch.items, batch.is_announced)
                graph[batch.key] = blob, dependencies
            # In an empty context: the annotations of the thread that happens to be here, or of
            # the one that made this dispatcher, are not those of these runs.
            first = batches[0].items
            futures = Context().run(self._put_graph, graph, first[0].template, len(first))
        except Exception as exc:  # noqa: BLE001 - it becomes the runs' end, see below
            # Nobody waits for this thread: an error here is an error of these runs.
            for batch in batches:
                self._reactor.soon(partial(self._on_end, batch, "error", exc))
            return
        now_s = time.time()
        for batch, future in zip(batches, futures, strict=True):
            batch.future = future
            self._names.sent(batch.key, batch.items)
            for item in batch.items:
                item.life.handle(Event.SENT)
                item.sent_at_s = now_s
            self.watch(batch, future)

    def _put_graph(self, graph: _Graph, template: Template, n_runs: int) -> list[Any]:
        """Hand a graph to Dask with its template's annotations; returns a future per task."""
        note = cleaned(template.note, "task name")
        if n_runs > 1:
            note["n_runs"] = n_runs
        placement: dict[str, Any] = {
            "workers": template.workers or None,
            "allow_other_workers": template.allow_other_workers or None,
            "resources": template.resources or None,
            "priority": template.priority,
        }
        with annotate(**{**template.annotations, OURS: note}):
            if not may_use(SENDING):
                return [self._put_apart(key, *graph[key], placement) for key in graph]
            made = _as_dask_has_it(graph, self._run_batch)
            futures: list[Any] = self._client.get(made, list(graph), sync=False, **placement)
        return futures

    def _put_apart(
        self, key: str, blob: bytes, needed: Sequence[str], placement: Mapping[str, Any]
    ) -> Any:
        """Hand one task to Dask by its public `submit`; returns its future."""
        inputs: list[Any] = [DaskFuture(one, self._client) for one in needed]
        return self._client.submit(self._run_batch, blob, *inputs, key=key, pure=False, **placement)

    def watch(self, batch: SentBatch, future: Future[Any]) -> None:
        """Tell `on_end` when Dask is done with the batch, whatever came of it (any thread)."""

        def callback(future: Future[Any]) -> None:
            status = future.status
            assert future._state is not None  # it has a client, so it has a state
            error = future._state.exception if status in ("error", "cancelled") else None
            self._reactor.soon(partial(self._on_end, batch, status, error))

        future.add_done_callback(callback)

    def _is_announced(self, items: list[Item]) -> bool:
        """Whether workers are to say when these runs begin: they may be the death of them."""
        if self._settings.infra_retries == 0:
            return True
        return any(item.life.failures or item.life.n_spared for item in items)

    def _batch_blob(self, items: list[Item], is_announced: bool) -> tuple[bytes, list[str]]:
        """The pickled batch, and the keys of the Dask tasks it depends on."""
        template, settings = items[0].template, self._settings
        dependencies: dict[str, int] = {}
        specs: list[ItemSpec] = []
        for item in items:
            sources = tuple(self._source(ref, dependencies) for ref in item.references)
            waits = tuple(self._wait(one, may, dependencies) for one, may in item.waits)
            specs.append(item.spec(sources, waits))
        static_sources = tuple(self._source(r, dependencies) for r in template.static_references)
        code_sources = tuple(self._source(r, dependencies) for r in template.code_references)
        run_time = self._board.run_time(template.learned_as)
        code = items[0].code
        assert code is not None, "an open item has its code"
        options = BatchOptions(
            coalesce=settings.events == "coalesce" and self._board.n_open > settings.coalesce_after,
            inline_bytes=settings.inline_result_bytes,
            split_after_s=split_after_s(run_time, settings.batch_target_s),
            durable=template.hints.durable,
            isolate=template.hints.isolate,
            announce=is_announced,
        )
        batch = Batch(
            results_topic=self._results_topic,
            events_topic=self._events_topic,
            context=template.context,
            code=code.on_the_way,
            code_sources=code_sources,
            tags=template.tags,
            static=template.static,
            static_sources=static_sources,
            items=tuple(specs),
            options=options,
        )
        return pickle.dumps(batch, protocol=5), list(dependencies)

    def _source(self, reference: object, dependencies: dict[str, int]) -> Source:
        if isinstance(reference, bytes):
            return Inline(reference)
        if isinstance(reference, SharedArgument):
            return Shared(dependencies.setdefault(reference.key, len(dependencies)))
        if isinstance(reference, DaskFuture):
            return Foreign(dependencies.setdefault(str(reference.key), len(dependencies)))
        assert isinstance(reference, Item)
        if reference.is_done and reference.blob is not None:
            return Inline(reference.blob)
        return Remote(_position(reference, dependencies), reference.run_id)

    def _wait(self, waited: Item | Ended, may_fail: bool, dependencies: dict[str, int]) -> Wait:
        if isinstance(waited, Ended):
            return waited
        if waited.is_done:
            return Ended(waited.run_id, waited.state_type, may_fail)
        return Awaited(_position(waited, dependencies), waited.run_id, may_fail)


def _as_dask_has_it(graph: _Graph, run_batch: Callable[..., Any]) -> Any:
    """A graph in the form in which Dask has nothing to convert or to hash."""
    from dask._expr import LLGExpr
    from dask._task_spec import Task, TaskRef

    tasks = {
        key: Task(key, run_batch, blob, *map(TaskRef, needed))
        for key, (blob, needed) in graph.items()
    }
    # The token spares Dask from hashing every call.
    return LLGExpr(tasks, _determ_token=next(iter(tasks)))


def _position(item: Item, dependencies: dict[str, int]) -> int:
    """Where the Dask task that runs `item` stands among these dependencies."""
    if item.batch is None:
        raise InfrastructureError(f"input {item.name!r} is neither done nor at work")
    return dependencies.setdefault(item.batch.key, len(dependencies))


def _arguments(batches: Iterable[SentBatch]) -> list[SharedArgument]:
    """The large arguments that these batches refer to."""
    found: dict[SharedArgument, None] = {}
    for batch in batches:
        # The runs of a batch are of one call, and have its template.
        template = batch.items[0].template
        of_runs = (item.references for item in batch.items)
        met = itertools.chain(template.static_references, template.code_references, *of_runs)
        found.update((one, None) for one in met if isinstance(one, SharedArgument))
    return list(found)


def _first(
    broken: Mapping[SharedArgument, Exception], arguments: Iterable[SharedArgument]
) -> Exception | None:
    return next((broken[one] for one in arguments if one in broken), None)


def _placement(batch: SentBatch) -> tuple[Any, ...]:
    """What is said of a whole graph; batches that differ in it need graphs apart."""
    return (*batch.items[0].template.placement, len(batch.items))
