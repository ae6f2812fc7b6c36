"""`deepflow simulate`: policies compared on simulated clusters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepflow.cli._judge import (
    check_outputs,
    judge,
    plot_option,
    policies_option,
    seeds_option,
    split_policies,
    tell,
)
from deepflow.cli._output import as_json, wide

if TYPE_CHECKING:
    from deepflow.sim.cluster import ClusterSpec
    from deepflow.sim.workload import Workload


@click.command("simulate", short_help="Policies compared on simulated clusters.")
@click.option(
    "--workflow",
    "workflows",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="A WfCommons file, a directory of them, or survey-example-1, -2 or -3, which ship with "
    "deepflow; may be given again.",
)
@click.option(
    "--cluster",
    "clusters",
    multiple=True,
    required=True,
    metavar="FILE|NAME",
    help="A TOML file, or a cluster that is built in: homogeneous, three-speeds, edge or "
    "gpu-mixed; may be given again.",
)
@policies_option
@seeds_option
@click.option(
    "--history",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Workflows that were run before, for policies to learn from; may be given again.",
)
@plot_option
@click.option("--output", type=click.Path(path_type=Path), help="Write the JSON document here.")
@wide
@as_json
def command(
    workflows: tuple[Path, ...],
    clusters: tuple[str, ...],
    policies: str,
    seeds: int,
    history: tuple[Path, ...],
    plot: Path | None,
    output: Path | None,
    is_wide: bool,
    is_json: bool,
) -> None:
    """Example: deepflow simulate --workflow survey-example-1 --cluster three-speeds

    Play workflows on simulated clusters with the real Dask scheduler in virtual time, under each
    policy and with several seeds, and compare: makespan ÷ lower bound, waits, long tail, slowdown,
    utilisation, fragmentation, bytes moved and the time a decision takes.
    """
    names = split_policies(policies)
    check_outputs(plot, output)
    workloads = [workload for path in workflows for workload in _workloads(path)]
    past = [workload for path in history for workload in _workloads(path)]
    judged = judge(
        workloads,
        [_cluster(name, workloads) for name in clusters],
        names,
        seeds,
        history=past,
        is_silent=is_json,
    )
    if plot is not None:
        from deepflow.observe.gantt import draw_side_by_side  # matplotlib, only where asked for

        draw_side_by_side(judged.trails, plot, title=f"{workloads[0].name} on {clusters[0]}")
    tell(judged, output, is_wide=is_wide, is_json=is_json)


def _workloads(path: Path) -> list[Workload]:
    """A workload for each file."""
    from deepflow.sim.wfcommons import read_many
    from deepflow.sim.workload import Workload

    return [Workload(job.run, (job,)) for job in read_many([path])]


def _cluster(name: str, workloads: list[Workload]) -> ClusterSpec:
    from deepflow.sim.builtin import builtin_cluster
    from deepflow.sim.clusters import read_cluster

    kinds = {t.kind or t.task for w in workloads for job in w.jobs for t in job.tasks}
    if Path(name).suffix == ".toml" or Path(name).is_file():
        return read_cluster(name, kinds=sorted(kinds))
    return builtin_cluster(name, kinds=sorted(kinds))
