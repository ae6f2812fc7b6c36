"""The driver's side of placement: the plugin, what it may know, and what became of a flow run.

At the beginning the scheduler is given the plugin with what the history knows. At the end the
run's events are fetched: they go into the history (so that the next run knows more), into a
journal (`deepflow explain`, `deepflow replay`), and, as a table and a picture, to the Prefect UI.
None of that may cost a flow run anything but a line in its log.
"""

from __future__ import annotations

import pickle
import shlex
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

from deepflow.backend.placement.plugin import Placement
from deepflow.backend.placement.waiting import UNPLACEABLE_TOPIC
from deepflow.decide.events import Event, RunNamed
from deepflow.decide.experience import Experience, observations
from deepflow.decide.place.policy import Policy
from deepflow.decide.place.registry import STOCK
from deepflow.decide.trail import Trail
from deepflow.errors import JournalError
from deepflow.observe import history
from deepflow.observe.artifact import REPORT_KEY, Forecast, Replay, flow_report_markdown
from deepflow.observe.explain import in_seconds, n_task_runs
from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.observe.journal import JournalWriter
from deepflow.observe.text import clean
from deepflow.sim import forecast

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.client.schemas.objects import FlowRun

    from deepflow.settings import Settings

__all__ = ["Placing"]

_MAX_JOURNALS = 100
_MAX_IN_ARTIFACT = 50_000
OFF = "off"


class Placing:
    """One session's dealings with the placement plugin of its scheduler."""

    def __init__(self, client: Any, settings: Settings, policy: str | Policy, logger: Any) -> None:
        self._client = client
        self._settings = settings
        self._policy = policy
        self._logger = logger
        self.is_placing = False
        """Whether the plugin places tasks on this scheduler; False: Dask does."""
        self._in_force = ""
        """The name of the policy that the scheduler has."""
        self._experience = Experience()
        self._flow_run: FlowRun | None = None
        self._flow: str | None = None
        self._unplaceable: set[str] = set()
        self._has_plugin = False
        """Whether the scheduler has the plugin: only then it can tell what became of the run."""
        self._forecasting: forecast.Forecasting | None = None
        self._update: Callable[[Forecast | str], None] | None = None
        """Writes the report once more, with what the simulator found."""
        self._history: history.ForgivingHistory | None = None
        if settings.history != OFF:
            target = settings.history or settings.state_dir.expanduser() / "history.sqlite"
            self._history = history.open_or_cold(target, logger)

    def register(self, flow: str | None, flow_run: FlowRun | None) -> None:
        """As `_register`; where that fails, Dask places the tasks, and the log says why."""
        try:
            self._register(flow, flow_run)
        except Exception as exc:  # noqa: BLE001 - the flow can do without
            fell_back(Fallback.PLACEMENT_OFF)
            self._logger.warning(
                "deepflow does not place tasks on this cluster, Dask does: the scheduler does not "
                "take the plugin (%r); is deepflow of this version installed there?",
                exc,
            )

    def _register(self, flow: str | None, flow_run: FlowRun | None) -> None:
        """Give the scheduler the plugin, or, where it has one, what is known of this flow."""
        client = self._client
        self._flow_run, self._flow = flow_run, flow
        if self._history is not None and flow is not None:
            self._experience = Experience(self._history.estimates(flow), self._history.shapes())
        client.register_plugin(
            Placement(
                self._policy,
                estimates=self._experience.estimates,
                shapes=self._experience.shapes,
            )
        )
        client.subscribe_topic(UNPLACEABLE_TOPIC, self._say_unplaceable)
        report = client.sync(client.scheduler.deepflow_placement)
        self._has_plugin = True
        self.is_placing = bool(report["is_placing"])
        self._in_force = str(report["policy"])
        if report["faults"]:
            fell_back(Fallback.PLACEMENT_OFF)
            self._logger.warning(
                "deepflow does not place tasks on this cluster, Dask does: %s", report["faults"][0]
            )
        elif flow is not None and self._experience.estimates.knows(flow):
            blob = pickle.dumps(self._experience, protocol=5)
            client.sync(client.scheduler.deepflow_teach, flow=flow, experience=blob)

    def _say_unplaceable(self, event: Any) -> None:
        """No worker can take a task as things are: said once for each task name of this run."""
        _, said = event
        task = said["task"]
        is_ours = self._flow_run is not None and said["run"] == str(self._flow_run.id)
        if is_ours and task not in self._unplaceable:
            self._unplaceable.add(task)
            self._logger.warning(
                "No worker can take task %r, which waits for one that can: %s",
                task,
                said["reasons"],
            )

    @property
    def run(self) -> str:
        """The flow run's id, as events name it; empty without a flow run."""
        return "" if self._flow_run is None else str(self._flow_run.id)

    def finish(self, more: Sequence[Event] = (), notes: Sequence[str] = ()) -> None:
        """Fetch what became of the flow run, keep it and show it. Raises nothing.

        `more`: what the scheduler does not know, such as what results cost on their ways and how
        task runs are called; `notes`: sentences for the report.
        """
        try:
            is_told = self._has_plugin and self._client.status == "running"
            if self._flow_run is not None and is_told:
                self._finish(self._flow_run, more, notes)
        except Exception as exc:  # noqa: BLE001 - the run's results are not touched by it
            fell_back(Fallback.PLACEMENT_RECORD)
            self._logger.warning("What became of this flow run's tasks is not recorded: %r", exc)
        finally:
            if self._history is not None:
                self._history.close()

    def _finish(self, flow_run: FlowRun, more: Sequence[Event], notes: Sequence[str]) -> None:
        run = str(flow_run.id)
        events: list[Event] = pickle.loads(
            self._client.sync(self._client.scheduler.deepflow_events, run=run)
        )
        if not any(getattr(event, "run", None) == run for event in events):
            return
        n_events = len(events)
        # Its name stands first, so that whoever looks for it need not read the whole journal.
        events = [RunNamed(time.time(), run, flow_run.name, self._flow or ""), *events, *more]
        self._remember(events)
        is_kept = self._keep_journal(run, events)
        if n_events > _MAX_IN_ARTIFACT:
            return
        trail = Trail.of(events)
        if self._settings.artifact:
            self._report(flow_run, trail, events, notes, is_kept=is_kept)
        self._say_where_to_look(flow_run, trail, is_kept=is_kept)

    def _remember(self, events: Sequence[Event]) -> None:
        if self._history is None:
            return
        found, _ = observations(events)
        self._history.record(
            history.Observation(
                seen.flow,
                seen.run,
                seen.task,
                seen.worker_class,
                seen.at_s,
                seen.run_s,
                int(seen.input_bytes),
                int(seen.output_bytes),
            )
            for seen in found
        )
        experience = Experience()
        for flow, shape in experience.learn(events):
            self._history.record_run(flow, time.time(), shape)

    def _keep_journal(self, run: str, events: Sequence[Event]) -> bool:
        """Whether the run has a journal now."""
        if not self._settings.journal:
            return False
        folder = self._settings.state_dir.expanduser() / "journals"
        try:
            self._write_journal(folder, run, events)
        except (OSError, JournalError) as exc:
            fell_back(Fallback.PLACEMENT_RECORD)
            self._logger.warning(
                "This flow run leaves no journal for `deepflow explain` in %s (%s); make room "
                "there or allow writing, or name another folder with DEEPFLOW_STATE_DIR",
                folder,
                exc,
            )
            return False
        return True

    def _write_journal(self, folder: Path, run: str, events: Sequence[Event]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{run}.journal.zst"
        if path.exists():  # the runner was entered twice in one flow run
            path = folder / f"{run}-{time.time_ns()}.journal.zst"
        try:
            with JournalWriter(path, clock="unix") as journal:
                journal.write_all(events)
        except OSError:  # no room, mostly: what was written tells a part only, and takes room
            path.unlink(missing_ok=True)
            raise
        for old in sorted(folder.glob("*.journal.zst"), key=_modified_s)[:-_MAX_JOURNALS]:
            old.unlink(missing_ok=True)

    def _report(
        self,
        flow_run: FlowRun,
        trail: Trail,
        events: Sequence[Event],
        notes: Sequence[str],
        *,
        is_kept: bool,
    ) -> None:
        """Show the report, and begin to find out what Dask's placement would have made of the run.

        `complete` adds that.
        """
        replay = None
        why_not = forecast.why_not(trail)
        if is_kept:
            replay = Replay(flow_run.name, (STOCK, self._in_force), why_not=why_not)
        artifact_id = self._show(flow_run, flow_report_markdown(trail, notes, replay))
        if replay is None or why_not:
            return
        is_ours = isinstance(self._policy, Policy) and self._policy.name == self._in_force
        policy = self._policy if is_ours else self._in_force
        try:
            self._forecasting = forecast.Forecasting(
                events, trail.makespan_s, policy, self._experience
            )
        except Exception as exc:  # noqa: BLE001 - the policy is the user's; the report is there
            self._lacks_forecast(exc)
            return
        self._update = partial(self._show_forecast, artifact_id, trail, notes, replay)

    def _show(self, flow_run: FlowRun, report: str) -> UUID:
        with get_client(sync_client=True) as api:
            return api.create_artifact(
                ArtifactCreate(
                    key=REPORT_KEY,
                    type="markdown",
                    description="Where this flow run's tasks ran, and what they waited for.",
                    data=clean(report, "artifact"),
                    flow_run_id=flow_run.id,
                )
            ).id

    def complete(self) -> None:
        """Add to the report what the simulator found, if it was asked. Raises nothing.

        Waits for it, for a share of the time that the flow run took (`sim.forecast.budget_s`)
        since `finish`.
        """
        if self._forecasting is None or self._update is None:
            return
        try:
            found = self._forecasting.result()
            if isinstance(found, str):
                fell_back(Fallback.NO_FORECAST)
            self._update(found)
        except Exception as exc:  # noqa: BLE001 - the report is there, a paragraph shorter
            self._lacks_forecast(exc)

    def _lacks_forecast(self, exc: Exception) -> None:
        fell_back(Fallback.NO_FORECAST)
        self._logger.warning("The report of this run lacks what the simulator says: %r", exc)

    def _show_forecast(
        self,
        artifact_id: UUID,
        trail: Trail,
        notes: Sequence[str],
        replay: Replay,
        found: Forecast | str,
    ) -> None:
        if isinstance(found, str):
            replay = Replay(replay.run_name, replay.policies, why_not=found)
        else:
            replay = Replay(replay.run_name, replay.policies, found)
        report = clean(flow_report_markdown(trail, notes, replay), "artifact")
        with get_client(sync_client=True) as api:
            api.update_artifact(artifact_id, ArtifactUpdate(data=report))

    def _say_where_to_look(self, flow_run: FlowRun, trail: Trail, *, is_kept: bool) -> None:
        ways = []
        if is_kept:
            ways.append(f"`deepflow explain {shlex.quote(flow_run.name)}`")
        if self._settings.artifact:
            ways.append(f"artifact {REPORT_KEY} in the UI")
        n = n_task_runs(trail.tasks.values())
        n_workers = len(trail.workers)
        self._logger.info(
            "%s task run%s in %s on %s worker%s%s",
            f"{n:,}",
            "s" * (n != 1),
            in_seconds(trail.makespan_s),
            f"{n_workers:,}",
            "s" * (n_workers != 1),
            f"; where and why: {', '.join(ways)}" if ways else "",
        )


def _modified_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
