"""Which digits were written on these scans? A pipeline from CPU to GPU and back, on real images.

    scan ─ decode (sheet to learn from) ─ train (network, GPU if any)
                                            │
    scan ─ decode (sheet to judge by) ──── read (sheet × network, GPU if any) ─ check (sheet)
                                                                                  └─ publish

Handwritten digits and photographs that scikit-learn ships become JPEG scans of sheets, under six
conditions; a few small networks learn to read them and are judged on sheets of other digits.
Run it with `python -m flows.image_pipeline [tiny|small|full]`, or under any other task runner with
`image_pipeline.with_options(task_runner=...)`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from deepflow import DeepflowTaskRunner, hints

from . import _png
from ._images import network, picture, reading, sheets
from ._images.network import Floats, Network, Training
from ._images.reading import CheckedSheet
from ._images.sheets import Condition, Pixels, Sheet

Size = Literal["tiny", "small", "full"]

TABLE_KEY = "image-pipeline-accuracy"
PICTURE_KEY = "image-pipeline-contact-sheet"


@dataclass(frozen=True, slots=True)
class Scale:
    """What a size means: digits to learn from and to judge by, each under so many conditions."""

    learn_digits: int
    judge_digits: int
    conditions: int
    networks: int
    training: Training


SCALES: Mapping[Size, Scale] = {
    "tiny": Scale(240, 80, 2, 1, Training(epochs=10, batch_digits=32)),
    "small": Scale(480, 240, 3, 2, Training(epochs=4)),
    "full": Scale(800, 597, 6, 3, Training(epochs=3)),
}


@dataclass(frozen=True, slots=True)
class ConditionFigures:
    """How well the scans of one condition were read."""

    condition: Condition
    digits: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class ImageSummary:
    """What the flow did, in figures."""

    size: Size
    tasks: int
    digits_learned_from: int
    digits_judged: int
    accuracy: float
    conditions: tuple[ConditionFigures, ...]
    trained_on: tuple[str, ...]
    """The kind of device that each network was trained on."""
    picture_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


# The default cache policy hashes every input of a task, and these inputs are images: no caching.


@task(cache_policy=NO_CACHE)
def scan(sheet: Sheet) -> bytes:
    """The JPEG of a sheet."""
    return sheets.scan(sheet)


@task(cache_policy=NO_CACHE)
def decode(jpeg: bytes, n_digits: int) -> Pixels:
    """The digits of a scan, cut out and made small."""
    return sheets.decode(jpeg, n_digits)


# Softly: a GPU where a worker has one, any worker otherwise.
@hints(gpu="soft")
@task(cache_policy=NO_CACHE)
def train(
    digits: Sequence[Pixels], learn_from: Sequence[Sheet], seed: int, training: Training
) -> Network:
    """A network that reads digits."""
    labels = np.concatenate([sheets.labels(sheet) for sheet in learn_from])
    trained = network.train(digits, labels, seed=seed, how=training)
    get_run_logger().info(
        "%d digits, loss %.2f -> %.2f on %s",
        trained.n_digits,
        trained.losses[0],
        trained.losses[-1],
        trained.trained_on,
    )
    return trained


@hints(gpu="soft")
@task(cache_policy=NO_CACHE)
def read(trained: Network, digits: Pixels) -> Floats:
    """How likely each digit of a sheet is each of 0 to 9."""
    return network.read(trained, digits)


@task(cache_policy=NO_CACHE)
def check(sheet: Sheet, digits: Pixels, readings: Sequence[Floats]) -> CheckedSheet:
    """The networks' readings beside what was written."""
    return reading.check(sheet, digits, readings)


@task(cache_policy=NO_CACHE)
def device(trained: Network) -> str:
    """What a network was trained on; the driver needs nothing else of it."""
    return trained.trained_on


@task(cache_policy=NO_CACHE)
def add_up(checked: Sequence[CheckedSheet]) -> list[ConditionFigures]:
    """Accuracy by condition."""
    return [
        ConditionFigures(condition, int(confusion.sum()), reading.accuracy(confusion))
        for condition, confusion in reading.by_condition(checked).items()
    ]


@task(cache_policy=NO_CACHE)
def publish_table(conditions: Sequence[ConditionFigures]) -> None:
    """Artifact: accuracy by condition."""
    create_table_artifact(
        key=TABLE_KEY,
        table=[_table_row(one) for one in conditions],
        description="Digits read right, on sheets never seen in training",
    )


@task(cache_policy=NO_CACHE)
def publish_picture(
    conditions: Sequence[Condition], scans: Sequence[bytes], checked: Sequence[CheckedSheet]
) -> int:
    """Artifact: a contact sheet. Returns the bytes of the PNG."""
    png = picture.draw(dict(zip(conditions, scans, strict=True)), checked)
    image = _png.as_markdown_image(png, "a scan of each condition, and the misread digits")
    create_markdown_artifact(
        key=PICTURE_KEY,
        markdown=f"# Handwritten digits, read from scans\n\n{image}\n",
        description="A scan of each condition, and the misread digits",
    )
    return len(png)


@flow(name="image-pipeline", task_runner=DeepflowTaskRunner())
def image_pipeline(size: Size = "full", seed: int = 1797) -> ImageSummary:
    """Read handwritten digits from scans; publish accuracy by condition and a contact sheet.

    The last digits of the table are for judging only. Raises `ImageDataError` where scikit-learn,
    which ships the images, is not installed.
    """
    scale = SCALES[size]
    to_learn = sheets.sheets(0, scale.learn_digits, scale.conditions, seed)
    to_judge = sheets.sheets(
        sheets.N_DIGITS - scale.judge_digits, scale.judge_digits, scale.conditions, seed
    )
    everything = [*to_learn, *to_judge]
    # Futures stand in for the values they bring, which Prefect's signatures do not say: hence Any.
    scans: Any = scan.map(everything)
    digits: Any = decode.map(scans, [sheet.n_digits for sheet in everything])
    learn_from, judge_by = digits[: len(to_learn)], digits[len(to_learn) :]

    trained: list[Any] = [
        train.submit(learn_from, to_learn, seed + number, scale.training)
        for number in range(scale.networks)
    ]
    devices: Any = device.map(trained)
    checked: list[Any] = []
    for sheet, stack in zip(to_judge, judge_by, strict=True):
        readings: list[Any] = [read.submit(one, stack) for one in trained]
        checked.append(check.submit(sheet, stack, readings))

    conditions: Any = add_up.submit(checked)
    shown = {
        sheet.condition: one
        for sheet, one in reversed(list(zip(to_judge, scans[len(to_learn) :], strict=True)))
    }
    in_order = [condition for condition in sheets.CONDITIONS if condition in shown]
    table: Any = publish_table.submit(conditions)
    contact_sheet: Any = publish_picture.submit(in_order, [shown[c] for c in in_order], checked)

    table.result()
    figures: list[ConditionFigures] = conditions.result()
    judged = sum(one.digits for one in figures)
    return ImageSummary(
        size=size,
        tasks=2 * len(everything) + 2 * len(trained) + (len(trained) + 1) * len(to_judge) + 3,
        digits_learned_from=sum(sheet.n_digits for sheet in to_learn),
        digits_judged=judged,
        accuracy=sum(one.accuracy * one.digits for one in figures) / judged,
        conditions=tuple(figures),
        trained_on=tuple(devices.result()),
        picture_bytes=contact_sheet.result(),
    )


def _table_row(one: ConditionFigures) -> dict[str, Any]:
    return {
        "condition": one.condition,
        "digits": one.digits,
        "read right": f"{one.accuracy:.1%}",
    }


def _main(size: str) -> None:
    if size not in get_args(Size):
        sys.exit(f"size {size!r} is none of {', '.join(get_args(Size))}")
    summary = image_pipeline(size=cast("Size", size))
    for one in summary.conditions:
        sys.stdout.write(f"{_table_row(one)}\n")


if __name__ == "__main__":
    _main(sys.argv[1] if len(sys.argv) > 1 else "full")
