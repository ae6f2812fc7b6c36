"""What a flow run gets of placement through the task runner: plugin, record, history, report."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from click.testing import CliRunner
from distributed import LocalCluster
from prefect import flow, task

from deepflow import DeepflowTaskRunner
from deepflow.cli import main
from deepflow.decide.events import Finished, Placed
from deepflow.decide.place.policy import Policy
from deepflow.decide.trail import Trail
from deepflow.errors import ConfigurationError
from deepflow.observe import metrics
from deepflow.observe.explain import find_tasks
from deepflow.observe.history import History
from deepflow.observe.journal import read_journal
from deepflow.sim import forecast
from tests.integration.api import Api
from tests.integration.parity import run_on


@task
def double(x: int) -> int:
    time.sleep(0.01)
    return 2 * x


@task
def total(xs: list[int]) -> int:
    return sum(xs)


def body() -> int:
    result: int = total.submit(double.map(range(8))).result()
    return result


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEEPFLOW_STATE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def fresh(server: object) -> Iterator[LocalCluster]:
    """A scheduler that has no plugin yet."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0", silence_logs=40
    ) as running:
        yield running


def only_journal(state_dir: Path) -> Path:
    (path,) = (state_dir / "journals").iterdir()
    return path


def test_a_run_leaves_a_journal_a_history_and_a_report(
    state_dir: Path, fresh: LocalCluster, api: Api
) -> None:
    ran = run_on(fresh, body)
    assert ran.result() == 56
    events = read_journal(only_journal(state_dir))
    run_id = only_journal(state_dir).name.split(".")[0]
    trail = Trail.of(events).only([run_id])
    assert {t.task for t in trail.tasks.values()} == {"double", "total"}
    assert sum(t.n_runs for t in trail.tasks.values()) == 9
    placed = [e for e in events if isinstance(e, Placed)]
    assert {e.policy for e in placed} == {"srw-heft"}
    assert all(e.candidates[0].worker == e.worker for e in placed)
    assert {e.key for e in placed} == {e.key for e in events if isinstance(e, Finished)}
    with_history = History.open(state_dir / "history.sqlite")
    seen = with_history.observations()
    with_history.close()
    assert {o.task for o in seen} == {"double", "total"}
    assert all(0.01 <= o.run_s < 5 for o in seen if o.task == "double")
    (report,) = api.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
    assert report["key"] == "deepflow-placement"
    assert "double" in report["data"]


def report_of_only_run(state_dir: Path, api: Api) -> str:
    run_id = only_journal(state_dir).name.split(".")[0]
    (report,) = api.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
    return str(report["data"])


def test_a_long_run_is_told_what_dasks_own_placement_would_have_made_of_it(
    state_dir: Path, fresh: LocalCluster, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if it had taken hours: then the simulator has all the time that it needs.
    monkeypatch.setattr(forecast, "SHARE", 1e6)
    monkeypatch.setattr(forecast, "MOST_S", 150.0)
    run_on(fresh, body).result()
    told = report_of_only_run(state_dir, api)
    assert "with `stock` this run would have taken" in told
    assert "How far to trust that: played with `srw-heft`, the policy that was in force" in told
    assert "| double | 8 |" in told


def test_where_the_simulator_cannot_be_asked_the_report_is_there_without_it(
    state_dir: Path, fresh: LocalCluster, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_process(*_: object, **__: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(forecast, "SHARE", 1e6)
    monkeypatch.setattr(forecast, "Forecasting", no_process)
    before = metrics.value("deepflow_fallbacks_total", kind="no_forecast")
    assert run_on(fresh, body).result() == 56
    assert "double" in report_of_only_run(state_dir, api)
    assert metrics.value("deepflow_fallbacks_total", kind="no_forecast") == before + 1


def test_a_short_run_is_told_how_to_find_that_out(
    state_dir: Path, fresh: LocalCluster, api: Api
) -> None:
    run_on(fresh, body).result()
    told = report_of_only_run(state_dir, api)
    assert "(a run of less than 40 s is not made to wait for it): `deepflow replay " in told
    assert "--policy stock,srw-heft`" in told


@task(task_run_name="half-of-{x}")
def half(x: int) -> float:
    return x / 2


@task
def quarter(x: int) -> float:
    result: float = half.submit(half.fn(x)).result()
    return result


def test_runs_and_tasks_are_found_by_the_names_and_ids_that_the_server_has(
    state_dir: Path, fresh: LocalCluster, api: Api
) -> None:
    ran = run_on(
        fresh,
        lambda: (
            double.map(range(4)).result(),
            half.submit(8).result(),
            quarter.submit(2).result(),
        ),
    )
    ran.result()
    run_id = only_journal(state_dir).name.split(".")[0]
    flow_run = api.get(f"/flow_runs/{run_id}")
    runs = api.post("/task_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
    assert {"half-of-8", "half-of-1.0", "quarter-0"} <= {run["name"] for run in runs}
    trail = Trail.of(read_journal(only_journal(state_dir)))
    for run in runs:
        (task_trail,) = find_tasks(trail, run["id"])
        assert task_trail in find_tasks(trail, run["name"])
        assert task_trail.task == run["name"].split("-")[0]
    told = CliRunner().invoke(main, ["explain", flow_run["name"], "half-of-8"])
    assert "half-of-8: task half of run " + flow_run["name"] in told.output


def test_explain_tells_the_run_and_a_task(state_dir: Path, fresh: LocalCluster) -> None:
    run_on(fresh, body)
    run_id = only_journal(state_dir).name.split(".")[0]
    told = CliRunner().invoke(main, ["explain", run_id[:8]])
    assert told.exit_code == 0, told.output
    assert "double" in told.output
    one = CliRunner().invoke(main, ["explain", run_id[:8], "total", "--json"])
    assert one.exit_code == 0, one.output
    assert "total" in json.dumps(json.loads(one.output))


def test_the_next_run_knows_what_the_last_one_took(
    state_dir: Path, fresh: LocalCluster, server: object
) -> None:
    run_on(fresh, body)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0", silence_logs=40
    ) as another:
        run_on(another, body)
        plugin = another.scheduler.plugins["deepflow-placement"]
        estimates = plugin.live.mirror.estimates
        flow_name = _flows(estimates)[0]
        assert estimates.is_known(flow_name, "double")
        assert 0.01 <= estimates.run_s(flow_name, "double", None, 0) < 5


def _flows(estimates: Any) -> list[str]:
    return list(estimates._flows)


def test_a_policy_of_the_users_own_decides(state_dir: Path, fresh: LocalCluster) -> None:
    class LastWorker(Policy):
        name = "last-worker"

        def score(self, task: Any, candidates: Any, rng: Any) -> list[float]:
            return [-float(worker.number) for worker in candidates.workers]

    @flow(task_runner=DeepflowTaskRunner(cluster=fresh, policy=LastWorker()))
    def flow_of_ours() -> int:
        return double.submit(1).result() + double.submit(2).result()

    assert flow_of_ours() == 6
    placed = [e for e in read_journal(only_journal(state_dir)) if isinstance(e, Placed)]
    assert {e.policy for e in placed} == {"last-worker"}
    assert len({e.worker for e in placed}) == 1


def test_a_misspelt_policy_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'heft'"):
        DeepflowTaskRunner(policy="hetf")


def test_stock_leaves_the_scheduler_alone(
    state_dir: Path, fresh: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPFLOW_PLACEMENT", "stock")
    assert run_on(fresh, body).result() == 56
    assert "deepflow-placement" not in fresh.scheduler.plugins
    assert not (state_dir / "journals").exists()


def test_a_scheduler_that_refuses_the_plugin_places_by_itself(
    state_dir: Path, fresh: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, scheduler: Any) -> None:
        raise ImportError("no module named deepflow.backend.placement")

    monkeypatch.setattr("deepflow.backend.placement.plugin.Placement.start", refuse)
    assert run_on(fresh, body).result() == 56
    assert "deepflow-placement" not in fresh.scheduler.plugins


def test_a_damaged_history_is_a_cold_start(state_dir: Path, fresh: LocalCluster) -> None:
    (state_dir / "history.sqlite").write_bytes(b"this is no database" * 100)
    assert run_on(fresh, body).result() == 56


def test_what_no_worker_can_take_is_said_in_the_flow_runs_log(
    state_dir: Path, fresh: LocalCluster, api: Api
) -> None:
    runs: list[str] = []

    @flow(task_runner=DeepflowTaskRunner(cluster=fresh))
    def asks_too_much() -> str:
        from prefect.runtime import flow_run

        runs.append(str(flow_run.id))
        with dask.annotate(resources={"unobtainium": 1}):
            future = double.submit(1)
        future.wait(timeout=3)
        future.cancel()
        return "done"

    assert asks_too_much() == "done"
    api.until(
        lambda: api.logs(runs[0]),
        lambda lines: any("No worker can take task 'double'" in line for line in lines),
    )
    said = [line for line in api.logs(runs[0]) if "No worker can take" in line]
    assert len(said) == 1
    assert "offers 0 of unobtainium, the task needs 1" in said[0]
