"""Was it read right? Readings of several networks, joined and compared with what was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .network import Floats
from .sheets import Condition, Pixels, Sheet, labels


@dataclass(frozen=True, slots=True)
class Misread:
    """A digit that was taken for another one."""

    pixels: Pixels
    written: int
    read: int
    condition: Condition
    confidence: float
    """How likely the networks found what they read."""


@dataclass(frozen=True, slots=True)
class CheckedSheet:
    """What came out of one sheet. `confusion[written, read]`: digits, `(10, 10)`."""

    condition: Condition
    confusion: npt.NDArray[np.int64]
    misread: tuple[Misread, ...]


def check(sheet: Sheet, digits: Pixels, readings: Sequence[Floats]) -> CheckedSheet:
    """The mean of the networks' readings beside what was written."""
    likely = np.mean(readings, axis=0)
    read = likely.argmax(axis=1)
    written = labels(sheet)
    confusion = np.zeros((10, 10), dtype=np.int64)
    np.add.at(confusion, (written, read), 1)
    return CheckedSheet(
        condition=sheet.condition,
        confusion=confusion,
        misread=tuple(
            Misread(
                digits[i], int(written[i]), int(read[i]), sheet.condition, float(likely[i, read[i]])
            )
            for i in np.flatnonzero(read != written)
        ),
    )


def by_condition(checked: Sequence[CheckedSheet]) -> dict[Condition, npt.NDArray[np.int64]]:
    """The confusion of all sheets of each condition, added up."""
    total: dict[Condition, npt.NDArray[np.int64]] = {}
    for sheet in checked:
        total[sheet.condition] = total.get(sheet.condition, 0) + sheet.confusion
    return total


def accuracy(confusion: npt.NDArray[np.int64]) -> float:
    """The share that was read right."""
    return float(np.trace(confusion) / confusion.sum())
