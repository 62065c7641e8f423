"""How relevance is shown: smoothed in mm, windowed by percentiles of the whole scan, transparent where it is weak."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import slicer
from CovidCTDiagnosisLib.scene.heatmap import HeatmapView, display_relevance, has_heat, show_heatmap, show_only_legend
from CovidCTDiagnosisLib.scene.layers import show_layers
from CovidCTDiagnosisLib.scene.nodes import StudyNodes, add_ct, load_study
from CovidCTDiagnosisLib.scene.slice_view import SliceView

PLAIN = HeatmapView(smoothing_mm=0)


def array(node: Any) -> np.ndarray:
    return slicer.util.arrayFromVolume(node)


@pytest.fixture
def nodes(scene: Any, phantom: Any) -> StudyNodes:
    return load_study(scene, phantom.folder, add_ct(scene, phantom.ct))


def window(node: Any) -> tuple[float, float]:
    display = node.GetDisplayNode()
    return display.GetWindowLevelMin(), display.GetWindowLevelMax()


def test_the_window_ends_at_a_percentile_of_what_is_positive(nodes: StudyNodes, phantom: Any) -> None:
    voxels = phantom.images["relevance_ct"]
    positive = voxels[voxels > 0]
    node = show_heatmap(nodes, replace(PLAIN, end_percentile=80, hidden_percentile=30))
    assert window(node) == pytest.approx((0, np.percentile(positive, 80)), rel=1e-5)
    assert node.GetDisplayNode().GetLowerThreshold() == pytest.approx(np.percentile(positive, 30), rel=1e-5)
    assert node.GetDisplayNode().GetApplyThreshold()
    assert array(nodes.relevance_ct).sum() == pytest.approx(voxels.sum(), rel=1e-5)
    display_relevance(nodes.relevance_ct)
    assert window(nodes.relevance_ct) == pytest.approx((0, np.percentile(positive, 99.5)), rel=1e-5)


def test_a_signed_map_is_symmetric_and_hides_what_is_weak_of_either_sign(nodes: StudyNodes, phantom: Any) -> None:
    voxels = phantom.images["relevance_ct"].copy()
    voxels.ravel()[::2] *= -1
    slicer.util.updateVolumeFromArray(nodes.relevance_ct, voxels)
    node = show_heatmap(nodes, replace(PLAIN, signed=True, hidden_percentile=60))
    low, high = window(node)
    assert low == pytest.approx(-high)
    drawn = array(node) >= node.GetDisplayNode().GetLowerThreshold()
    limit = np.percentile(np.abs(voxels[voxels != 0]), 60)
    assert np.array_equal(drawn, np.abs(voxels) >= min(limit, high))
    assert (array(node)[drawn] < 0).any() and (array(node)[drawn] > 0).any()


def test_a_signed_map_that_only_speaks_against_has_its_own_scale(nodes: StudyNodes, phantom: Any) -> None:
    slicer.util.updateVolumeFromArray(nodes.relevance_ct, -np.abs(phantom.images["relevance_ct"]))
    sizes = np.abs(phantom.images["relevance_ct"])
    low, high = window(show_heatmap(nodes, replace(PLAIN, signed=True)))
    assert high == pytest.approx(np.percentile(sizes[sizes > 0], 99.5), rel=1e-5) and low == -high


def test_without_positive_relevance_nothing_is_drawn(scene: Any, phantom: Any) -> None:
    phantom.write(relevance_ct=np.zeros(phantom.ct.shape, np.float32))
    nodes = load_study(scene, phantom.folder, add_ct(scene, phantom.ct))
    for signed in (False, True):
        node = show_heatmap(nodes, HeatmapView(signed=signed))
        assert window(node)[1] == 1 and not has_heat(node)
        assert (array(node) < node.GetDisplayNode().GetLowerThreshold()).all()


@pytest.mark.parametrize("place", [(18, 40, 45), (0, 0, 0)])
def test_smoothing_is_in_mm_and_keeps_the_sum(scene: Any, phantom: Any, place: tuple[int, int, int]) -> None:
    impulse = np.zeros(phantom.ct.shape, np.float32)
    impulse[place] = 1
    phantom.write(relevance_ct=impulse)
    nodes = load_study(scene, phantom.folder, add_ct(scene, phantom.ct))
    smooth = array(show_heatmap(nodes, HeatmapView(smoothing_mm=6.0)))
    assert array(nodes.relevance_ct).max() == 1
    if any(index == 0 for index in place):  # what would leave the picture is lost
        assert 0.05 < smooth.sum() < 0.25
        return
    assert smooth.sum() == pytest.approx(1, rel=1e-4)
    for axis, spacing in enumerate(reversed(phantom.ct.spacing)):
        profile = smooth.sum(axis=tuple({0, 1, 2} - {axis}))
        positions = spacing * np.arange(len(profile))
        mean = (profile * positions).sum()
        assert np.sqrt((profile * (positions - mean) ** 2).sum()) == pytest.approx(6, rel=0.05)


def test_a_heatmap_is_made_once_and_again_only_when_something_changed(nodes: StudyNodes, scene: Any) -> None:
    first = show_heatmap(nodes, HeatmapView())
    image, count = first.GetImageData(), scene.GetNumberOfNodes()
    assert show_heatmap(nodes, HeatmapView()).GetImageData() is image
    assert show_heatmap(nodes, HeatmapView(smoothing_mm=1)) is first and first.GetImageData() is not image
    assert scene.GetNumberOfNodes() == count
    other = show_heatmap(nodes, HeatmapView(of_lesions=True))
    assert other is not first
    image = other.GetImageData()
    nodes.relevance_lesions.GetImageData().Modified()
    assert show_heatmap(nodes, HeatmapView(of_lesions=True)).GetImageData() is not image


def test_only_the_heatmap_that_is_shown_has_a_legend(nodes: StudyNodes, scene: Any) -> None:
    maps = [show_heatmap(nodes, HeatmapView(of_lesions=of_lesions)) for of_lesions in (False, True)]
    for shown in (0, 1, 0):
        show_only_legend(scene, maps[shown])
        legends = [slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node) for node in maps]
        visible = [legend is not None and bool(legend.GetVisibility()) for legend in legends]
        assert visible == [number == shown for number in (0, 1)]
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(maps[0])
    assert legend.GetPrimaryDisplayNode() is maps[0].GetDisplayNode()
    show_only_legend(scene, None)
    assert not legend.GetVisibility()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("orientation", ["Axial", "Coronal", "Sagittal"])
def test_colours_stand_where_relevance_is_and_the_ct_elsewhere(
    scene: Any, phantom: Any, signed: bool, orientation: str
) -> None:
    heat = np.zeros(phantom.ct.shape, np.float32)
    heat[15:21, 36:44, 40:50] = 1
    phantom.write(relevance_ct=heat)
    nodes = load_study(scene, phantom.folder, add_ct(scene, phantom.ct))
    node = show_heatmap(nodes, replace(PLAIN, signed=signed, hidden_percentile=0))
    view = SliceView(scene, "Test")
    middle = phantom.ct.affine @ [44.5, 39.5, 17.5, 1]
    view.look(orientation, tuple(middle[:3] * [-1, -1, 1]), (120.0, 120.0), 1.0)
    show_layers([view.logic], nodes.ct, node, 1.0)
    picture = view.picture().astype(int)
    coloured = picture.max(-1) - picture.min(-1) > 40
    assert coloured[60, 60] and not coloured[2, 2]
    if signed:  # hidden neighbours take nothing of what is shown
        in_plane = {"Axial": (0, 1), "Coronal": (0, 2), "Sagittal": (1, 2)}[orientation]
        area = np.prod([(10, 8, 6)[axis] * phantom.ct.spacing[axis] for axis in in_plane])
        assert coloured.sum() >= 0.95 * area
    show_layers([view.logic], nodes.ct)
    plain = view.picture().astype(int)
    assert np.array_equal(picture[~coloured], plain[~coloured])
