"""What Slicer's displayable managers draw over and beside the images, in pixels: legend of colours, surfaces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import vtk
from CovidCTDiagnosisLib.scene.colors import LESIONS, POSITIVE, SIGNED
from CovidCTDiagnosisLib.scene.heatmap import HeatmapView, show_heatmap, show_only_legend
from CovidCTDiagnosisLib.scene.layers import show_layers
from CovidCTDiagnosisLib.scene.nodes import StudyNodes, add_ct
from CovidCTDiagnosisLib.scene.segmentation import show_only_surfaces
from CovidCTDiagnosisLib.scene.slice_view import SliceView
from CovidCTDiagnosisLib.scene.study_nodes import put_study
from slicer_views import DrawnSliceView, DrawnThreeDView

SIDE = 300


class Drawn:
    """A slice view that looks into the air beside the patient: whatever is not black is drawn over the image."""

    def __init__(self, scene: Any, application_logic: Any) -> None:
        view = SliceView(scene, "Red")
        view.look("Axial", (900.0, 900.0, 0.0), (SIDE, SIDE), 1.0)
        self.logic = view.logic
        logics = vtk.vtkCollection()
        logics.AddItem(view.logic)
        application_logic.SetSliceLogics(logics)
        self._view = DrawnSliceView(application_logic, view.logic)

    def picture(self) -> np.ndarray:
        return self._view.picture().astype(int)


@pytest.fixture
def drawn(scene: Any, application_logic: Any) -> Drawn:
    return Drawn(scene, application_logic)


@pytest.fixture
def nodes(drawn: Drawn, scene: Any, phantom: Any) -> StudyNodes:
    return put_study(phantom.folder, add_ct(scene, phantom.ct))


def bar(picture: np.ndarray) -> np.ndarray:
    """The colours of the legend's bar, from its top to its bottom: (rows, RGB)."""
    column = picture[:, -15]
    runs = np.split(column, np.flatnonzero(np.diff(column.any(-1))) + 1)
    return max((run for run in runs if run.any()), key=len)


@pytest.mark.parametrize("signed", [False, True])
def test_the_legend_runs_through_the_colours_beside_its_numbers(drawn: Drawn, nodes: StudyNodes, signed: bool) -> None:
    heatmap = show_heatmap(nodes, HeatmapView(signed=signed))
    show_layers([drawn.logic], nodes.ct, heatmap, 0.5)
    assert not drawn.picture().any()
    show_only_legend(nodes.ct.GetScene(), heatmap)
    picture = drawn.picture()
    colors = bar(picture)
    assert 0.3 * SIDE < len(colors) < 0.8 * SIDE
    scale = SIGNED if signed else POSITIVE
    low = min(scale)
    for place, color in scale.items():
        row = round((1 - (place - low) / (1 - low)) * (len(colors) - 1))
        assert np.abs(colors[row] - 255 * np.array(color)).max() < 20
    text = picture[:, : -2 * 15]  # title and numbers at the bar's left
    assert (text.min(-1) > 150).sum() > 200 and not picture[:, : SIDE // 2].any()


def test_the_legend_shown_is_that_of_the_heatmap_in_the_views(drawn: Drawn, nodes: StudyNodes) -> None:
    scene = nodes.ct.GetScene()
    maps = [show_heatmap(nodes, HeatmapView(signed=signed, of_lesions=signed)) for signed in (False, True)]
    for heatmap, scale in zip(maps, (POSITIVE, SIGNED), strict=True):
        show_layers([drawn.logic], nodes.ct, heatmap, 0.5)
        show_only_legend(scene, heatmap)
        assert np.abs(bar(drawn.picture())[-1] - 255 * np.array(scale[min(scale)])).max() < 20
    show_only_legend(scene, None)
    assert not drawn.picture().any()


def test_surfaces_show_lesions_through_lungs_like_glass(scene: Any, application_logic: Any, nodes: StudyNodes) -> None:
    view = DrawnThreeDView(application_logic, scene, SIDE)
    show_only_surfaces(scene, None)
    empty = view.picture().astype(int)
    show_only_surfaces(scene, nodes)
    picture = view.picture().astype(int)
    drawn = np.abs(picture - empty).max(-1) > 10
    assert drawn[:, : SIDE // 2].any() and drawn[:, SIDE // 2 :].any() and not drawn[:4].any()
    # The opacity lies in the right lung, at the left from the front; glass before it takes some of its colour.
    opacity, consolidation = (_like(picture, LESIONS[label].rgb) for label in (1, 2))
    assert opacity[:, : SIDE // 2].sum() > 50 and not opacity[:, SIDE // 2 :].any()
    assert consolidation[:, SIDE // 2 :].sum() > 50 and not consolidation[:, : SIDE // 2].any()
    show_only_surfaces(scene, None)
    assert np.array_equal(view.picture(), empty)


def _like(picture: np.ndarray, rgb: tuple[float, float, float]) -> np.ndarray:
    """Where the hue is nearly that of a colour."""
    difference = (_hue(picture) - _hue(np.array(rgb)) + 0.5) % 1 - 0.5
    return np.asarray((np.abs(difference) < 0.06) & (np.ptp(picture, axis=-1) > 60))


def _hue(rgb: np.ndarray) -> np.ndarray:
    """In turns."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    return np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * np.pi)
