"""Slice views at pixel level: position, orientation, colours and layers, on Slicer's own slice logic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from CovidCTDiagnosisLib.ct.volume import Volume
from CovidCTDiagnosisLib.scene.colors import LESIONS, LUNGS
from CovidCTDiagnosisLib.scene.heatmap import HeatmapView, show_heatmap
from CovidCTDiagnosisLib.scene.layers import jump_to, show_layers
from CovidCTDiagnosisLib.scene.nodes import StudyNodes, add_ct, load_study
from CovidCTDiagnosisLib.scene.slice_view import SliceView

# As in conftest.py, RAS mm.
MIDDLE, OPACITY, CONSOLIDATION = (12.0, -34.0, -210.0), (45.0, -44.0, -200.0), (-20.0, -24.0, -222.0)
PIXELS_PER_MM = 2.0
NORMALS = {"Sagittal": 0, "Coronal": 1, "Axial": 2}
ORIENTATIONS = list(NORMALS)


@pytest.fixture
def nodes(scene: Any, phantom: Any) -> StudyNodes:
    return load_study(scene, phantom.folder, add_ct(scene, phantom.ct))


@pytest.fixture
def view(scene: Any) -> SliceView:
    return SliceView(scene, "Test")


def look(view: SliceView, orientation: str, center_ras: tuple[float, float, float]) -> None:
    view.look(orientation, center_ras, (120.0, 100.0), PIXELS_PER_MM)


def color_at(view: SliceView, ras: tuple[float, float, float]) -> np.ndarray:
    column, row = (np.linalg.inv(view.pixel_to_ras()) @ [*ras, 1])[:2].round().astype(int)
    return view.picture()[row, column].astype(float)


def blend(over: tuple[float, ...], under: np.ndarray, opacity: float) -> np.ndarray:
    return 255 * opacity * np.array(over) + (1 - opacity) * under


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_spot_appears_where_it_is_in_the_patient(scene: Any, view: SliceView, phantom: Any, orientation: str) -> None:
    # A smooth spot about a voxel centre off the middle of the grid.
    k, j, i = np.indices(phantom.ct.shape)
    kji, mm = np.array([20, 30, 60]), np.array(phantom.ct.spacing)[::-1]
    squared = sum(((n - c) * s) ** 2 for n, c, s in zip((k, j, i), kji, mm, strict=True))
    spot: Volume = phantom.ct.with_voxels((1000 * np.exp(-squared / 200) - 1000).astype(np.float32))
    spot_ras = (spot.affine @ [*kji[::-1], 1])[:3] * [-1, -1, 1]

    show_layers([view.logic], add_ct(scene, spot))
    # Beside the spot, but in its plane.
    beside = spot_ras + np.where(np.arange(3) == NORMALS[orientation], 0.0, 3.0)
    look(view, orientation, tuple(beside))
    light = view.picture().mean(axis=2)
    assert light.shape == (200, 240)
    light[light < 0.5 * light.max()] = 0
    rows, columns = np.indices(light.shape)
    center = [(columns * light).sum() / light.sum(), (rows * light).sum() / light.sum()]
    np.testing.assert_allclose((view.pixel_to_ras() @ [*center, 0, 1])[:3], spot_ras, atol=0.25)


def test_nothing_is_black(view: SliceView, nodes: StudyNodes) -> None:
    view.look("Axial", MIDDLE, (400.0, 400.0), PIXELS_PER_MM)
    show_layers([view.logic], nodes.ct, nodes.relevance_ct, label=nodes.lungs)
    picture = view.picture()
    assert picture[:100].max() == picture[:, -100:].max() == 0
    assert picture[400, 400].min() > 0


@pytest.mark.parametrize(
    ("orientation", "edges", "right", "down"),
    [
        ("Axial", ("R", "L", "A", "P"), (-1, 0, 0), (0, -1, 0)),
        ("Coronal", ("R", "L", "S", "I"), (-1, 0, 0), (0, 0, -1)),
        ("Sagittal", ("A", "P", "S", "I"), (0, -1, 0), (0, 0, -1)),
    ],
)
def test_orientation_is_radiological(
    view: SliceView, orientation: str, edges: tuple[str, ...], right: tuple[int, ...], down: tuple[int, ...]
) -> None:
    look(view, orientation, MIDDLE)
    assert view.edges() == edges
    matrix = view.pixel_to_ras()
    np.testing.assert_allclose(matrix[:3, 0] * PIXELS_PER_MM, right, atol=1e-12)
    np.testing.assert_allclose(matrix[:3, 1] * PIXELS_PER_MM, down, atol=1e-12)


@pytest.mark.parametrize("orientation", ["Axial", "Coronal"])
def test_the_right_lung_is_at_the_left_of_the_picture(view: SliceView, nodes: StudyNodes, orientation: str) -> None:
    show_layers([view.logic], nodes.ct, label=nodes.lungs)
    look(view, orientation, MIDDLE)
    picture = view.picture()
    for value, half in ((1, picture[:, :120]), (2, picture[:, 120:])):
        shown = (np.abs(picture - 255 * np.array(LUNGS[value].rgb)) < 2).all(axis=2).sum()
        assert shown > 5000
        assert (np.abs(half - 255 * np.array(LUNGS[value].rgb)) < 2).all(axis=2).sum() > 0.98 * shown


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(("value", "center"), [(1, OPACITY), (2, CONSOLIDATION)])
def test_lesions_have_their_colors(
    view: SliceView, nodes: StudyNodes, orientation: str, value: int, center: tuple[float, float, float]
) -> None:
    look(view, orientation, center)
    show_layers([view.logic], nodes.ct)
    ct = color_at(view, center)
    expected = blend(LESIONS[value].rgb, ct, 0.4)
    show_layers([view.logic], nodes.ct, nodes.lesions, 0.4)
    np.testing.assert_allclose(color_at(view, center), expected, atol=2)
    show_layers([view.logic], nodes.ct, label=nodes.lesions, label_opacity=0.4)
    np.testing.assert_allclose(color_at(view, center), expected, atol=2)


def test_filled_labels_keep_sharp_edges(view: SliceView, nodes: StudyNodes) -> None:
    """Labels are never interpolated: no third colour between two classes, on the foreground layer either."""
    look(view, "Axial", MIDDLE)
    colors = {(0, 0, 0), *(tuple(int(255 * value + 0.5) for value in label.rgb) for label in LUNGS.values())}
    nodes.ct.GetDisplayNode().SetWindowLevel(1, 1e6)  # black
    show_layers([view.logic], nodes.ct, nodes.lungs, 1.0)
    assert {tuple(map(int, rgb)) for rgb in np.unique(view.picture().reshape(-1, 3), axis=0)} == colors


def test_outline_leaves_the_inside_free(view: SliceView, nodes: StudyNodes) -> None:
    look(view, "Axial", MIDDLE)
    show_layers([view.logic], nodes.ct)
    plain = view.picture()
    show_layers([view.logic], nodes.ct, label=nodes.lungs, label_outline=True)
    outlined = (view.picture() != plain).any(axis=2).sum()
    show_layers([view.logic], nodes.ct, label=nodes.lungs)
    filled = (view.picture() != plain).any(axis=2).sum()
    assert 200 < outlined < 0.15 * filled


def test_relevance_is_shown_where_it_is_positive(view: SliceView, nodes: StudyNodes) -> None:
    look(view, "Axial", OPACITY)
    show_layers([view.logic], nodes.ct)
    plain = view.picture()
    heatmap = show_heatmap(nodes, HeatmapView(smoothing_mm=0, hidden_percentile=0))
    show_layers([view.logic], nodes.ct, heatmap, 1.0)
    picture = view.picture().astype(int)
    red, green, blue = color_at(view, OPACITY)
    assert red == 255
    assert green > 180  # yellow: the top of the scale
    assert blue < green
    changed = (picture != plain).any(axis=2)
    rows, columns = np.nonzero(changed)
    center = (view.pixel_to_ras() @ [columns.mean(), rows.mean(), 0, 1])[:3]
    # Outside the ball negative relevance and zero are transparent.
    np.testing.assert_allclose(center, OPACITY, atol=4)
    assert 0.02 < changed.mean() < 0.15


def test_all_views_show_the_same_and_layers_can_be_emptied(scene: Any, nodes: StudyNodes) -> None:
    views = [SliceView(scene, name) for name in ("Red", "Green")]
    logics = [view.logic for view in views]
    show_layers(logics, nodes.ct, nodes.relevance_ct, label=nodes.lesions)
    for logic in logics:
        composite = logic.GetSliceCompositeNode()
        assert composite.GetBackgroundVolumeID() == nodes.ct.GetID()
        assert composite.GetForegroundVolumeID() == nodes.relevance_ct.GetID()
        assert composite.GetLabelVolumeID() == nodes.lesions.GetID()
    show_layers(logics, nodes.ct)
    for logic in logics:
        assert logic.GetSliceCompositeNode().GetForegroundVolumeID() is None
        assert logic.GetSliceCompositeNode().GetLabelVolumeID() is None


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_view_goes_to_a_slice_and_moves_its_middle_only_when_it_must(view: SliceView, orientation: str) -> None:
    across = NORMALS[orientation]
    in_plane = np.arange(3) != across
    look(view, orientation, MIDDLE)
    jump_to([view.logic], OPACITY)
    middle = view.logic.GetSliceNode().GetSliceToRAS()
    ras = np.array([middle.GetElement(axis, 3) for axis in range(3)])
    assert ras[across] == pytest.approx(OPACITY[across]) and ras[in_plane] == pytest.approx(np.array(MIDDLE)[in_plane])
    far = tuple(np.add(MIDDLE, 80.0))  # the view is 120 mm wide
    jump_to([view.logic], far)
    assert [middle.GetElement(axis, 3) for axis in range(3)] == pytest.approx(far)
