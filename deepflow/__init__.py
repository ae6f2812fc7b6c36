"""deepflow: the Prefect task runner that runs on Dask.

Only names are declared here; nothing heavy is imported until one is used, because Prefect
imports this package when its server starts (`prefect.collections` entry point).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

# Eager, and cheap (standard library only): the function shares its module's name, and importing
# the submodule later would put the module in the function's place.
from deepflow.hints import Hints, hints

if TYPE_CHECKING:
    from deepflow.decide.model import WorkerClass
    from deepflow.errors import DeepflowError
    from deepflow.locate.resolvers import register_resolver
    from deepflow.locate.shards import Shard, shards
    from deepflow.runner.driver.client import DeepflowClient, get_async_dask_client, get_dask_client
    from deepflow.runner.driver.future import DeepflowFuture
    from deepflow.runner.results.caching import CONTENT
    from deepflow.runner.results.serializer import DeepflowSerializer
    from deepflow.runner.server import EmbeddedServer
    from deepflow.runner.task_runner import DeepflowTaskRunner
    from deepflow.settings import Settings

__version__ = "0.1.0"

_HOMES = {
    "CONTENT": "deepflow.runner.results.caching",
    "DeepflowClient": "deepflow.runner.driver.client",
    "DeepflowError": "deepflow.errors",
    "DeepflowFuture": "deepflow.runner.driver.future",
    "DeepflowSerializer": "deepflow.runner.results.serializer",
    "DeepflowTaskRunner": "deepflow.runner.task_runner",
    "EmbeddedServer": "deepflow.runner.server",
    "Settings": "deepflow.settings",
    "Shard": "deepflow.locate.shards",
    "WorkerClass": "deepflow.decide.model",
    "get_async_dask_client": "deepflow.runner.driver.client",
    "get_dask_client": "deepflow.runner.driver.client",
    "register_resolver": "deepflow.locate.resolvers",
    "shards": "deepflow.locate.shards",
}

__all__ = [
    "CONTENT",
    "DeepflowClient",
    "DeepflowError",
    "DeepflowFuture",
    "DeepflowSerializer",
    "DeepflowTaskRunner",
    "EmbeddedServer",
    "Hints",
    "Settings",
    "Shard",
    "WorkerClass",
    "get_async_dask_client",
    "get_dask_client",
    "hints",
    "register_resolver",
    "shards",
]


def __getattr__(name: str) -> object:
    """Import a public name from its home on first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'deepflow' has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
