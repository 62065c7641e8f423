"""Relevance as pictures and slice views show it: a smoothed copy for display, coloured, windowed, with its legend."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
import slicer
from scipy.ndimage import gaussian_filter

from CovidCTDiagnosisLib.scene.colors import relevance_colors
from CovidCTDiagnosisLib.scene.nodes import (
    ROLE,
    StudyNodes,
    display_manually,
    find_node,
    ijk_to_ras,
    image_data,
    node_of,
    put_beside,
)

_STATE = "CovidCTDiagnosis.Heatmap"
_HIDDEN = -2.0
"""In units of the window's end: what is hidden in a signed map, below all that is shown."""
_TRUNCATE = 3.0
"""Standard deviations at which the Gaussian ends."""


@dataclass(frozen=True)
class HeatmapView:
    """How relevance is shown.

    Attributes:
        of_lesions: the relevance of the lesion mask in place of that of the CT.
        signed: show what speaks against the explained score too.
        smoothing_mm: standard deviation of the Gaussian, mm; 0 for none. The signed relevance is smoothed, so that
            neighbouring voxels for and against it cancel.
        hidden_percentile: relevance below this percentile is transparent.
        end_percentile: the colours end at this percentile.

    Both percentiles are those of the smoothed relevance of the whole scan, not of a slice: of its positive voxels, and
    for what is hidden in a signed map of the sizes of all that are not 0.
    """

    of_lesions: bool = False
    signed: bool = False
    smoothing_mm: float = 3.0
    hidden_percentile: float = 85.0
    end_percentile: float = 99.5


def show_heatmap(nodes: StudyNodes, view: HeatmapView) -> slicer.vtkMRMLScalarVolumeNode:
    """The heatmap of a CT's input, made or brought up to date; the study's own relevance volumes stay as they are.

    Positive relevance is shown from 0 to the end of the window, signed relevance from minus to plus the end.
    """
    source = nodes.relevance_lesions if view.of_lesions else nodes.relevance_ct
    node = node_of(nodes.ct, _role(view.of_lesions), "vtkMRMLScalarVolumeNode")
    node.SetAndObserveTransformNodeID(source.GetTransformNodeID())
    place = ijk_to_ras(source).ravel().tolist()
    seen = {"source": source.GetID(), "time": source.GetImageData().GetMTime(), "place": place, "view": asdict(view)}
    state = json.dumps(seen)
    if node.GetAttribute(_STATE) != state or node.GetImageData() is None:
        _fill(node, source, view)
        node.SetAttribute(_STATE, state)
    put_beside(node, source)
    return node


def refresh_heatmaps(nodes: StudyNodes, explained: str) -> None:
    """Bring heatmaps and legends of an earlier study of the same CT up to date, shown as they are.

    Args:
        nodes: of the study.
        explained: see ``show_only_legend``.
    """
    for heatmap in heatmaps_of(nodes.ct):
        show_heatmap(nodes, _view_of(heatmap))
        legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(heatmap)
        if legend is not None:
            legend.SetTitleText(_title(explained))


def _view_of(heatmap: slicer.vtkMRMLScalarVolumeNode) -> HeatmapView:
    """How it is shown; the usual way where an older version did not say."""
    of_lesions = heatmap.GetAttribute(ROLE) == _role(of_lesions=True)
    try:
        return HeatmapView(**json.loads(heatmap.GetAttribute(_STATE))["view"])
    except (TypeError, ValueError):
        return HeatmapView(of_lesions)


def heatmaps_of(ct_node: slicer.vtkMRMLScalarVolumeNode) -> list[slicer.vtkMRMLScalarVolumeNode]:
    """Those that were made for a CT."""
    found = (find_node(ct_node, _role(of_lesions), "vtkMRMLScalarVolumeNode") for of_lesions in (False, True))
    return [heatmap for heatmap in found if heatmap is not None]


def _role(of_lesions: bool) -> str:
    return f"heatmap of {'lesions' if of_lesions else 'ct'}"


def has_heat(heatmap: slicer.vtkMRMLScalarVolumeNode) -> bool:
    """Whether anything speaks for the explained score."""
    return bool((slicer.util.arrayFromVolume(heatmap) > 0).any())


def display_relevance(node: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Show a study's own relevance volume as a heatmap of what is positive; its voxels stay as they are."""
    view = HeatmapView(smoothing_mm=0)
    end, shown_from = _window(slicer.util.arrayFromVolume(node), view)
    _display(node, end, shown_from, signed=False)


def show_only_legend(
    scene: slicer.vtkMRMLScene, heatmap: slicer.vtkMRMLScalarVolumeNode | None, explained: str = ""
) -> None:
    """Show the scale of a heatmap's colours in the views, or of none; those of other heatmaps are hidden.

    Args:
        scene: that the heatmap lies in.
        heatmap: or None.
        explained: what it speaks for, see ``report.explained_call``.
    """
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLColorLegendDisplayNode")):
        legend = scene.GetNthNodeByClass(index, "vtkMRMLColorLegendDisplayNode")
        shown = legend.GetDisplayableNode()
        if shown is not None and shown.GetAttribute(_STATE):
            legend.SetVisibility(False)
    if heatmap is not None:
        legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(heatmap)
        legend.SetTitleText(_title(explained))
        legend.SetLabelFormat("%.1e")
        legend.SetVisibility(True)


def _title(explained: str) -> str:
    return f"Relevance {explained}".strip()


def _fill(node: slicer.vtkMRMLScalarVolumeNode, source: slicer.vtkMRMLScalarVolumeNode, view: HeatmapView) -> None:
    voxels = _smoothed(slicer.util.arrayFromVolume(source), source.GetSpacing(), view.smoothing_mm)
    end, shown_from = _window(voxels, view)
    if view.signed:
        # A threshold of the display has only one range: weak voxels leave it, so that the CT stays in sight.
        voxels = np.where(np.abs(voxels) < max(shown_from, 1e-30), np.float32(_HIDDEN * end), np.maximum(voxels, -end))
        shown_from = -1.001 * end
    node.SetName(f"{source.GetName()}, as shown")
    display_manually(node)
    node.CopyOrientation(source)
    node.SetAndObserveImageData(image_data(voxels))
    _display(node, end, shown_from, view.signed)


def _window(voxels: np.ndarray, view: HeatmapView) -> tuple[float, float]:
    """Where the colours end, and from where on they are drawn."""
    positive = voxels[voxels > 0]
    drawn = np.abs(voxels[voxels != 0]) if view.signed else positive
    end = _percentile(positive if positive.size else drawn, view.end_percentile)
    return end, min(_percentile(drawn, view.hidden_percentile), end)


def _percentile(values: np.ndarray, percentile: float) -> float:
    """1 where there are no values."""
    return float(np.percentile(values, percentile)) if values.size else 1.0


def _display(node: slicer.vtkMRMLScalarVolumeNode, end: float, shown_from: float, signed: bool) -> None:
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID(relevance_colors(node.GetScene(), signed).GetID())
    display.SetWindowLevelMinMax(-end if signed else 0.0, end)
    display.SetThreshold(shown_from, float(np.finfo(np.float32).max))
    display.SetApplyThreshold(True)
    # Between what is hidden and what is shown lie other values of a signed map: blended, they would be drawn or hidden.
    display.SetInterpolate(not signed)


def _smoothed(voxels: np.ndarray, spacing: tuple[float, float, float], sigma_mm: float) -> np.ndarray:
    """A Gaussian over the box of what is not 0; all else stays 0, which saves most of the time.

    Args:
        voxels: float32 (K, J, I).
        spacing: mm along i, j, k.
        sigma_mm: standard deviation; 0 smooths nothing.

    Returns:
        A new array.
    """
    result = np.array(voxels)
    if sigma_mm <= 0 or not voxels.any():
        return result
    sigma = [sigma_mm / step for step in reversed(spacing)]
    box = []
    for axis, width in enumerate(sigma):
        used = np.flatnonzero(voxels.any(axis=tuple({0, 1, 2} - {axis})))
        margin = int(np.ceil(_TRUNCATE * width)) + 1
        box.append(slice(max(used[0] - margin, 0), used[-1] + 1 + margin))
    region = tuple(box)
    result[region] = gaussian_filter(voxels[region], sigma, mode="constant", truncate=_TRUNCATE)
    return result
