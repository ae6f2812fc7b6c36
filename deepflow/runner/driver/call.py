"""One call of `task.submit` or `task.map` on its way to items.

Here parameters are pickled (futures and large arguments become references), upstream runs are
collected for the UI's graph, and hints and Dask annotations become what the cluster is told.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from uuid import UUID

from dask.base import get_annotations
from prefect._internal.uuid7 import uuid7
from prefect.client.schemas.objects import RunInput
from prefect.context import AssetContext, FlowRunContext, TagsContext, TaskRunContext
from prefect.exceptions import MappingLengthMismatch, MappingMissingIterable
from prefect.futures import PrefectFuture
from prefect.tasks import Task, _infer_parent_task_runs
from prefect.utilities.annotations import allow_failure, opaque, quote, unmapped
from prefect.utilities.callables import (
    collapse_variadic_parameters,
    explode_variadic_parameter,
    get_parameter_defaults,
)
from prefect.utilities.collections import isiterable
from prefect.utilities.engine import collect_task_run_inputs_sync, resolve_inputs_sync

from deepflow.decide.offers import impossible, soft_gpu
from deepflow.errors import UnplaceableError
from deepflow.hints import current_hints
from deepflow.runner.driver.future import DeepflowFuture
from deepflow.runner.driver.items import Item, Template
from deepflow.runner.driver.references import References
from deepflow.runner.driver.session import Session
from deepflow.runner.slots import slot_left
from deepflow.runner.wire import dumps, dumps_plain, is_plain

if TYPE_CHECKING:
    from deepflow.backend.placement.annotation import TaskNote


class Call:
    """One call of `submit` or `map` on its way to items."""

    def __init__(self, session: Session, task: Task[Any, Any], *, is_map: bool = False) -> None:
        self.session = session
        self.task = task
        self.hints = current_hints(task)
        flow_run = FlowRunContext.get()
        self.flow_run_id = flow_run.flow_run.id if flow_run and flow_run.flow_run else None
        session.dispatcher.set_flow_run(self.flow_run_id)
        context = session.shipping.context()
        tags = TagsContext.get().current_tags
        workers, near = self._near()
        annotations, resources, soft_gpu, priority = self._placement()
        self.code, captured = session.code(task)
        self.template = Template(
            name=task.name,
            salt=session.salt[:8],
            prefect_task=task,
            learned_as=task.task_key,
            code_references=captured,
            context=context,
            tags=tuple(sorted(tags)),
            hints=self.hints,
            annotations=annotations,
            note=self._note(flow_run, soft_gpu, near),
            resources=resources,
            workers=workers,
            allow_other_workers=bool(workers) and not self.hints.strict,
            priority=priority,
            may_batch=is_map and self.hints.batch is not False and not self.hints.isolate,
            ship_again=lambda code: session.shipping.ship_again(code, context),
        )

    def _note(self, flow_run: FlowRunContext | None, soft_gpu: float, near: list[str]) -> TaskNote:
        """What the scheduler's placement is told of these runs."""
        note: TaskNote = {"task": self.task.name}
        if flow_run is not None and flow_run.flow is not None:
            note["flow"] = flow_run.flow.name
        if self.flow_run_id is not None:
            note["run"] = str(self.flow_run_id)
        if soft_gpu:
            note["soft_gpu"] = soft_gpu
        if self.hints.memory:
            note["memory_bytes"] = self.hints.memory
        if near:
            note["near"] = near
        return note

    def _placement(self) -> tuple[dict[str, Any], dict[str, float], float, int]:
        """Dask annotations, resources, the soft GPU and priority, from annotations and hints."""
        annotations = dict(get_annotations())
        hints = self.hints
        resources: dict[str, float] = {}
        soft = 0.0
        if hints:
            offers = self.session.offering.offers()
            if offers and not self.session.config.adapt_kwargs:
                refusal = impossible(hints, offers)
                if refusal is not None:
                    raise UnplaceableError(f"task {self.task.name!r}: {refusal.reason}")
            soft = soft_gpu(offers) if hints.gpu == "soft" else 0.0
            placing = self.session.placing
            # Where Dask places, a GPU that is wanted must be a need: it knows no wishes.
            is_wish = placing is not None and placing.is_placing
            resources = hints.dask_resources(soft_gpu=0.0 if is_wish else soft)
        if resources:
            resources = {**annotations.pop("resources", {}), **resources}
        priority = hints.priority
        if priority:
            annotations.pop("priority", None)
        return annotations, resources, soft, priority

    def _near(self) -> tuple[list[str], list[str]]:
        """Workers to be confined to, and workers to be preferred, by the hint `near`.

        Futures first: the workers that hold them; waits for those that are not done. Then hosts,
        paths and storage URLs, the most wanted first, as far as somebody knows where they lie.
        """
        workers: list[str] = []
        elsewhere = []
        for near in self.hints.near:
            if near.kind != "future":
                elsewhere.append(near)
                continue
            item = self.session.dispatcher.find(UUID(near.value))
            if item is None:
                continue
            with slot_left():
                item.wait(None)
            worker = item.worker
            if worker is not None and worker not in workers:
                workers.append(worker)
        if workers:
            alive = set(self.session.client.nthreads())
            workers = [worker for worker in workers if worker in alive]
        if workers or not elsewhere:
            return workers, []
        close = list(self.session.offering.workers_near(elsewhere, strict=self.hints.strict))
        if not self.hints.strict:
            return [], close
        if not close and self.session.offering.is_located(elsewhere):
            raise UnplaceableError(
                f"task {self.task.name!r}: near={elsewhere[0].value!r} with strict=True, and no "
                "worker is where it lies; leave strict out or start a worker there"
            )
        return close, []

    # -- one run -------------------------------------------------------------------------------

    def future(
        self,
        parameters: dict[str, Any],
        wait_for: Any,
        dependencies: dict[str, set[RunInput]] | None,
    ) -> DeepflowFuture[Any]:
        """An item for one run, and its future."""
        references = References(self.session)
        inputs = self._inputs(parameters, wait_for, dependencies, references)
        if not references and all(map(self._goes_plainly, parameters.values())):
            call = dumps_plain(parameters)
        else:
            call = dumps(parameters, references.find)
        run_id = uuid7()
        number = self.session.next_number(self.task.task_key)
        item = Item(
            run_id=run_id,
            template=self.template,
            name=f"{self.task.name}-{number}",
            dynamic_key=f"{number}-{self.session.salt[:12]}",
            code=self.code,
            call=call,
            references=tuple(references.found),
            waits=tuple(references.waits),
            inputs=pickle.dumps(inputs) if inputs else None,
            assets=self._assets(run_id, inputs),
        )
        return DeepflowFuture(item, self.session.dispatcher)

    def _goes_plainly(self, value: object) -> bool:
        """Whether there is nothing in an argument to be referred to."""
        if not is_plain(value):
            return False
        return type(value) is not bytes or len(value) < self.session.settings.share_argument_bytes

    def _inputs(
        self,
        parameters: dict[str, Any],
        wait_for: Any,
        dependencies: dict[str, set[RunInput]] | None,
        references: References,
    ) -> dict[str, set[Any]]:
        """The upstream runs of each parameter, as the UI's graph shows them.

        On the way, `references` learns where futures stand that Prefect resolves.
        """
        flow_run = FlowRunContext.get()
        links = bool(flow_run and flow_run.run_results)
        inputs: dict[str, set[Any]] = {}
        for name, value in parameters.items():
            if links or not self._goes_plainly(value):
                inputs[name] = references.visit(value)
            else:
                inputs[name] = set()
        parent = TaskRunContext.get()
        if parent is not None or links:
            parents = _infer_parent_task_runs(flow_run, parent, parameters)
            if parents:
                inputs["__parents__"] = set(parents)
        if wait_for is not None:
            inputs["wait_for"] = references.wait_for(wait_for)
        for name, extra in (dependencies or {}).items():
            inputs[name] = inputs.get(name, set()) | extra
        return inputs

    def _assets(self, run_id: Any, inputs: dict[str, set[Any]]) -> bytes | None:
        """The asset context, where the task has assets or something upstream has."""
        flow_run = FlowRunContext.get()
        task = self.task
        if not (
            task.asset_deps
            or getattr(task, "assets", None)
            or (flow_run and flow_run.task_run_assets)
        ):
            return None
        context = AssetContext.from_task_and_inputs(
            task=task, task_run_id=run_id, task_inputs=inputs, copy_to_child_ctx=True
        )
        return pickle.dumps(context.serialize())

    # -- many runs -----------------------------------------------------------------------------

    def mapped(
        self,
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None,
    ) -> list[DeepflowFuture[Any]]:
        """The futures of a map, in order."""
        fn = self.task.fn
        links: dict[str, set[Any]] = {
            k: collect_task_run_inputs_sync(v, max_depth=0) for k, v in parameters.items()
        }
        parameters = resolve_inputs_sync(parameters, max_depth=0)
        parameters = explode_variadic_parameter(fn, parameters)
        iterables: dict[str, list[Any]] = {}
        static: dict[str, Any] = {}
        annotated: dict[str, Any] = {}
        for name, value in parameters.items():
            if isinstance(value, (allow_failure, opaque, quote)):
                annotated[name] = value
                value = value.unwrap()
            if isinstance(value, unmapped):
                static[name] = value.value
            elif isiterable(value):
                iterables[name] = list(value)
            else:
                static[name] = value
        if not iterables:
            raise MappingMissingIterable(
                "No iterable parameters were received. Parameters for map must "
                f"include at least one iterable. Parameters: {parameters}"
            )
        lengths = {name: len(values) for name, values in iterables.items()}
        if len(set(lengths.values())) > 1:
            raise MappingLengthMismatch(
                "Received iterable parameters with different lengths. Parameters for map"
                f" must all be the same length. Got lengths: {lengths}"
            )
        for name, default in get_parameter_defaults(fn).items():
            if name not in iterables:
                static.setdefault(name, default)
        names = set(iterables) | set(static)
        plain = (
            not annotated and set(collapse_variadic_parameters(fn, dict.fromkeys(names))) == names
        )
        if plain and wait_for is None:
            return self._mapped_apart(iterables, static, links)
        futures = []
        for index in range(next(iter(lengths.values()))):
            call = {name: values[index] for name, values in iterables.items()} | static
            for name, annotation in annotated.items():
                call[name] = annotation.rewrap(call[name])
            call = collapse_variadic_parameters(fn, call)
            futures.append(self.future(call, wait_for, links))
        return futures

    def _mapped_apart(
        self, iterables: dict[str, list[Any]], static: dict[str, Any], links: dict[str, set[Any]]
    ) -> list[DeepflowFuture[Any]]:
        """A map's runs, with what they have in common pickled once."""
        if static:
            references = References(self.session)
            static_inputs = self._inputs(static, None, None, references)
            self.template.static = dumps(static, references.find)
            self.template.static_references = tuple(references.found)
            links = {
                k: links.get(k, set()) | static_inputs.get(k, set()) for k in (*links, *static)
            }
        names = list(iterables)
        return [
            self.future(dict(zip(names, values, strict=True)), None, links)
            for values in zip(*iterables.values(), strict=True)
        ]
