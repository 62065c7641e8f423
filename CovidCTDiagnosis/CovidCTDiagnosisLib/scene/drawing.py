"""What pictures of studies have in common: letters, scales, colour bars, drawn with Pillow."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from CovidCTDiagnosisLib.scene.colors import POSITIVE, RGB, color_function

BACKGROUND = (12, 13, 16)
TEXT = (236, 238, 242)
FAINT_TEXT = (150, 155, 165)


def draw_edges(
    draw: ImageDraw.ImageDraw, left: int, top: int, picture: np.ndarray, edges: tuple[str, str, str, str]
) -> None:
    """Letters R L A P S I at the left, right, top and bottom of a picture (rows, columns, RGB)."""
    height, width = picture.shape[:2]
    places = (
        (left + 8, top + height / 2, "lm"),
        (left + width - 8, top + height / 2, "rm"),
        (left + width / 2, top + 6, "mt"),
        (left + width / 2, top + height - 6, "mb"),
    )
    for letter, (x, y, anchor) in zip(edges, places, strict=True):
        draw.text((x, y), letter, TEXT, font(20), anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))


def draw_scale(draw: ImageDraw.ImageDraw, left: int, bottom: int, pixels_per_mm: float) -> None:
    """A bar of 5 cm in a picture's lower left corner."""
    start, end, y = left + 14, left + 14 + 50 * pixels_per_mm, bottom - 18
    draw.rectangle((start - 2, y - 4, end + 2, y + 4), fill=(0, 0, 0))
    draw.rectangle((start, y - 2, end, y + 2), fill=TEXT)
    draw.text((end + 10, y), "5 cm", TEXT, font(18), anchor="lm", stroke_width=2, stroke_fill=(0, 0, 0))


def draw_upwards(sheet: Image.Image, text: str, left: int, center: float) -> None:
    """A row's title, read from below."""
    width = round(font(24).getlength(text)) + 4
    label = Image.new("RGB", (width, 34), BACKGROUND)
    ImageDraw.Draw(label).text((width / 2, 17), text, TEXT, font(24), anchor="mm")
    sheet.paste(label.transpose(Image.Transpose.ROTATE_90), (left, round(center - width / 2)))


def color_bar(width: int, height: int) -> np.ndarray:
    """The colours of positive relevance from left to right, (height, width, RGB) uint8."""
    function = color_function(POSITIVE)
    row = [to_bytes(function.GetColor(position)) for position in np.linspace(0, 1, width)]
    return np.tile(np.array(row, np.uint8), (height, 1, 1))


def to_bytes(rgb: RGB) -> tuple[int, int, int]:
    """Colours from [0, 1] to 0..255."""
    red, green, blue = (round(255 * value) for value in rgb)
    return red, green, blue


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Of this many pixels."""
    return ImageFont.load_default(size)


def shortened(text: str, letters: ImageFont.FreeTypeFont | ImageFont.ImageFont, pixels: float) -> str:
    """A text, or the beginning of it that is no wider than this."""
    if letters.getlength(text) <= pixels:
        return text
    kept = text
    while kept and letters.getlength(f"{kept}...") > pixels:
        kept = kept[:-1]
    return f"{kept}..."
