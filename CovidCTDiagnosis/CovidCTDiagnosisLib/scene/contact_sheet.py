"""A contact sheet: slices of a CT with its lungs, lesions and relevance, as one picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from PIL import Image, ImageDraw

from CovidCTDiagnosisLib.ct.volume import Volume
from CovidCTDiagnosisLib.folders import replaced_file
from CovidCTDiagnosisLib.scene.colors import LESIONS, LUNGS
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
    to_bytes,
)
from CovidCTDiagnosisLib.scene.heatmap import HeatmapView, has_heat, show_heatmap
from CovidCTDiagnosisLib.scene.layers import show_layers
from CovidCTDiagnosisLib.scene.nodes import (
    LUNG_LEVEL_HU,
    LUNG_WINDOW_HU,
    StudyNodes,
    add_ct,
    ijk_to_ras,
    load_study,
)
from CovidCTDiagnosisLib.scene.report import explained_score, finding_line
from CovidCTDiagnosisLib.scene.slice_view import SliceView
from CovidCTDiagnosisLib.study import read_study

AXIAL_SLICES = 4
MARGIN_MM = 20.0
"""Field of view around the lungs."""
VIEW = HeatmapView()
"""How relevance is smoothed, coloured and cut."""
WIDTH = 2700
"""Width of the sheet, pixels."""

_AXES = {"Sagittal": 0, "Coronal": 1, "Axial": 2}
_ROWS = ("CT", "Lungs and lesions", "Relevance")
_LESION_OPACITY = 0.55
_RELEVANCE_OPACITY = 0.65

_LINE = (90, 200, 255)
_EDGE, _GAP, _LEFT, _TOP, _BOTTOM = 36, 8, 44, 168, 176
_GAP_OF_NAME = 40


@dataclass(frozen=True)
class _Plane:
    """A slice to be shown: its orientation, its centre (RAS mm) and its field of view (mm)."""

    orientation: str
    center_ras: tuple[float, float, float]
    size_mm: tuple[float, float]

    @property
    def offset_mm(self) -> float:
        """Position along the slice's normal: R, A or S, mm."""
        return self.center_ras[_AXES[self.orientation]]

    @property
    def title(self) -> str:
        return f"{self.orientation}  {'RAS'[_AXES[self.orientation]]} {self.offset_mm:.1f} mm"


@dataclass(frozen=True)
class _Column:
    """One plane's pictures, one a row of the sheet, and the letters at their left, right, top and bottom."""

    plane: _Plane
    pictures: list[np.ndarray]
    edges: tuple[str, str, str, str]

    @property
    def pixels_per_mm(self) -> float:
        return self.pictures[0].shape[1] / self.plane.size_mm[0]


def contact_sheet(study_folder: Path, ct: Volume, output: Path) -> None:
    """Draw the contact sheet of a study with Slicer's slice logic, off screen, and write it as PNG.

    Rows: the CT in the lung window; outlines of the lungs and filled lesions over it; relevance of the CT over
    it, smoothed for display, where it is positive. Columns: axial slices from top to bottom, a coronal and a
    sagittal slice, chosen where lesions and relevance are. All lie along the patient's own axes and have one
    scale; the sheet is `WIDTH` pixels wide.

    Args:
        study_folder: an analysis of `ct`.
        ct: the CT, HU.
        output: the PNG file.

    Raises:
        InputError: the study cannot be read, or it does not belong to `ct`.
    """
    analysis = read_study(study_folder).analysis
    scene = slicer.vtkMRMLScene()
    colors = slicer.vtkMRMLColorLogic()  # owns the scene's default colours: has to live as long
    colors.SetMRMLScene(scene)
    nodes = load_study(scene, study_folder, add_ct(scene, ct))
    relevance = show_heatmap(nodes, VIEW)

    view = SliceView(scene, "ContactSheet")
    planes = _choose_planes(nodes, relevance)
    free_pixels = WIDTH - 2 * _EDGE - _LEFT - (len(planes) - 1) * _GAP
    pixels_per_mm = free_pixels / sum(plane.size_mm[0] for plane in planes)
    columns = [_column(view, nodes, relevance, plane, pixels_per_mm) for plane in planes]
    window_end = relevance.GetDisplayNode().GetWindowLevelMax() if has_heat(relevance) else None
    with replaced_file(output) as partial:
        _draw(columns, analysis, window_end).save(partial, format="PNG")


def _column(
    view: SliceView,
    nodes: StudyNodes,
    relevance: slicer.vtkMRMLScalarVolumeNode,
    plane: _Plane,
    pixels_per_mm: float,
) -> _Column:
    view.look(plane.orientation, plane.center_ras, plane.size_mm, pixels_per_mm)
    rows: list[dict[str, Any]] = [
        {},
        {
            "foreground": nodes.lesions,
            "foreground_opacity": _LESION_OPACITY,
            "label": nodes.lungs,
            "label_outline": True,
        },
        {"foreground": relevance, "foreground_opacity": _RELEVANCE_OPACITY},
    ]
    pictures = []
    for layers in rows:
        show_layers([view.logic], nodes.ct, **layers)
        pictures.append(view.picture())
    return _Column(plane, pictures, view.edges())


# Which slices


def _choose_planes(nodes: StudyNodes, relevance: slicer.vtkMRMLScalarVolumeNode) -> list[_Plane]:
    """Axial slices from top to bottom, one coronal, one sagittal: those with the most lesion and relevance.

    A slice counts by its share of all lesion voxels plus its share of all positive relevance; where there is
    neither, by its share of the lungs; where there are no lungs, all slices count the same.
    """
    matrix = ijk_to_ras(nodes.lungs)
    lungs = slicer.util.arrayFromVolume(nodes.lungs) > 0
    if not lungs.any():
        lungs = np.ones_like(lungs)
    lesions = slicer.util.arrayFromVolume(nodes.lesions) > 0
    heat = slicer.util.arrayFromVolume(relevance)

    picks, centers, sizes = [], [], []
    for axis in range(3):
        positions, lung_profile, lesion_profile, heat_profile = _profiles(matrix, axis, lungs, lesions, heat)
        low, high = positions[np.flatnonzero(lung_profile)[[0, -1]]]
        weights = _share(lesion_profile) + _share(heat_profile)
        if not weights.any():
            weights = lung_profile
        count = AXIAL_SLICES if axis == _AXES["Axial"] else 1
        picks.append(_spread_peaks(positions, weights, low, high, count))
        centers.append((low + high) / 2)
        sizes.append(high - low + 2 * MARGIN_MM)

    def plane(orientation: str, offset: float) -> _Plane:
        axis = _AXES[orientation]
        center = [*centers]
        center[axis] = offset
        width = sizes[1] if orientation == "Sagittal" else sizes[0]
        # One height for all, so that the rows line up.
        return _Plane(orientation, (center[0], center[1], center[2]), (width, max(sizes[1], sizes[2])))

    return [
        *(plane("Axial", offset) for offset in sorted(picks[2], reverse=True)),
        plane("Coronal", picks[1][0]),
        plane("Sagittal", picks[0][0]),
    ]


def _profiles(matrix: np.ndarray, axis: int, *images: np.ndarray) -> tuple[np.ndarray, ...]:
    """What images (K, J, I) hold at each position along a patient axis.

    Args:
        matrix: (i, j, k, 1) to RAS mm.
        axis: 0 R, 1 A, 2 S.
        images: masks or non-negative weights.

    Returns:
        Positions, mm, ascending, and for each image the sum of its voxels there. On a grid along the
        patient's axes the positions are those of its voxels.
    """
    along_i, along_j, along_k, start = matrix[axis]
    step = np.abs(matrix[axis, :3]).sum()
    size_k, size_j, size_i = images[0].shape
    bins = (
        (along_k / step * np.arange(size_k))[:, None, None]
        + (along_j / step * np.arange(size_j))[:, None]
        + along_i / step * np.arange(size_i)
    )
    bins = np.rint(bins).astype(np.int32)
    first = bins.min()
    bins -= first
    count = bins.max() + 1
    positions = start + step * (first + np.arange(count))
    profiles = []
    for image in images:
        chosen = image > 0
        profiles.append(np.bincount(bins[chosen], image[chosen], minlength=count))
    return positions, *profiles


def _share(profile: np.ndarray) -> np.ndarray:
    total = profile.sum()
    return profile / total if total > 0 else profile


def _spread_peaks(positions: np.ndarray, weights: np.ndarray, low: float, high: float, count: int) -> list[float]:
    """The `count` positions of largest weight that keep a distance from each other and from low and high.

    Among positions of equal weight the one farthest from the others is taken.
    """
    distance = (high - low) / (2 * (count + 2))
    inside = (positions >= low) & (positions <= high)
    positions, weights = positions[inside], weights[inside]
    taken = [low, high]
    for _ in range(count):
        away = np.abs(positions[:, None] - np.array(taken)).min(axis=1)
        taken.append(float(positions[np.lexsort((away, np.where(away >= distance, weights, -1.0)))[-1]]))
    return taken[2:]


# Drawing


def _draw(columns: list[_Column], analysis: dict[str, Any], window_end: float | None) -> Image.Image:
    """The sheet; `window_end` is where the colours of relevance end, None without positive relevance."""
    lefts = _EDGE + _LEFT + np.cumsum([0, *(column.pictures[0].shape[1] + _GAP for column in columns)])
    height = columns[0].pictures[0].shape[0]
    sheet = Image.new("RGB", (WIDTH, _TOP + len(_ROWS) * (height + _GAP) - _GAP + _BOTTOM), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for left, column in zip(lefts.tolist(), columns, strict=False):
        for row, picture in enumerate(column.pictures):
            sheet.paste(Image.fromarray(picture), (left, _TOP + row * (height + _GAP)))
            draw_edges(draw, left, _TOP + row * (height + _GAP), picture, column.edges)
        center = left + column.pictures[0].shape[1] / 2
        draw.text((center, _TOP - 14), column.plane.title, TEXT, font(22), anchor="ms")
    for row, title in enumerate(_ROWS):
        draw_upwards(sheet, title, _EDGE, _TOP + row * (height + _GAP) + height / 2)
    _draw_positions(draw, lefts.tolist(), columns)
    draw_scale(draw, int(lefts[0]), _TOP + height, columns[0].pixels_per_mm)
    _draw_heading(draw, analysis)
    _draw_legend(sheet, sheet.height - _BOTTOM + 34, analysis, window_end)
    return sheet


def _draw_positions(draw: ImageDraw.ImageDraw, lefts: list[int], columns: list[_Column]) -> None:
    """Tick marks at the sides of the coronal and sagittal CT where the axial slices lie."""
    offsets = [column.plane.offset_mm for column in columns if column.plane.orientation == "Axial"]
    for left, column in zip(lefts, columns, strict=False):
        if column.plane.orientation == "Axial":
            continue
        height, width = column.pictures[0].shape[:2]
        for offset in offsets:
            y = _TOP + height / 2 - (offset - column.plane.center_ras[2]) * column.pixels_per_mm
            draw.line((left, y, left + 22, y), _LINE, 2)
            draw.line((left + width - 22, y, left + width - 1, y), _LINE, 2)


def _draw_heading(draw: ImageDraw.ImageDraw, analysis: dict[str, Any]) -> None:
    draw.text((_EDGE, 30), finding_line(analysis), TEXT, font(38))
    draw.text((_EDGE, 84), _measured(analysis), FAINT_TEXT, font(24))
    room = WIDTH - 2 * _EDGE - draw.textlength(finding_line(analysis), font(38)) - _GAP_OF_NAME
    name = shortened(analysis["input"]["name"], font(24), room)
    draw.text((WIDTH - _EDGE, 38), name, FAINT_TEXT, font(24), anchor="ra")
    draw.text((WIDTH - _EDGE, 84), "For research, not for diagnosis", TEXT, font(24), anchor="ra")


def _measured(analysis: dict[str, Any]) -> str:
    """Volumes of lungs and lesions in one line."""
    lungs = analysis["measurements"]["lungs"]
    volume = {side: f"{lungs[side]['volume_ml']:,.0f} ml" for side in ("both", "right", "left")}
    text = f"Lungs {volume['both']} (right {volume['right']}, left {volume['left']})"
    text += f"  ·  lesions {_lesion_ml(analysis, 'any'):,.1f} ml"
    involvement = lungs["both"]["involvement_percent"]
    return text if involvement is None else f"{text}, {involvement:.1f} % of the lungs"


def _lesion_ml(analysis: dict[str, Any], name: str) -> float:
    """Volume of one class of lesions in both lungs, ml."""
    return sum(
        lesion["volume_ml"]
        for lesion in analysis["measurements"]["lesions"]
        if lesion["class"] == name and lesion["side"] == "both"
    )


def _draw_legend(sheet: Image.Image, top: int, analysis: dict[str, Any], window_end: float | None) -> None:
    draw = ImageDraw.Draw(sheet)
    x = float(_EDGE + _LEFT)
    for label in LUNGS.values():
        draw.rectangle((x, top, x + 22, top + 22), outline=to_bytes(label.rgb), width=3)
        x = _draw_entry(draw, x, top, label.name)
    for label in LESIONS.values():
        draw.rectangle((x, top, x + 22, top + 22), fill=to_bytes(label.rgb))
        x = _draw_entry(draw, x, top, f"{label.name} {_lesion_ml(analysis, label.name.lower()):,.1f} ml")

    x, top = float(_EDGE + _LEFT), top + 52
    bar = Image.fromarray(color_bar(320, 22))
    sheet.paste(bar, (round(x), top))
    if window_end is None:
        text = f"No positive relevance of the CT for {explained_score(analysis)}"
    else:
        text = (
            f"0 to {window_end:.2g}: relevance of the CT for {explained_score(analysis)}, per voxel, smoothed by a "
            f"Gaussian (sigma {VIEW.smoothing_mm:g} mm), positive part. The colours end at its "
            f"{VIEW.end_percentile:g}th percentile in the whole CT; below its {VIEW.hidden_percentile:g}th "
            "none is drawn."
        )
    draw.text((x + bar.width + 12, top + 11), text, TEXT, font(20), anchor="lm")
    note = (
        f"Lung window: width {LUNG_WINDOW_HU:g} HU, level {LUNG_LEVEL_HU:g} HU. "
        "R right, L left, A anterior, P posterior, S superior, I inferior. "
        "Marks beside coronal and sagittal slices: the axial slices. Rendered by 3D Slicer's slice logic."
    )
    draw.text((x, top + 50), note, FAINT_TEXT, font(18))


def _draw_entry(draw: ImageDraw.ImageDraw, x: float, top: int, text: str) -> float:
    """Text beside a square of the legend; where the next square begins."""
    draw.text((x + 32, top + 11), text, TEXT, font(20), anchor="lm")
    return x + 32 + font(20).getlength(text) + 36
