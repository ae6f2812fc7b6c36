"""What `deepflow simulate` and `deepflow replay` share: progress, the table, JSON and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepflow.cli._output import in_bytes, print_json, print_table
from deepflow.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepflow.decide.trail import Trail
    from deepflow.sim.cluster import ClusterSpec
    from deepflow.sim.report import Cell, Interval, PolicySummary, Summary
    from deepflow.sim.workload import Workload

policies_option = click.option(
    "--policy",
    "policies",
    required=True,
    metavar="A,B,…",
    help="Policies to compare, with commas between them; stock is Dask's own.",
)
seeds_option = click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How often each is played, each time with other noise and another order of Dask's sets.",
)
plot_option = click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Draw the first workload on the first cluster, a panel for each policy.",
)


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of all runs."""

    cells: list[Cell]
    summary: Summary
    trails: Mapping[str, Trail]
    """The first run of each policy."""


def split_policies(policies: str) -> list[str]:
    """The names in a list with commas; raises :class:`ConfigurationError` for none or twice one."""
    names = [name.strip() for name in policies.split(",") if name.strip()]
    if not names:
        raise ConfigurationError("--policy names no policy; give one, such as --policy stock")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ConfigurationError(f"--policy names {twice[0]!r} twice; name each policy once")
    return names


def judge(
    workloads: Sequence[Workload],
    clusters: Sequence[ClusterSpec],
    policies: Sequence[str],
    n_seeds: int,
    *,
    history: Sequence[Workload] = (),
    is_silent: bool,
) -> Judged:
    """Play everything, with a bar of progress on standard error. The first policy is the baseline,
    or stock Dask where it is among them."""
    import numpy as np

    from deepflow.decide.trail import Trail
    from deepflow.sim.compare import Played, compare
    from deepflow.sim.report import summarise

    events: dict[str, Any] = {}

    def on_played(cell: Cell, played: Played) -> None:
        events.setdefault(cell.policy, played.outcome.events)

    with _bar(is_silent) as progress:
        cells = compare(
            workloads,
            clusters,
            policies,
            range(n_seeds),
            history=lambda _: history,
            progress=progress,
            on_played=on_played,
        )
    baseline = "stock" if "stock" in policies else policies[0]
    summary = summarise(cells, baseline=baseline, rng=np.random.default_rng(0))
    return Judged(cells, summary, {name: Trail.of(of) for name, of in events.items()})


@contextmanager
def _bar(is_silent: bool) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=is_silent, transient=True) as bar:
        task = bar.add_task("simulating", total=None)
        yield lambda done, n_all: bar.update(task, completed=done, total=n_all)


def tell(judged: Judged, output: Path | None, *, is_json: bool) -> None:
    """Print the table or the document, and write the document to `output` if given."""
    from deepflow.sim.report import to_json

    document = {
        "summary": to_json(judged.summary),
        "runs": [to_json(cell) for cell in judged.cells],
    }
    if output is not None:
        try:
            output.write_text(json.dumps(document, indent=2) + "\n")
        except OSError as error:
            raise ConfigurationError(
                f"{output} cannot be written ({error.strerror}); "
                "give a path in a directory that exists and can be written to"
            ) from error
    if is_json:
        print_json(document)
        return
    _print_summary(judged.summary)


def _print_summary(summary: Summary) -> None:
    n_cells = f"{summary.n_cells} cell{'s' * (summary.n_cells > 1)}"
    n_seeds = f"{summary.n_seeds} seed{'s' * (summary.n_seeds > 1)}"
    print_table(
        f"{n_cells}, {n_seeds}: mean [95 % interval over seeds]",
        ("policy", "makespan ÷ bound", "wait", "wait p99", "long tail", "slowdown", "largest"),
        (
            (
                one.policy + f" ({one.n_unfinished:,} tasks UNFINISHED)" * bool(one.n_unfinished),
                _shown(one, "makespan_over_bound", "{:.3g}"),
                _shown(one, "wait_mean_s", "{:.3g} s"),
                _shown(one, "wait_p99_s", "{:.3g} s"),
                _shown(one, "long_tail_share", "{:.2%}"),
                _shown(one, "slowdown_mean", "{:.3g}"),
                _shown(one, "slowdown_max", "{:.3g}"),
            )
            for one in summary.policies
        ),
    )
    print_table(
        "",
        ("policy", "useful utilisation", "fragmentation", "moved", "decision p50", "decision p99"),
        (
            (
                one.policy,
                _shown(one, "utilisation", "{:.1%}"),
                _shown(one, "fragmentation", "{:.1%}"),
                in_bytes(one.means["moved_bytes"].mean),
                _shown(one, "decision_p50_us", "{:.3g} µs"),
                _shown(one, "decision_p99_us", "{:.3g} µs"),
            )
            for one in summary.policies
        ),
    )
    print_table(
        f"Against {summary.baseline}: makespan, pairs of the same seed",
        ("policy", "ratio", "won", "lost", "worst cell"),
        (
            (
                one.policy,
                _interval(one.ratios.get("makespan_s"), "{:.3f}"),
                str(one.wins),
                str(one.losses),
                f"{one.worst.ratio:.3f} {one.worst.workflow} on {one.worst.cluster}",
            )
            for one in summary.policies
            if one.policy != summary.baseline
        ),
    )


def _shown(one: PolicySummary, metric: str, form: str) -> str:
    return _interval(one.means.get(metric), form)


def _interval(interval: Interval | None, form: str) -> str:
    if interval is None:
        return "-"
    mean = form.format(interval.mean)
    if interval.low is None or interval.high is None:
        return mean
    return f"{mean} [{form.format(interval.low)}, {form.format(interval.high)}]"
