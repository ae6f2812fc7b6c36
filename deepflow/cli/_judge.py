"""What `deepflow simulate` and `deepflow replay` share: progress, the table, JSON and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from humanize import naturalsize

from deepflow.cli._output import Column, print_json, print_table, say
from deepflow.decide.place.registry import DEFAULT_POLICY, STOCK, policy_named, policy_names
from deepflow.errors import ConfigurationError, advice_on_place
from deepflow.observe.explain import in_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepflow.decide.trail import Trail
    from deepflow.sim.cluster import ClusterSpec
    from deepflow.sim.report import Cell, Interval, PolicySummary, Summary
    from deepflow.sim.workload import Workload

policies_option = click.option(
    "--policy",
    "policies",
    default=f"{STOCK},{DEFAULT_POLICY}",
    show_default=True,
    metavar="A,B,…",
    help="Policies to compare, with commas between them. There are "
    f"{', '.join(policy_names())}; stock is Dask's own.",
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


def check_outputs(plot: Path | None, output: Path | None = None) -> None:
    """Raise :class:`ConfigurationError` where a file could not be written, before anything runs."""
    if plot is not None:
        from deepflow.observe.gantt import check_picture

        check_picture(plot)
    if output is not None and not output.absolute().parent.is_dir():
        raise ConfigurationError(
            f"--output {output} cannot be written: there is no folder {output.parent}; make it, or "
            "give a path in one that exists"
        )


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of all runs."""

    cells: list[Cell]
    summary: Summary
    trails: Mapping[str, Trail]
    """The first run of each policy."""


def split_policies(policies: str) -> list[str]:
    """The names in a list with commas.

    Raises :class:`ConfigurationError` for none, for one that is there twice, and for one that is no
    policy's.
    """
    names = [name.strip() for name in policies.split(",") if name.strip()]
    if not names:
        raise ConfigurationError("--policy names no policy; give one, such as --policy stock")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ConfigurationError(f"--policy names {twice[0]!r} twice; name each policy once")
    for name in names:
        policy_named(name)
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

    console = Console(stderr=True)
    is_silent = is_silent or not console.is_terminal
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=is_silent, transient=True) as bar:
        task = bar.add_task("simulating", total=None)
        yield lambda done, n_all: bar.update(task, completed=done, total=n_all)


def tell(judged: Judged, output: Path | None, *, is_wide: bool, is_json: bool) -> None:
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
                f"{output} cannot be written ({error.strerror}); {advice_on_place(error)}"
            ) from error
    if is_json:
        print_json(document)
        return
    if is_wide:
        _print_in_full(judged.summary)
    else:
        _print_in_short(judged.summary)


def _print_in_short(summary: Summary) -> None:
    """Means, and the one interval that decides."""
    numbers = ("makespan", "wait", "wait p99", "slowdown", "useful", "moved", "decision")
    print_table(
        f"Means over {_sample(summary)}",
        (Column("policy", is_cut=True), *(Column(name, is_number=True) for name in numbers)),
        (
            (
                one.policy,
                _mean(one, "makespan_over_bound", "{:.3g}"),
                in_seconds(_mean_of(one, "wait_mean_s")),
                in_seconds(_mean_of(one, "wait_p99_s")),
                _mean(one, "slowdown_mean", "{:.3g}"),
                _mean(one, "utilisation", "{:.0%}"),
                naturalsize(one.means["moved_bytes"].mean),
                _mean(one, "decision_p50_us", "{:.3g} µs"),
            )
            for one in summary.policies
        ),
    )
    others = [one for one in summary.policies if one.policy != summary.baseline]
    if others:
        print_table(
            f"Makespan against {summary.baseline}, in pairs of the same seed",
            (
                Column("policy", is_cut=True),
                Column("ratio [95 %]", is_number=True),
                Column("won", is_number=True),
                Column("lost", is_number=True),
                Column("worst", is_cut=True),
            ),
            (_against(one) for one in others),
        )
    for one in summary.policies:
        if one.n_unfinished:
            say(f"{one.policy}: {one.n_unfinished:,} tasks did not finish.")
    say(
        "makespan: divided by its lower bound; useful: share of the workers' time; decision: the "
        "median. --wide tells intervals and more."
    )


def _sample(summary: Summary) -> str:
    n_cells = f"{summary.n_cells} cell{'s' * (summary.n_cells > 1)}"
    n_seeds = f"{summary.n_seeds} seed{'s' * (summary.n_seeds > 1)}"
    return f"{n_cells} (workflow and cluster), {n_seeds}"


def _against(one: PolicySummary) -> tuple[str, ...]:
    return (
        one.policy,
        _interval(one.ratios.get("makespan_s"), "{:.3f}"),
        str(one.wins),
        str(one.losses),
        f"{one.worst.ratio:.3f} {one.worst.workflow} on {one.worst.cluster}",
    )


def _mean_of(one: PolicySummary, metric: str) -> float | None:
    interval = one.means.get(metric)
    return None if interval is None else interval.mean


def _mean(one: PolicySummary, metric: str, form: str) -> str:
    mean = _mean_of(one, metric)
    return "-" if mean is None else form.format(mean)


def _print_in_full(summary: Summary) -> None:
    print_table(
        f"{_sample(summary)}: mean [95 % interval over seeds]",
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
        is_wide=True,
    )
    print_table(
        "",
        ("policy", "useful utilisation", "fragmentation", "moved", "decision p50", "decision p99"),
        (
            (
                one.policy,
                _shown(one, "utilisation", "{:.1%}"),
                _shown(one, "fragmentation", "{:.1%}"),
                naturalsize(one.means["moved_bytes"].mean),
                _shown(one, "decision_p50_us", "{:.3g} µs"),
                _shown(one, "decision_p99_us", "{:.3g} µs"),
            )
            for one in summary.policies
        ),
        is_wide=True,
    )
    print_table(
        f"Against {summary.baseline}: makespan, pairs of the same seed",
        ("policy", "ratio", "won", "lost", "worst cell"),
        (_against(one) for one in summary.policies if one.policy != summary.baseline),
        is_wide=True,
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
