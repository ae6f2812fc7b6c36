"""A pytest plugin: `prefect_dask` is deepflow, for the time of prefect-dask's own tests.

Loaded with `-p` in the process that runs those tests, before they import anything. With
`DEEPFLOW_JUDGE_REAL=1` it aliases nothing, so that a test that fails can be tried with the real
prefect-dask. Either way the machine has at least four cores for Dask: one of the tests needs three
runs side by side, and so fails for prefect-dask itself on a smaller machine.
"""

from __future__ import annotations

import os
import sys
import types

import dask.system
import distributed.deploy.local

N_CORES = 4

dask.system.CPU_COUNT = max(N_CORES, dask.system.CPU_COUNT)
distributed.deploy.local.CPU_COUNT = dask.system.CPU_COUNT


def alias() -> None:
    """Put modules named `prefect_dask…` that hold deepflow's classes into `sys.modules`."""
    import deepflow

    names = {
        "prefect_dask": {
            "DaskTaskRunner": deepflow.DeepflowTaskRunner,
            "PrefectDaskClient": deepflow.DeepflowClient,
            "get_dask_client": deepflow.get_dask_client,
            "get_async_dask_client": deepflow.get_async_dask_client,
        },
        "prefect_dask.task_runners": {
            "DaskTaskRunner": deepflow.DeepflowTaskRunner,
            "PrefectDaskFuture": deepflow.DeepflowFuture,
        },
        "prefect_dask.client": {"PrefectDaskClient": deepflow.DeepflowClient},
    }
    for name, members in names.items():
        module = types.ModuleType(name)
        module.__path__ = []
        vars(module).update(members)
        sys.modules[name] = module


if os.environ.get("DEEPFLOW_JUDGE_REAL") != "1":
    alias()
