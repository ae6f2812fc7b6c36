"""Prefect's side: task runner, future, what travels to a worker and how it runs there.

Lives here: everything that touches Prefect's engine, contexts, states and events. May import
Prefect, Dask and every room below (`backend`, `intermediates`, `observe`, `decide`, `hints`,
`errors`) and `settings`; only `cli` and `chaos` import it.

Two processes meet in the files directly in this room (`wire`: what travels): `driver/` runs beside
the flow, `worker/` inside of Dask workers, and both use `results/`, persisted results. Read in this
order: `task_runner` (what Prefect calls, and where the two halves are put together) ->
`driver/dispatch` -> `wire` -> `worker/execute` -> `driver/lifecycle` (what may happen to a run) ->
`driver/recorder` (how events reach the server).
"""

from deepflow.runner.versions import check_versions

check_versions()
