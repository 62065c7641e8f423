"""The plate of a study as in the paper's Figures 8 and 9: the slices that mattered most, with their findings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import slicer
from PIL import Image, ImageDraw
from scipy import ndimage

from CovidCTDiagnosisLib.ct.orientation import on_grid_of
from CovidCTDiagnosisLib.ct.volume import Volume
from CovidCTDiagnosisLib.errors import InputError
from CovidCTDiagnosisLib.folders import replaced_file
from CovidCTDiagnosisLib.scene.colors import LESIONS
from CovidCTDiagnosisLib.scene.drawing import (
    BACKGROUND,
    FAINT_TEXT,
    TEXT,
    color_bar,
    draw_edges,
    draw_scale,
    draw_upwards,
    font,
    shortened,
)
from CovidCTDiagnosisLib.scene.heatmap import HeatmapView, show_heatmap
from CovidCTDiagnosisLib.scene.layers import show_layers
from CovidCTDiagnosisLib.scene.nodes import (
    LUNG_LEVEL_HU,
    LUNG_WINDOW_HU,
    add_ct,
    load_study,
)
from CovidCTDiagnosisLib.scene.report import explained_score, finding_line
from CovidCTDiagnosisLib.scene.slice_view import SliceView
from CovidCTDiagnosisLib.study import Study, read_study

COLUMNS, LEAST_COLUMNS = 5, 3
"""Slices of a plate, and for how many it is wide at least: the legend wants that."""
APART_MM = 12.0
"""At least so far are the slices of a plate from each other, or they would all look alike."""
VIEW = HeatmapView()
MARGIN_MM = 15.0
OPACITY, OUTLINE_OPACITY = 0.65, 0.6
NAMED, LEAST_MM2 = 2, 50.0
"""Lesions of a slice that are named, and the smallest such."""
ARROW = 46
PIXELS = 420
"""Width of one picture."""
DOTS_PER_INCH = 200.0

_CT_LEGEND = f" Their largest lesions are named. Lung window: width {LUNG_WINDOW_HU:g} HU, level {LUNG_LEVEL_HU:g} HU."
_POINTER = (90, 200, 255)
_Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""
_AIR_HU, _LUNG_HU, _LESION_HU = -1200, -850, -350
_EDGE, _GAP, _LEFT, _TOP, _BOTTOM = 30, 6, 40, 120, 150


def plate(study_folder: Path, ct: Volume | None, outputs: list[Path]) -> None:
    """Draw the plate with Slicer's slice logic, off screen.

    Columns: the slices with the most positive relevance of both inputs, at least `APART_MM` apart, from top to bottom.
    Rows: the CT with its largest lesions named and pointed out; the masked lungs with the relevance of the CT; the
    lesion mask with its own relevance. Relevance is smoothed by a Gaussian of the `VIEW`, and its positive part is
    shown; for either input the colours end at its percentile of the whole study, not of a slice.

    Args:
        study_folder: an analysis.
        ct: the CT that was analysed, HU; without it the first row is left out and lungs are plain grey.
        outputs: PNG or PDF files.

    Raises:
        InputError: the study cannot be read, has no positive relevance, or does not belong to `ct`.
    """
    study = read_study(study_folder)
    chosen = most_relevant_slices(study)
    if not chosen:
        raise InputError(f"The study {study_folder} has no positive relevance.", "There is nothing to show.")
    placed = None if ct is None else on_grid_of(ct, study.grid)
    if ct is not None and placed is None:
        raise InputError(f"The study {study_folder} is not on the grid of this CT.", "Give the CT that was analyzed.")
    picture = _draw(study, placed, chosen)
    for output in outputs:
        with replaced_file(output) as partial:
            picture.save(partial, format=output.suffix[1:], resolution=DOTS_PER_INCH)


def most_relevant_slices(study: Study, count: int = COLUMNS, apart_mm: float = APART_MM) -> list[int]:
    """Indices of slices along the CT's long axis, those with the most relevance, in order from head to feet."""
    grid = study.grid
    taken: list[int] = []
    for entry in study.analysis["relevance"]["slices"]:
        height = grid.slice_center(entry["index"])[2]
        if all(abs(height - grid.slice_center(other)[2]) >= apart_mm for other in taken):
            taken.append(entry["index"])
        if len(taken) == count:
            break
    return sorted(taken, key=lambda index: -grid.slice_center(index)[2])


class Finding(NamedTuple):
    """A lesion in one slice.

    Attributes:
        name: of its most frequent class.
        center_ras: RAS mm, (3,).
        radius_mm: of a circle of its area.
    """

    name: str
    center_ras: np.ndarray
    radius_mm: float


def findings(grid: Volume, lesions: np.ndarray, index: int) -> list[Finding]:
    """The largest lesions of a slice, at most `NAMED`, each of at least `LEAST_MM2`.

    Args:
        grid: of the study.
        lesions: classes, (K, J, I).
        index: along the grid's long axis.
    """
    axis = grid.long_axis
    labels = np.take(lesions, index, axis)
    across = [a for a in range(3) if a != axis]
    pixel_mm2 = float(np.prod([grid.spacing[2 - a] for a in across]))
    parts, count = ndimage.label(labels > 0)
    found = []
    for part in range(1, count + 1):
        where = parts == part
        area = float(where.sum()) * pixel_mm2
        if area < LEAST_MM2:
            continue
        voxel = np.insert(np.argwhere(where).mean(0), axis, index)
        lps = grid.affine @ [*voxel[::-1], 1]
        name = LESIONS[int(np.bincount(labels[where]).argmax())].name
        found.append(Finding(name, lps[:3] * [-1, -1, 1], (area / np.pi) ** 0.5))
    return sorted(found, key=lambda finding: -finding.radius_mm)[:NAMED]


@dataclass(frozen=True)
class _Row:
    """What the slices of a row show: relevance may be None, the lungs may be outlined."""

    title: str
    background: slicer.vtkMRMLScalarVolumeNode
    relevance: slicer.vtkMRMLScalarVolumeNode | None = None
    outline: slicer.vtkMRMLLabelMapVolumeNode | None = None
    named: bool = False


def _draw(study: Study, ct: Volume | None, chosen: list[int]) -> Image.Image:
    """Of the CT, on the study's grid, or without it."""
    scene = slicer.vtkMRMLScene()
    colors = slicer.vtkMRMLColorLogic()  # owns the scene's default colours: has to live as long
    colors.SetMRMLScene(scene)
    grid, lungs, lesions = study.grid, study.image("lungs").voxels > 0, study.image("lesions").voxels
    nodes = load_study(scene, study.folder, add_ct(scene, ct or grid.with_voxels(_flat(lungs, _LUNG_HU))))
    masked = np.where(lungs, ct.voxels, _AIR_HU) if ct else _flat(lungs, _LUNG_HU)
    rows = [
        _Row(
            "Lungs, relevance",
            add_ct(scene, grid.with_voxels(masked), "Lungs"),
            show_heatmap(nodes, VIEW),
        ),
        _Row(
            "Lesions, relevance",
            add_ct(scene, grid.with_voxels(_flat(lesions > 0, _LESION_HU)), "Lesions"),
            show_heatmap(nodes, replace(VIEW, of_lesions=True)),
            outline=nodes.lungs,
        ),
    ]
    if ct:
        rows.insert(0, _Row("CT", nodes.ct, named=True))
    view = SliceView(scene, "Plate")
    corners = _box_ras(grid, lungs)
    size = np.ptp(corners, axis=0) + 2 * MARGIN_MM
    sheet = _Sheet(rows, len(chosen), (PIXELS, round(PIXELS * size[1] / size[0])))
    for column, index in enumerate(chosen):
        height = float(grid.slice_center(index)[2])
        center = corners.mean(0)
        view.look("Axial", (float(center[0]), float(center[1]), height), (size[0], size[1]), PIXELS / size[0])
        for number, row in enumerate(rows):
            show_layers(
                [view.logic], row.background, row.relevance, OPACITY, row.outline, OUTLINE_OPACITY, label_outline=True
            )
            picture = Image.fromarray(view.picture())
            if row.named:
                _point_out(picture, findings(grid, lesions, index), view)
            sheet.put(picture, view.edges(), number, column)
        sheet.name_column(column, f"slice {index}  ·  S {height:.1f} mm")
    return sheet.finished(study.analysis, PIXELS / size[0])


def _point_out(picture: Image.Image, found: list[Finding], view: SliceView) -> None:
    """An arrow from the side of the picture's middle to each lesion, its name at the tail."""
    draw = ImageDraw.Draw(picture)
    to_pixel = np.linalg.inv(view.pixel_to_ras())
    middle = np.array(picture.size) / 2
    taken: list[_Box] = []
    for finding in found:
        at = (to_pixel @ [*finding.center_ras, 1])[:2]
        ahead = middle - at
        ahead = ahead / max(float(np.linalg.norm(ahead)), 1e-6)
        radius = finding.radius_mm * abs(to_pixel[0, :3]).max()
        tip, tail = at + (radius + 3) * ahead, at + (radius + ARROW) * ahead
        side = np.array([-ahead[1], ahead[0]])
        draw.line([*tip, *tail], _POINTER, 2)
        for wing in (side, -side):
            draw.line([*tip, *(tip + 9 * ahead + 5 * wing)], _POINTER, 2)
        anchor = ("l" if ahead[0] > 0 else "r") + "m"
        x, y = tail + 4 * ahead
        while _on_any(box := draw.textbbox((x, y), finding.name, font(17), anchor), taken):
            y += 4
        taken.append(box)
        draw.text((x, y), finding.name, _POINTER, font(17), anchor, stroke_width=2, stroke_fill=(0, 0, 0))


def _on_any(box: _Box, others: list[_Box]) -> bool:
    """Whether a text would lie on another."""
    return any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in others)


def _flat(mask: np.ndarray, hu: int) -> np.ndarray:
    """A mask as a picture in the lung window."""
    return np.where(mask, np.int16(hu), np.int16(_AIR_HU))


def _box_ras(grid: Volume, mask: np.ndarray) -> np.ndarray:
    """Lowest and highest position of a mask, or of the grid where it is empty, RAS mm, (2, 3)."""
    voxels = np.argwhere(mask if mask.any() else np.ones_like(mask))
    ends = np.stack([voxels.min(0), voxels.max(0)])
    corners = np.array([[ends[a, 2], ends[b, 1], ends[c, 0], 1] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    ras = (np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine @ corners.T)[:3]
    return np.stack([ras.min(1), ras.max(1)])


class _Sheet:
    """Pictures of one size in rows and columns, with titles and a legend."""

    def __init__(self, rows: list[_Row], columns: int, size: tuple[int, int]) -> None:
        self._rows, self._size = rows, size
        width, height = size
        columns = max(columns, LEAST_COLUMNS)
        self._image = Image.new(
            "RGB",
            (
                2 * _EDGE + _LEFT + columns * (width + _GAP) - _GAP,
                _TOP + len(rows) * (height + _GAP) - _GAP + _BOTTOM,
            ),
            BACKGROUND,
        )
        self._pen = ImageDraw.Draw(self._image)
        for number, row in enumerate(rows):
            draw_upwards(self._image, row.title, _EDGE - 10, self._place(number, 0)[1] + height / 2)

    def _place(self, row: int, column: int) -> tuple[int, int]:
        """Left and top of a picture."""
        return _EDGE + _LEFT + column * (self._size[0] + _GAP), _TOP + row * (self._size[1] + _GAP)

    def put(self, picture: Image.Image, edges: tuple[str, str, str, str], row: int, column: int) -> None:
        left, top = self._place(row, column)
        self._image.paste(picture, (left, top))
        draw_edges(self._pen, left, top, np.asarray(picture), edges)

    def name_column(self, column: int, title: str) -> None:
        middle = self._place(0, column)[0] + self._size[0] / 2
        self._pen.text((middle, _TOP - 12), title, TEXT, font(20), anchor="ms")

    def finished(self, analysis: dict[str, Any], pixels_per_mm: float) -> Image.Image:
        """With scale, heading and legend."""
        draw_scale(self._pen, *self._place(0, 0)[:1], _TOP + self._size[1], pixels_per_mm)
        self._pen.text((_EDGE, 16), finding_line(analysis), TEXT, font(32))
        right = self._image.width - _EDGE
        name = shortened(analysis["input"]["name"], font(20), right - _EDGE)
        self._pen.text((_EDGE, 58), name, FAINT_TEXT, font(20))
        self._pen.text((right, 26), "For research, not for diagnosis", TEXT, font(22), anchor="ra")
        self._draw_legend(self._image.height - _BOTTOM + 22, analysis)
        return self._image

    def _draw_legend(self, top: int, analysis: dict[str, Any]) -> None:
        left = _EDGE + _LEFT
        bar = color_bar(260, 20)
        self._image.paste(Image.fromarray(bar), (left, top))
        ends = [
            f"0 to {row.relevance.GetDisplayNode().GetWindowLevelMax():.2g} ({row.title.split(',')[0].lower()})"
            for row in self._rows
            if row.relevance
        ]
        text = f"Relevance for {explained_score(analysis)} per voxel: {',  '.join(ends)}"
        self._pen.text((left + 272, top + 10), text, TEXT, font(18), anchor="lm")
        lines = (
            f"Positive part, smoothed by a Gaussian (sigma {VIEW.smoothing_mm:g} mm). For either input the colours "
            f"end at the {VIEW.end_percentile:g}th percentile of the whole study; below the "
            f"{VIEW.hidden_percentile:g}th none is drawn.",
            f"The slices that carry the most relevance, at least {APART_MM:g} mm apart."
            + (_CT_LEGEND if any(row.named for row in self._rows) else ""),
        )
        for number, line in enumerate(lines):
            self._pen.text((left, top + 40 + 26 * number), line, FAINT_TEXT, font(17))
