"""All nodes of a study: segmentation, table, texts, plot, gathered in one folder, replaced by the next study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import vtk
from CovidCTDiagnosisLib.ct.files import rows
from CovidCTDiagnosisLib.ct.orientation import straightened
from CovidCTDiagnosisLib.ct.volume import Volume
from CovidCTDiagnosisLib.errors import InputError
from CovidCTDiagnosisLib.scene import study_nodes
from CovidCTDiagnosisLib.scene.agreement import ABSENT, CHANGED, INCOMPLETE, PRESENT, agreement, voxels_state
from CovidCTDiagnosisLib.scene.colors import LESIONS, LUNGS
from CovidCTDiagnosisLib.scene.heatmap import HeatmapView, show_heatmap, show_only_legend
from CovidCTDiagnosisLib.scene.layers import LayersOfViews, hide_study, show_layers
from CovidCTDiagnosisLib.scene.nodes import (
    StudyNodes,
    add_ct,
    find_node,
    find_study_nodes,
    first_scan,
    ijk_to_ras,
    image_data,
    is_of_study,
    lesion_maps,
    on_same_grid,
)
from CovidCTDiagnosisLib.scene.places import peak_ras, slice_position_mm
from CovidCTDiagnosisLib.scene.report import (
    COLUMNS,
    analysis_node,
    finding_line,
    kept_analysis,
    measurement_rows,
    methods_paragraph,
)
from CovidCTDiagnosisLib.scene.segmentation import _CODES, CONTEXT, SEGMENTATION, show_only_surfaces
from CovidCTDiagnosisLib.scene.slice_plot import slice_values
from CovidCTDiagnosisLib.scene.slice_view import SliceView
from CovidCTDiagnosisLib.scene.study_nodes import follow_ct, put_study
from CovidCTDiagnosisLib.study import read_study
from CovidCTDiagnosisLib.study.study import input_grid

RIGHT_LUNG, OPACITY = (42.0, -34.0, -210.0), (45.0, -44.0, -200.0)
"""Of the phantom, RAS mm."""


def count(scene: Any) -> int:
    return int(scene.GetNumberOfNodes())


def test_a_study_is_put_in_once_and_replaced_by_the_next(scene: Any, phantom: Any) -> None:
    ct = add_ct(scene, phantom.ct)
    nodes = put_study(phantom.folder, ct)
    after = count(scene)
    lesions = phantom.images["lesions"]
    phantom.write(lesions=np.where(lesions == 2, 3, lesions).astype(np.uint8))
    again = put_study(phantom.folder, ct)
    assert count(scene) == after and again == nodes == find_study_nodes(ct)
    segmentation = scene.GetFirstNodeByClass("vtkMRMLSegmentationNode").GetSegmentation()
    names = [segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())]
    assert names == ["Right lung", "Left lung", "Ground-glass opacity", "Crazy paving"]


def test_segments_lie_where_the_labels_do_with_colour_and_terminology(scene: Any, phantom: Any) -> None:
    ct = add_ct(scene, phantom.ct)
    nodes = put_study(phantom.folder, ct)
    node = scene.GetFirstNodeByClass("vtkMRMLSegmentationNode")
    segment_id = node.GetSegmentation().GetSegmentIdBySegmentName("Consolidation")
    segment = node.GetSegmentation().GetSegment(segment_id)
    assert segment.GetColor() == pytest.approx(LESIONS[2].rgb)
    assert "SCT^9656002^Consolidation" in _tag(segment)
    exported = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.ExportSegmentsToLabelmapNode(node, [segment_id], exported, nodes.lesions)
    assert np.array_equal(slicer.util.arrayFromVolume(exported) > 0, slicer.util.arrayFromVolume(nodes.lesions) == 2)


def _tag(segment: Any) -> str:
    found = vtk.reference("")
    assert segment.GetTag("TerminologyEntry", found)
    return str(found)


def test_everything_lies_in_one_folder_beside_the_ct(scene: Any, phantom: Any) -> None:
    ct = add_ct(scene, phantom.ct, "Chest")
    nodes = put_study(phantom.folder, ct)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    folder = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(nodes.lungs))
    assert hierarchy.GetItemName(folder) == "Chest CovidCTDiagnosis"
    inside = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene).GetNumberOfItemChildren(folder)
    assert inside >= 8


def test_the_analysis_comes_back_as_it_was_and_the_table_has_its_rows(scene: Any, phantom: Any) -> None:
    ct = add_ct(scene, phantom.ct)
    assert kept_analysis(ct) is None
    put_study(phantom.folder, ct)
    analysis = read_study(phantom.folder).analysis
    assert kept_analysis(ct) == analysis
    tables = [scene.GetNthNodeByClass(n, "vtkMRMLTableNode") for n in range(2)]
    table = next(t for t in tables if t.GetName().endswith("measurements"))
    for row, cells in enumerate(measurement_rows(analysis)):
        assert tuple(table.GetCellText(row, column) for column in range(len(COLUMNS))) == cells
    text = methods_paragraph(analysis)
    assert analysis["bundle"]["version"] in text and "not for diagnosis" in text
    assert text.startswith("Lungs and lesions were segmented and")
    given = {**analysis, "settings": {"lungs": {"source": "mask"}}}
    assert methods_paragraph(given).startswith("Lungs were given as a mask, lesions in them were segmented and")


def test_each_number_stands_in_its_column() -> None:
    lung = {"volume_ml": 2000.0, "mean_hu": -850.0, "involvement_percent": 5.0}
    lesion = {"class": "consolidation", "side": "right", "volume_ml": 100.0, "percent_of_lung": 5.0, "mean_hu": 30.0}
    none = {"class": "any", "side": "left", "volume_ml": 0.0, "percent_of_lung": None, "mean_hu": None}
    assert measurement_rows({"measurements": {"lungs": {"right": lung}, "lesions": [lesion, none]}}) == [
        ("Lungs", "right", "2000.0", "", "-850.0"),
        ("Consolidation", "right", "100.0", "5.0", "30.0"),
        ("Any lesion", "left", "0.0", "", ""),
    ]


def test_probability_and_threshold_are_named_as_what_they_are() -> None:
    line = finding_line({"diagnosis": {"label": "COVID-19", "probability": 0.714, "threshold": 0.333}})
    assert "probability 0.714" in line and "threshold 0.333" in line and line.startswith("COVID-19")


def test_lesion_areas_in_cm2_make_the_lesions_volume(phantom: Any) -> None:
    study = read_study(phantom.folder)
    grid, areas = study.grid, slice_values(study)[3]
    between_cm = grid.spacing[2 - grid.long_axis] / 10
    assert areas.sum() * between_cm == pytest.approx((phantom.images["lesions"] > 0).sum() * grid.voxel_ml)


def test_each_column_of_the_plot_has_its_own_relevance(phantom: Any) -> None:
    study = read_study(phantom.folder)
    study.analysis["relevance"]["slices"] = [
        {"index": 3, "relevance_ct": 2.0, "relevance_lesions": 0.5},
        {"index": 7, "relevance_ct": 1.0, "relevance_lesions": 0.25},
    ]
    _, of_ct, of_lesions, _ = slice_values(study)
    assert (of_ct[3], of_ct[7], of_ct.sum()) == (2.0, 1.0, 3.0)
    assert (of_lesions[3], of_lesions[7], of_lesions.sum()) == (0.5, 0.25, 0.75)


@pytest.mark.parametrize("moved", [False, True])
def test_surfaces_lie_where_the_lungs_are_and_can_be_hidden(scene: Any, phantom: Any, moved: bool) -> None:
    ct = add_ct(scene, phantom.ct)
    if moved:
        _move(scene, ct, (50.0, 0.0, -20.0))
    nodes = put_study(phantom.folder, ct)
    node = scene.GetFirstNodeByClass("vtkMRMLSegmentationNode")
    assert not node.GetSegmentation().ContainsRepresentation("Closed surface")
    show_only_surfaces(scene, nodes)
    assert node.GetTransformNodeID() == ct.GetTransformNodeID()
    segment_id = node.GetSegmentation().GetSegmentIdBySegmentName("Right lung")
    surface = vtk.vtkPolyData()
    node.GetClosedSurfaceRepresentation(segment_id, surface)
    bounds = np.array(surface.GetBounds()).reshape(3, 2)
    assert bounds.mean(1) == pytest.approx(RIGHT_LUNG, abs=4) and np.ptp(bounds, axis=1) == pytest.approx(54, abs=8)
    display = node.GetDisplayNode()
    assert display.GetVisibility3D() and display.GetSegmentOpacity3D(segment_id) < 0.5
    show_only_surfaces(scene, None)
    assert not display.GetVisibility3D()


def test_the_folder_stays_one_when_the_ct_is_renamed(scene: Any, phantom: Any) -> None:
    ct = add_ct(scene, phantom.ct, "Before")
    put_study(phantom.folder, ct)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    items = hierarchy.GetNumberOfItems()
    ct.SetName("After")
    put_study(phantom.folder, ct)
    assert hierarchy.GetNumberOfItems() == items


def test_a_slice_s_peak_is_its_hottest_voxel_and_follows_the_ct_s_transform(scene: Any, phantom: Any) -> None:
    ct = add_ct(scene, phantom.ct)
    nodes = put_study(phantom.folder, ct)
    analysis = read_study(phantom.folder).analysis
    heat = np.maximum(phantom.images["relevance_ct"], 0) + np.maximum(phantom.images["relevance_lesions"], 0)
    axis = phantom.ct.long_axis
    hottest = np.array(np.unravel_index(heat.argmax(), heat.shape))
    peak = np.array(peak_ras(nodes, analysis, int(hottest[axis])))
    expected = phantom.ct.affine @ [*hottest[::-1], 1]
    assert peak == pytest.approx(expected[:3] * [-1, -1, 1], abs=1e-3)
    _move(scene, ct, (7, -3, 11))
    assert np.array(peak_ras(nodes, analysis, int(hottest[axis]))) - peak == pytest.approx([7, -3, 11])


def test_a_slice_without_relevance_has_its_middle(scene: Any, phantom: Any) -> None:
    phantom.write(**{f"relevance_{name}": np.zeros(phantom.ct.shape, np.float32) for name in ("ct", "lesions")})
    nodes = put_study(phantom.folder, add_ct(scene, phantom.ct))
    middle = phantom.ct.slice_center(3) * [-1, -1, 1]
    assert peak_ras(nodes, read_study(phantom.folder).analysis, 3) == pytest.approx(tuple(middle))


@pytest.mark.parametrize("orientation", ["Axial", "Coronal", "Sagittal"])
def test_a_transform_on_the_ct_moves_all_layers_alike(scene: Any, phantom: Any, orientation: str) -> None:
    ct = add_ct(scene, phantom.ct)
    nodes = put_study(phantom.folder, ct)
    view = SliceView(scene, "Test")

    def picture(center: tuple[float, ...]) -> np.ndarray:
        heatmap = show_heatmap(nodes, HeatmapView())
        show_layers([view.logic], nodes.ct, heatmap, 0.5, nodes.lesions, 0.5)
        view.look(orientation, center, (150.0, 150.0), 1.0)
        return view.picture().astype(int)

    before = picture(OPACITY)
    shift = (8.0, -4.0, 12.0)
    _move(scene, ct, shift)
    put_study(phantom.folder, ct)
    after = picture(tuple(np.add(OPACITY, shift)))
    assert (np.abs(after - before).max(-1) > 8).mean() < 0.002
    assert (np.abs(picture(OPACITY) - before).max(-1) > 8).mean() > 0.05


def test_two_cts_keep_their_own_findings(scene: Any, phantom: Any) -> None:
    first, second = (put_study(phantom.folder, add_ct(scene, phantom.ct, name)) for name in ("One", "Two"))
    phantom.write(lungs=np.zeros(phantom.ct.shape, np.uint8))
    put_study(phantom.folder, second.ct)
    assert (slicer.util.arrayFromVolume(first.lungs) > 0).any()
    assert not (slicer.util.arrayFromVolume(second.lungs) > 0).any()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    folders = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(nodes.lungs)) for nodes in (first, second)}
    assert len(folders) == 2


def _move(scene: Any, ct: Any, shift: tuple[float, float, float]) -> None:
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    ct.SetAndObserveTransformNodeID(transform.GetID())


def test_layers_come_back(scene: Any, phantom: Any) -> None:
    ct = add_ct(scene, phantom.ct)
    nodes = put_study(phantom.folder, ct)
    logic = SliceView(scene, "View").logic
    prior = add_ct(scene, phantom.ct, "Prior")
    show_layers([logic], ct, foreground=prior, foreground_opacity=0.3)
    before = LayersOfViews()
    before.remember([logic])
    show_layers([logic], ct, label=nodes.lungs, label_opacity=0.4, label_outline=True)
    composite = logic.GetSliceCompositeNode()
    assert composite.GetForegroundVolumeID() is None
    before.remember([logic])  # not what shows a study
    before.restore()
    assert composite.GetForegroundVolumeID() == prior.GetID() and composite.GetLabelVolumeID() is None
    assert composite.GetForegroundOpacity() == pytest.approx(0.3) and not logic.GetSliceNode().GetUseLabelOutline()


def test_a_study_can_be_hidden_and_the_user_s_layers_stay(scene: Any, phantom: Any) -> None:
    ct = add_ct(scene, phantom.ct)
    nodes = put_study(phantom.folder, ct)
    mine = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Mine")
    logic = SliceView(scene, "View").logic
    composite = logic.GetSliceCompositeNode()
    show_layers([logic], ct, label=mine)
    hide_study([logic])
    assert composite.GetLabelVolumeID() == mine.GetID()
    show_layers([logic], ct, foreground=nodes.relevance_ct, label=nodes.lesions)
    hide_study([logic])
    assert composite.GetForegroundVolumeID() is None and composite.GetLabelVolumeID() is None
    assert composite.GetBackgroundVolumeID() == ct.GetID()


def test_views_of_a_later_layout_are_remembered_too(scene: Any, phantom: Any) -> None:
    ct, prior, third = (add_ct(scene, phantom.ct, name) for name in ("CT", "Prior", "Third"))
    first, later = (SliceView(scene, name).logic for name in ("Red", "Slice4"))
    before = LayersOfViews()
    show_layers([first], prior)
    before.remember([first])
    show_layers([later], third)
    show_layers([first], ct)
    before.remember([first, later], anew=False)
    show_layers([first, later], ct)
    before.restore()
    shown = [logic.GetSliceCompositeNode().GetBackgroundVolumeID() for logic in (first, later)]
    assert shown == [prior.GetID(), third.GetID()]


def test_all_that_was_found_follows_the_ct_under_a_later_transform(scene: Any, phantom: Any) -> None:
    ct = add_ct(scene, phantom.ct)
    nodes = put_study(phantom.folder, ct)
    clone = slicer.vtkMRMLLabelMapVolumeNode()
    scene.AddNode(clone)
    clone.Copy(nodes.lungs)  # with all its attributes
    _move(scene, ct, (40.0, 0.0, 0.0))
    assert agreement(ct) == PRESENT
    follow_ct(nodes)
    assert clone.GetTransformNodeID() is None, "it is the user's"
    segmentation = find_node(ct, SEGMENTATION, "vtkMRMLSegmentationNode")
    for node in (nodes.lungs, nodes.lesions, nodes.relevance_ct, nodes.relevance_lesions, segmentation):
        assert node.GetTransformNodeID() == ct.GetTransformNodeID()


def test_a_ct_that_was_moved_or_changed_since_is_told(scene: Any, phantom: Any) -> None:
    ct = add_ct(scene, phantom.ct)
    assert agreement(ct) == ABSENT, "nothing was found in it yet"
    put_study(phantom.folder, ct)
    assert agreement(ct) == PRESENT
    origin, image = ct.GetOrigin(), ct.GetImageData()
    ct.SetOrigin(5.0, 0.0, 0.0)
    assert agreement(ct) == CHANGED
    ct.SetOrigin(*origin)
    assert agreement(ct) == PRESENT
    voxels = slicer.util.arrayFromVolume(ct).copy()
    voxels[::2] += 100  # another phase, on the same grid
    ct.SetAndObserveImageData(image_data(voxels))
    assert agreement(ct) == CHANGED
    ct.SetAndObserveImageData(image_data(voxels[:-2]))
    assert agreement(ct) == CHANGED
    ct.SetAndObserveImageData(None)
    assert agreement(ct) == CHANGED
    ct.SetAndObserveImageData(image)
    assert agreement(ct) == PRESENT


@pytest.mark.parametrize("role", ["lungs", "lesions", "relevance_ct", "relevance_lesions"])
def test_an_image_that_stayed_behind_or_was_removed_is_told(scene: Any, phantom: Any, role: str) -> None:
    ct = add_ct(scene, phantom.ct)
    nodes = put_study(phantom.folder, ct)
    image = getattr(nodes, role)
    origin = image.GetOrigin()
    image.SetOrigin(5.0, 0.0, 0.0)
    assert agreement(ct) == CHANGED
    image.SetOrigin(*origin)
    assert agreement(ct) == PRESENT
    scene.RemoveNode(image)
    assert agreement(ct) == INCOMPLETE
    scene.RemoveNode(ct)
    assert agreement(ct) == ABSENT


def test_a_study_of_voxels_that_were_changed_meanwhile_is_refused(scene: Any, phantom: Any) -> None:
    ct = add_ct(scene, phantom.ct)
    handed_over, before = voxels_state(ct), count(scene)
    slicer.util.arrayFromVolume(ct)[:] = 40
    with pytest.raises(InputError, match="was changed while it was analyzed"):
        put_study(phantom.folder, ct, handed_over)
    assert count(scene) == before
    put_study(phantom.folder, ct, voxels_state(ct))
    assert agreement(ct) == PRESENT


@pytest.mark.parametrize("with_references", [False, True])
def test_a_users_copy_of_a_study_image_is_the_users(scene: Any, phantom: Any, with_references: bool) -> None:
    ct = add_ct(scene, phantom.ct)
    nodes = put_study(phantom.folder, ct)
    if with_references:
        copy = scene.CopyNode(nodes.lesions)
    else:
        copy = slicer.vtkMRMLLabelMapVolumeNode()
        copy.Copy(nodes.lesions)
        scene.AddNode(copy)
    assert copy.GetAttributeNames() and not is_of_study(copy) and is_of_study(nodes.lesions)
    assert find_study_nodes(ct).lesions is nodes.lesions
    scene.RemoveNode(ct)
    assert is_of_study(nodes.lesions) and not is_of_study(copy)
    assert lesion_maps(scene) == [nodes.lesions.GetID()]


def test_study_nodes_know_themselves_after_a_scene_was_saved_and_read(
    new_scene: Any, phantom: Any, tmp_path: Path
) -> None:
    scene, again = new_scene(), new_scene()
    put_study(phantom.folder, add_ct(scene, phantom.ct, "Saved"))
    assert scene.WriteToMRB(str(tmp_path / "scene.mrb"), None)
    put_study(phantom.folder, add_ct(again, phantom.ct, "There"))  # nodes that are read get other IDs
    assert again.ReadFromMRB(str(tmp_path / "scene.mrb"))
    for name in ("There", "Saved"):
        ct = again.GetFirstNodeByName(name)
        found = find_study_nodes(ct)
        assert found is not None and is_of_study(found.lesions) and agreement(ct) == PRESENT
        assert found.lesions.GetName() == f"{name} lesions"


def test_a_heatmap_of_an_earlier_study_is_not_kept(scene: Any, phantom: Any) -> None:
    ct = add_ct(scene, phantom.ct)
    view = HeatmapView(of_lesions=True, smoothing_mm=0, signed=True)
    heatmap = show_heatmap(put_study(phantom.folder, ct), view)
    show_only_legend(scene, heatmap, "against COVID-19")
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(heatmap)
    before, nodes = slicer.util.arrayFromVolume(heatmap).copy(), count(scene)
    phantom.write(relevance_lesions=2 * phantom.images["relevance_lesions"])
    again = put_study(phantom.folder, ct)
    np.testing.assert_allclose(slicer.util.arrayFromVolume(heatmap), 2 * before, rtol=1e-5)
    assert "for COVID-19" in legend.GetTitleText() and count(scene) == nodes
    state = heatmap.GetImageData().GetMTime()
    assert show_heatmap(again, view) is heatmap and heatmap.GetImageData().GetMTime() == state  # shown as it was


def test_a_layer_that_was_removed_meanwhile_leaves_the_ct_in_sight(scene: Any, phantom: Any) -> None:
    ct, prior = add_ct(scene, phantom.ct), add_ct(scene, phantom.ct, "Prior")
    nodes = put_study(phantom.folder, ct)
    logic = SliceView(scene, "View").logic
    show_layers([logic], prior, foreground=prior)
    before = LayersOfViews()
    before.remember([logic])
    show_layers([logic], ct, label=nodes.lungs)
    scene.RemoveNode(prior)
    before.restore()
    composite = logic.GetSliceCompositeNode()
    assert composite.GetBackgroundVolumeID() == ct.GetID() and composite.GetForegroundVolumeID() is None
    scene.RemoveNode(composite)
    before.restore()  # a view that is gone is left alone


def test_a_transform_hardened_in_ct_and_study_moves_heatmap_and_jumps(scene: Any, phantom: Any) -> None:
    ct = add_ct(scene, phantom.ct)
    nodes = put_study(phantom.folder, ct)
    analysis = kept_analysis(ct)
    assert analysis is not None
    index = 20
    before, heatmap = peak_ras(nodes, analysis, index), show_heatmap(nodes, HeatmapView())
    height = slice_position_mm(nodes, analysis, index)
    assert height == pytest.approx(input_grid(analysis).slice_center(index)[2])
    _move(scene, ct, (0.0, 0.0, -400.0))
    follow_ct(nodes)
    for node in (ct, nodes.lungs, nodes.lesions, nodes.relevance_ct, nodes.relevance_lesions):
        node.HardenTransform()
    assert agreement(ct) == PRESENT
    assert show_heatmap(nodes, HeatmapView()) is heatmap
    np.testing.assert_allclose(ijk_to_ras(heatmap), ijk_to_ras(ct), atol=1e-3)
    np.testing.assert_allclose(peak_ras(nodes, analysis, index), np.add(before, (0, 0, -400)), atol=1e-3)
    assert slice_position_mm(nodes, analysis, index) == pytest.approx(height - 400)


def test_where_a_second_study_cannot_be_shown_the_first_ones_finding_is_not_either(
    scene: Any, phantom: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ct = add_ct(scene, phantom.ct)
    put_study(phantom.folder, ct)
    assert kept_analysis(ct)

    def fails(nodes: StudyNodes) -> None:
        raise MemoryError

    monkeypatch.setattr("CovidCTDiagnosisLib.scene.study_nodes.load_segmentation", fails)
    with pytest.raises(MemoryError):
        put_study(phantom.folder, ct)
    assert kept_analysis(ct) is None


@pytest.mark.parametrize("text", ["", "not JSON"])
def test_an_analysis_whose_text_is_lost_is_none(scene: Any, phantom: Any, text: str) -> None:
    ct = add_ct(scene, phantom.ct)
    put_study(phantom.folder, ct)
    analysis_node(ct).SetText(text)
    assert kept_analysis(ct) is None


def test_the_heatmap_lies_in_the_studys_folder(scene: Any, phantom: Any) -> None:
    ct = add_ct(scene, phantom.ct)
    nodes = put_study(phantom.folder, ct)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    parents = {
        hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node))
        for node in (nodes.lungs, nodes.relevance_ct, show_heatmap(nodes, HeatmapView()))
    }
    assert len(parents) == 1 and hierarchy.GetItemName(parents.pop()).endswith("CovidCTDiagnosis")


def test_a_study_of_another_grid_changes_nothing_in_the_scene(scene: Any, phantom: Any) -> None:
    other = Volume(phantom.ct.voxels, phantom.ct.spacing, (99.0, 0.0, 0.0), phantom.ct.direction)
    ct = add_ct(scene, other)
    before = count(scene)
    with pytest.raises(InputError, match="not on the grid"):
        put_study(phantom.folder, ct)
    assert count(scene) == before
    right = add_ct(scene, phantom.ct)
    nodes = put_study(phantom.folder, right)
    kept = slicer.util.arrayFromVolume(nodes.lungs).copy()
    right.SetOrigin(1.0, 2.0, 3.0)
    with pytest.raises(InputError, match="not on the grid"):
        put_study(phantom.folder, right)
    assert np.array_equal(slicer.util.arrayFromVolume(nodes.lungs), kept)


def test_a_ct_of_rounded_cosines_is_on_the_grid_of_its_study_whose_axes_are_straight(scene: Any) -> None:
    rounded = np.array([[0.989, -0.087, -0.117], [0.080, 0.995, -0.062], [0.122, 0.052, 0.991]])
    rounded /= np.linalg.norm(rounded, axis=0)
    nodes = [
        add_ct(scene, Volume(np.zeros((8, 480, 480), np.uint8), (0.75, 0.75, 45.0), direction=rows(axes)))
        for axes in (rounded, straightened(rounded))
    ]
    corners = [ijk_to_ras(node)[:3, :3] @ [479, 479, 7] for node in nodes]  # opposite the first
    assert np.linalg.norm(corners[0] - corners[1]) > 0.01
    assert on_same_grid(nodes[1], nodes[0])
    nodes[1].SetOrigin(0.0, 0.1, 0.0)
    assert not on_same_grid(nodes[1], nodes[0])


def test_a_ct_that_has_left_the_scene_gets_no_study(scene: Any, phantom: Any) -> None:
    ct = add_ct(scene, phantom.ct)
    scene.RemoveNode(ct)
    with pytest.raises(InputError, match="was removed"):
        put_study(phantom.folder, ct)


def test_the_first_scan_is_neither_a_label_map_nor_of_a_study(scene: Any, phantom: Any) -> None:
    assert first_scan(scene) is None
    scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Mask")
    assert first_scan(scene) is None
    ct = add_ct(scene, phantom.ct)
    put_study(phantom.folder, ct)
    assert first_scan(scene) is ct
    scene.RemoveNode(ct)
    assert first_scan(scene) is None


def test_the_terminology_file_has_every_term_of_a_segment() -> None:
    file = Path(study_nodes.__file__).parents[2] / "Resources" / "Terminologies" / "CovidCTDiagnosis.term.json"
    logic = slicer.vtkSlicerTerminologiesModuleLogic()
    assert logic.LoadTerminologyFromFile(str(file)) == CONTEXT
    document = json.loads(file.read_text(encoding="utf-8"))
    found = {}
    for category in document["SegmentationCodes"]["Category"]:
        for kind in category["Type"]:
            found[kind["CodeMeaning"]] = tuple(
                "^".join(code[part] for part in ("CodingSchemeDesignator", "CodeValue", "CodeMeaning"))
                for code in (category, kind)
            )
            color = next(c.rgb for c in (*LUNGS.values(), *LESIONS.values()) if c.name == kind["CodeMeaning"])
            assert kind["recommendedDisplayRGBValue"] == [round(255 * part) for part in color]
    assert found == _CODES
