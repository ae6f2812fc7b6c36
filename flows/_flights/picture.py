"""What do the forecasts look like? One panel per airport: predicted against actual delay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .. import _png
from .evaluation import BIN_EDGES_MIN, AirportErrors, Evaluation

# Rows of fewer flights say little about where their middle half lies.
_FEWEST_FLIGHTS_OF_A_BIN = 15


def draw(evaluations: Sequence[Evaluation], errors: Sequence[AirportErrors]) -> bytes:
    """A PNG: density of flights, the line of perfect forecasts, the middle half of what happened.

    Drawn from the counts in the evaluations.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.3 * len(evaluations) + 0.9, 4.9), layout="constrained", dpi=110)
    panels = figure.subplots(1, len(evaluations), sharex=True, sharey=True, squeeze=False)[0]
    most = max(int(evaluation.counts.max()) for evaluation in evaluations)
    low, high = BIN_EDGES_MIN[0], BIN_EDGES_MIN[-1]
    middles = (BIN_EDGES_MIN[:-1] + BIN_EDGES_MIN[1:]) / 2
    for panel, evaluation, error in zip(panels, evaluations, errors, strict=True):
        counts = np.ma.masked_equal(evaluation.counts, 0)
        mesh = panel.pcolormesh(
            BIN_EDGES_MIN,
            BIN_EDGES_MIN,
            counts.T,
            norm=LogNorm(1, max(most, 2)),
            cmap="YlGnBu",
            rasterized=True,
        )
        panel.plot([low, high], [low, high], color="#444444", linewidth=1, label="perfect forecast")
        enough = evaluation.counts.sum(axis=1) >= _FEWEST_FLIGHTS_OF_A_BIN
        enough[[0, -1]] = False  # these hold what lies beyond the axes, too
        for share, style in ((0.25, ":"), (0.5, "-"), (0.75, ":")):
            level = np.where(enough, _quantile(evaluation.counts, share), np.nan)
            panel.plot(
                middles,
                level,
                style,
                color="#d7301f",
                linewidth=1.6 if share == 0.5 else 1.2,
                label={0.25: "middle half", 0.5: "median of actual"}.get(share),
            )
        panel.set_title(
            f"{error.airport}: {error.n_held_out:,} flights held out\n"
            f"mean error {error.mae_min:.1f} min, without model {error.baseline_mae_min:.1f} min",
            fontsize=11,
        )
        panel.set_aspect("equal")
        panel.set_xticks(np.arange(low, high + 1, 60))
        panel.set_yticks(np.arange(low, high + 1, 60))
        panel.grid(color="#dddddd", linewidth=0.5)
        panel.set_axisbelow(True)
    panels[0].set_ylabel("actual arrival delay (min)")
    panels[0].legend(loc="upper left", fontsize=9, framealpha=0.9)
    figure.supxlabel("predicted arrival delay (min)", fontsize=10)
    n_beyond = sum(evaluation.n_beyond for evaluation in evaluations)
    bar = figure.colorbar(mesh, ax=list(panels), shrink=0.8, pad=0.01)
    bar.set_label(f"flights per {BIN_EDGES_MIN[1] - BIN_EDGES_MIN[0]:.0f} × 3 min")
    figure.suptitle(
        "Arrival delay forecast at departure, months never seen in training"
        + (f" ({n_beyond:,} flights beyond the axes are drawn at the edge)" if n_beyond else ""),
        fontsize=12,
    )
    return _png.encode(figure)


def _quantile(counts: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.float64]:
    """The actual delay (min) below which `share` of each row of flights lies, within its bin."""
    levels = np.full(len(counts), np.nan)
    for row, flights in enumerate(counts):
        total = flights.sum()
        if total:
            below = np.concatenate([[0], np.cumsum(flights)]) / total
            levels[row] = np.interp(share, below, BIN_EDGES_MIN)
    return levels
