"""How a figure becomes a PNG small enough for Prefect's database, and how markdown shows it."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def encode(figure: Figure) -> bytes:
    """A PNG of `figure`, drawn on a canvas of its own.

    Never `pyplot`, whose state is shared by all threads of a worker. 128 colours are enough for
    these pictures, and make them a third of the size in Prefect's database.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[:, :, :3]
    png = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).quantize(128).save(png, "PNG", optimize=True)
    return png.getvalue()


def as_markdown_image(png: bytes, alternative: str) -> str:
    """The picture inside a line of markdown, so that it needs no web server of its own."""
    return f"![{alternative}](data:image/png;base64,{base64.b64encode(png).decode('ascii')})"
