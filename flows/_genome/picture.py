"""What do the populations look like? Distances, sharing and frequencies in one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import _png
from .statistics import Differentiation, Frequency, Overlap
from .variants import POPULATIONS

_FIRST_PEOPLE = 40
"""People of each population in the panel of shared variants."""


def draw(
    overlaps: Sequence[Overlap],
    frequencies: Sequence[Frequency],
    differentiation: Differentiation,
) -> bytes:
    """A PNG of three panels: F_ST, variants shared by pairs of people, carriers in a group.

    The last of `overlaps` is everybody's, in the order of `POPULATIONS`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15.5, 4.9), layout="constrained", dpi=100)
    distance, sharing, carriers = figure.subplots(1, 3)

    fst = differentiation.fst
    distance.imshow(fst, cmap="YlOrRd", vmin=0)
    ticks = range(len(POPULATIONS))
    distance.set_xticks(ticks, POPULATIONS)
    distance.set_yticks(ticks, POPULATIONS)
    for row in ticks:
        for column in ticks:
            distance.text(
                column, row, f"{fst[row, column]:.3f}", ha="center", va="center", fontsize=8,
                color="white" if fst[row, column] > 0.7 * fst.max() else "black",
            )  # fmt: skip
    distance.set_title("how far populations are apart (Hudson's $F_{ST}$)", fontsize=11)

    everybody = overlaps[-1].shared
    each = len(everybody) // len(POPULATIONS)
    shown = min(each, _FIRST_PEOPLE)
    people = np.concatenate([np.arange(i * each, i * each + shown) for i in ticks])
    pairs = everybody[np.ix_(people, people)].astype(float)
    np.fill_diagonal(pairs, np.nan)
    mesh = sharing.imshow(pairs, cmap="viridis", interpolation="nearest")
    middles = [(i + 0.5) * shown - 0.5 for i in ticks]
    sharing.set_xticks(middles, POPULATIONS)
    sharing.set_yticks(middles, POPULATIONS)
    sharing.set_title("deleterious variants that two people share", fontsize=11)
    figure.colorbar(mesh, ax=sharing, shrink=0.85, pad=0.02)

    for one in frequencies:
        k = np.arange(1, len(one.carriers))
        carriers.plot(k, one.carriers[1:] / one.n_groups, marker=".", label=one.population)
    carriers.set_yscale("log")
    carriers.set_xlabel(f"carriers in a group of {len(frequencies[0].carriers) - 1}")
    carriers.set_ylabel("deleterious variants, mean of the groups")
    carriers.set_title("how widespread a deleterious variant is", fontsize=11)
    carriers.grid(color="#dddddd", linewidth=0.5)
    carriers.legend(fontsize=8)
    return _png.encode(figure)
