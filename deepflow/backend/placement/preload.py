"""Placement for a scheduler that somebody starts by hand::

    dask scheduler --preload deepflow.backend.placement.preload --deepflow-policy heft

From then on every task of that scheduler is placed by the policy, whoever submits it; run times are
learned as it goes. A runner that connects later uses what is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deepflow.backend.placement.plugin import Placement
from deepflow.decide.place.registry import DEFAULT_POLICY, policy_named, policy_names
from deepflow.errors import ConfigurationError

if TYPE_CHECKING:
    from distributed import Scheduler

__all__ = ["dask_setup"]


def _known(context: click.Context, option: click.Parameter, policy: str) -> str:
    """The name itself; refused here, since Dask only logs what goes wrong in a preload."""
    try:
        policy_named(policy)
    except ConfigurationError as error:
        raise click.BadParameter(str(error)) from error
    return policy


@click.command()
@click.option(
    "--deepflow-policy",
    default=DEFAULT_POLICY,
    show_default=True,
    callback=_known,
    help=f"Which placement policy: {', '.join(policy_names())}, or one of an installed package.",
)
def dask_setup(scheduler: Scheduler, deepflow_policy: str) -> None:
    """Dask calls this before it starts the scheduler, and the plugin with it."""
    scheduler.add_plugin(Placement(deepflow_policy))
