"""Prefect's side: task runner, future, what travels to a worker and how it runs there.

Lives here: everything that touches Prefect's engine, contexts, states and events. May import
Prefect, Dask and every room below (`backend`, `intermediates`, `observe`, `decide`, `hints`,
`errors`) and `settings`; only `cli` and `chaos` import it.

Read in this order: `task_runner` (what Prefect calls) -> `dispatch` (the driver's half) ->
`wire` (what travels) -> `execute` and `engine` (the worker's half) -> `recorder` (how events
reach the server).
"""

from deepflow.runner.versions import check_versions

check_versions()
