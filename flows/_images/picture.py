"""What was misread? A contact sheet: a scan of each condition, confusion, misread digits."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

from .. import _png
from .reading import CheckedSheet, accuracy, by_condition
from .sheets import Condition

_MOST_MISREAD = 36
_PER_ROW = 12


def draw(scans: Mapping[Condition, bytes], checked: Sequence[CheckedSheet]) -> bytes:
    """A PNG: one scan per condition with its accuracy, then confusion and misread digits.

    The most confident mistakes come first; at most `_MOST_MISREAD` are shown, the title says of how
    many.
    """
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(13, 6.6), layout="constrained", dpi=100)
    above, below = figure.subfigures(2, 1, height_ratios=(1, 2.3))
    confusion = by_condition(checked)
    panels = above.subplots(1, len(scans), squeeze=False)[0]
    for panel, (condition, jpeg) in zip(panels, scans.items(), strict=True):
        panel.imshow(Image.open(io.BytesIO(jpeg)), cmap="gray", vmin=0, vmax=255)
        n = int(confusion[condition].sum())
        panel.set_title(
            f"{condition}\n{accuracy(confusion[condition]):.1%} of {n} right", fontsize=10
        )
        panel.set_axis_off()

    left, right = below.subfigures(1, 2, width_ratios=(1, 2.1))
    total = np.sum(list(confusion.values()), axis=0)
    panel = left.subplots()
    panel.imshow(np.log1p(total), cmap="YlGnBu")
    for written, read in zip(*np.nonzero(total), strict=True):
        panel.text(
            read, written, total[written, read], ha="center", va="center", fontsize=7,
            color="white" if written == read else "black",
        )  # fmt: skip
    panel.set_xticks(range(10))
    panel.set_yticks(range(10))
    panel.set_xlabel("read")
    panel.set_ylabel("written")

    misread = sorted(
        (one for sheet in checked for one in sheet.misread), key=lambda one: -one.confidence
    )
    shown = misread[:_MOST_MISREAD]
    right.suptitle(f"{len(shown)} of {len(misread)} misread: written → read", fontsize=10)
    n_rows = _MOST_MISREAD // _PER_ROW
    for number, panel in enumerate(right.subplots(n_rows, _PER_ROW).flat):
        panel.set_axis_off()
        if number < len(shown):
            one = shown[number]
            panel.imshow(one.pixels, cmap="gray")
            panel.set_title(f"{one.written} → {one.read}\n{one.condition}", fontsize=7)
    return _png.encode(figure)
