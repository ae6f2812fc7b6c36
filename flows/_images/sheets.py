"""What is on the sheets? Scans of handwritten digits as JPEG, and the way back to the digits.

The handwriting is real: the 1,797 digits that scikit-learn ships (Alpaydin and Kaynak, UCI), each
8 × 8 pixels of ink density. So are the two photographs that it ships, on which the sheets are
written. scikit-learn itself is never imported; only its files are read.
"""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from deepflow.errors import DeepflowError

if TYPE_CHECKING:
    from PIL import Image

Condition = Literal["clean", "busy", "blurred", "noisy", "slanted", "compressed"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)

N_DIGITS = 1797
"""Digits in the table; the first ones are for learning, the last ones for judging."""
COLUMNS, ROWS = 8, 5
DIGITS_PER_SHEET = COLUMNS * ROWS
SIDE_PX = 28
"""Side of a digit as the network sees it."""

_CELL_PX = 128
_DIGIT_PX = 96
_JITTER_PX = 10
_INK = 40.0
_SLANT_DEGREES = 20.0
_BLUR_PX = 7.0
_NOISE = 60.0

Pixels = npt.NDArray[np.uint8]


class ImageDataError(DeepflowError, ValueError):
    """The digits or the photographs cannot be used as they are."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """Which digits are on a sheet, and how it was scanned."""

    first_digit: int
    n_digits: int
    condition: Condition
    seed: int


def sheets(first_digit: int, n_digits: int, conditions: int, seed: int) -> list[Sheet]:
    """Sheets that hold each digit from `first_digit` on once under each of the first `conditions`.

    Raises `ImageDataError` for digits that are not in the table.
    """
    last = first_digit + n_digits
    if first_digit < 0 or n_digits < 1 or last > N_DIGITS:
        raise ImageDataError(
            f"digits {first_digit} to {last} are wanted, and the table holds 0 to {N_DIGITS}"
        )
    return [
        Sheet(start, min(DIGITS_PER_SHEET, last - start), condition, seed)
        for condition in CONDITIONS[:conditions]
        for start in range(first_digit, last, DIGITS_PER_SHEET)
    ]


def labels(sheet: Sheet) -> npt.NDArray[np.int64]:
    """Which digits were written on a sheet, `(n_digits,)`."""
    return _digits()[1][sheet.first_digit : sheet.first_digit + sheet.n_digits]


def scan(sheet: Sheet) -> bytes:
    """The sheet as a JPEG, as a scanner delivers it: 1024 × 640 pixels, grey."""
    from PIL import Image, ImageFilter

    random = np.random.default_rng(
        [sheet.seed, sheet.first_digit, CONDITIONS.index(sheet.condition)]
    )
    ink = Image.new("L", (COLUMNS * _CELL_PX, ROWS * _CELL_PX))
    densities = _digits()[0][sheet.first_digit : sheet.first_digit + sheet.n_digits]
    for number, density in enumerate(densities):
        digit = Image.fromarray(np.clip(density * 16, 0, 255).astype(np.uint8))
        digit = digit.resize((_DIGIT_PX, _DIGIT_PX), Image.Resampling.BICUBIC)
        if sheet.condition == "slanted":
            digit = digit.rotate(
                random.uniform(-_SLANT_DEGREES, _SLANT_DEGREES), Image.Resampling.BICUBIC
            )
        row, column = divmod(number, COLUMNS)
        margin = (_CELL_PX - _DIGIT_PX) // 2
        x, y = random.integers(-_JITTER_PX, _JITTER_PX + 1, 2)
        ink.paste(digit, (column * _CELL_PX + margin + x, row * _CELL_PX + margin + y))
    coverage = np.asarray(ink, dtype=np.float32) / 255
    paper = _paper(sheet, random)
    grey = paper * (1 - coverage) + _INK * coverage
    if sheet.condition == "noisy":
        grey = grey + random.normal(0, _NOISE, grey.shape)
    page = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
    if sheet.condition == "blurred":
        page = page.filter(ImageFilter.GaussianBlur(_BLUR_PX))
    jpeg = io.BytesIO()
    page.save(jpeg, "JPEG", quality=5 if sheet.condition == "compressed" else 85)
    return jpeg.getvalue()


def decode(jpeg: bytes, n_digits: int) -> Pixels:
    """The digits of a scan, ink bright on dark, `(n_digits, SIDE_PX, SIDE_PX)`.

    Raises `ImageDataError` for bytes that are no picture of a sheet.
    """
    from PIL import Image, ImageFilter, UnidentifiedImageError

    try:
        page = Image.open(io.BytesIO(jpeg)).convert("L")
    except (UnidentifiedImageError, OSError) as error:
        raise ImageDataError(
            f"a scan of {len(jpeg)} bytes cannot be decoded ({error}); scan the sheet again"
        ) from error
    if page.width * ROWS != page.height * COLUMNS:
        raise ImageDataError(
            f"a scan of {page.width} × {page.height} pixels is no sheet of {COLUMNS} × {ROWS} "
            "digits; crop it to the sheet"
        )
    small = page.resize((COLUMNS * SIDE_PX, ROWS * SIDE_PX), Image.Resampling.LANCZOS)
    # What is darker than its surroundings is ink, whatever the paper's own picture.
    around = small.filter(ImageFilter.GaussianBlur(SIDE_PX / 2))
    darker = np.asarray(around, dtype=np.float32) - np.asarray(small, dtype=np.float32)
    bright = np.clip(darker + 32, 0, 255).astype(np.uint8)
    cells = bright.reshape(ROWS, SIDE_PX, COLUMNS, SIDE_PX).swapaxes(1, 2)
    return np.ascontiguousarray(cells.reshape(DIGITS_PER_SHEET, SIDE_PX, SIDE_PX)[:n_digits])


def _paper(sheet: Sheet, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """A washed-out stretch of a photograph, `(height, width)`."""
    from PIL import Image

    photo = _photographs()[random.integers(2)]
    width, height = 320, 200
    left = int(random.integers(photo.width - width + 1))
    top = int(random.integers(photo.height - height + 1))
    stretch = photo.resize(
        (COLUMNS * _CELL_PX, ROWS * _CELL_PX),
        Image.Resampling.BICUBIC,
        box=(left, top, left + width, top + height),
    )
    strength = np.float32(0.75 if sheet.condition == "busy" else 0.2)
    paper: npt.NDArray[np.float32] = 255 - (255 - np.asarray(stretch, np.float32)) * strength
    return paper


@lru_cache(maxsize=1)
def _digits() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Ink densities from 0 to 16, `(N_DIGITS, 8, 8)`, and what each one is."""
    with gzip.open(_folder() / "data" / "digits.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",")
    if table.shape != (N_DIGITS, 65):
        raise ImageDataError(
            f"the table of digits has the shape {table.shape} instead of {(N_DIGITS, 65)}; "
            "install scikit-learn anew"
        )
    return table[:, :64].reshape(-1, 8, 8), table[:, 64].astype(np.int64)


@lru_cache(maxsize=1)
def _photographs() -> tuple[Image.Image, ...]:
    """The two photographs, grey."""
    from PIL import Image

    found = []
    for name in ("china.jpg", "flower.jpg"):
        with Image.open(_folder() / "images" / name) as photo:
            found.append(photo.convert("L"))
    return tuple(found)


def _folder() -> Path:
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise ImageDataError(
            "the package scikit-learn, which carries the digits and photographs, is not installed; "
            "run `pip install prefect-deepflow[demo]`"
        )
    return Path(spec.submodule_search_locations[0]) / "datasets"
