"""Lungs out of anyone's segmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import slicer
import vtk
from CovidCTDiagnosisLib.errors import InputError
from CovidCTDiagnosisLib.scene.nodes import add_ct, find_node
from CovidCTDiagnosisLib.scene.segmentation import SEGMENTATION, lungs_of, show_only_surfaces
from CovidCTDiagnosisLib.scene.study_nodes import put_study

UNNAMED = {"Right lung": "A", "Left lung": "B", "Ground-glass opacity": "C", "Consolidation": "D"}
TOTAL = {"Right lung": "lung_upper_lobe_right", "Left lung": "lung_upper_lobe_left", "Consolidation": "heart"}


@pytest.fixture
def study(scene: Any, phantom: Any) -> Any:
    return put_study(phantom.folder, add_ct(scene, phantom.ct))


def renamed(scene: Any, names: dict[str, str]) -> Any:
    """The study's segmentation with other names, in the opposite order."""
    node = scene.GetFirstNodeByClass("vtkMRMLSegmentationNode")
    segmentation = node.GetSegmentation()
    for name, other in names.items():
        segmentation.GetSegment(segmentation.GetSegmentIdBySegmentName(name)).SetName(other)
    segmentation.SetSegmentIndex(segmentation.GetNthSegmentID(1), 0)
    return node


def array(node: Any) -> np.ndarray:
    return slicer.util.arrayFromVolume(node).copy()


def test_lungs_are_known_by_name_and_keep_their_sides(scene: Any, study: Any) -> None:
    node = renamed(scene, TOTAL)
    before = scene.GetNumberOfNodes()
    with lungs_of(node, study.ct) as labels:
        assert np.array_equal(array(labels), array(study.lungs))
    assert scene.GetNumberOfNodes() == before


def test_lungs_lie_where_they_are_whatever_transform_they_have(scene: Any, study: Any) -> None:
    node = renamed(scene, TOTAL)
    wanted = array(study.lungs)
    moved = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = slicer.util.vtkMatrixFromArray(np.eye(4))
    matrix.SetElement(0, 3, 30.0)
    moved.SetMatrixTransformToParent(matrix)
    study.ct.SetAndObserveTransformNodeID(moved.GetID())
    node.SetAndObserveTransformNodeID(moved.GetID())
    with lungs_of(node, study.ct) as labels:
        assert np.array_equal(array(labels), wanted)
    node.SetAndObserveTransformNodeID(None)
    with lungs_of(node, study.ct) as labels:
        assert array(labels).any() and not np.array_equal(array(labels), wanted)


def test_without_such_names_what_is_shown_is_lung(scene: Any, study: Any) -> None:
    node = renamed(scene, UNNAMED)
    with lungs_of(node, study.ct) as labels:
        assert np.array_equal(array(labels), array(study.lungs) > 0)
    shown = node.GetDisplayNode()
    for name in ("B", "C", "D"):
        shown.SetSegmentVisibility(node.GetSegmentation().GetSegmentIdBySegmentName(name), False)
    with lungs_of(node, study.ct) as labels:
        right = array(study.lungs) == 1
        found = array(labels)
        # Lesions lie in the lungs, but are segments of their own.
        assert set(np.unique(found)) == {0, 1} and np.array_equal(found > 0, right)


def test_airways_are_no_lung_and_nothing_stays_without_display_nodes(scene: Any, study: Any) -> None:
    whole = {"Right lung": "lung", "Left lung": "Lung trachea bronchia", "Consolidation": "lung_vessels"}
    node = renamed(scene, whole | {"Ground-glass opacity": "liver"})
    node.RemoveNthDisplayNodeID(0)
    before = scene.GetNumberOfNodes()
    with lungs_of(node, study.ct) as labels:
        assert np.array_equal(array(labels), array(study.lungs) == 1)
    assert scene.GetNumberOfNodes() == before


def test_findings_in_a_lung_are_no_lung_and_a_side_alone_does_not_push_out_the_lungs(scene: Any, study: Any) -> None:
    names = {"Right lung": "Lungs", "Left lung": "Left lung 2", "Consolidation": "Right lung nodule"}
    node = renamed(scene, names | {"Ground-glass opacity": "Lung tumour"})
    with lungs_of(node, study.ct) as labels:
        assert np.array_equal(array(labels), array(study.lungs))


def test_what_a_user_drew_in_the_segmentation_stays(scene: Any, study: Any, phantom: Any) -> None:
    segmentation = find_node(study.ct, SEGMENTATION, "vtkMRMLSegmentationNode").GetSegmentation()
    made = segmentation.GetNumberOfSegments()
    drawn = segmentation.AddEmptySegment("", "Right lung")  # even of that name
    put_study(phantom.folder, study.ct)
    assert segmentation.GetSegment(drawn) is not None and segmentation.GetNumberOfSegments() == made + 1
    # Whatever the user calls things: terms of ours, and others for what is ours.
    lung = segmentation.GetSegmentIdBySegmentName("Left lung")
    entry = vtk.reference("")
    segmentation.GetSegment(lung).GetTag("TerminologyEntry", entry)
    segmentation.GetSegment(drawn).SetTag("TerminologyEntry", str(entry))
    segmentation.GetSegment(lung).SetTag("TerminologyEntry", "Somebody~SCT^1^Tissue")
    put_study(phantom.folder, study.ct)
    assert segmentation.GetSegment(drawn) is not None and segmentation.GetNumberOfSegments() == made + 1


def test_segments_of_an_older_version_are_replaced(scene: Any, study: Any, phantom: Any) -> None:
    segmentation = find_node(study.ct, SEGMENTATION, "vtkMRMLSegmentationNode").GetSegmentation()
    made = segmentation.GetNumberOfSegments()
    for n in range(made):
        segmentation.GetNthSegment(n).RemoveTag("CovidCTDiagnosis.Made")
    put_study(phantom.folder, study.ct)
    assert segmentation.GetNumberOfSegments() == made


def test_surfaces_that_stayed_behind_are_not_shown(scene: Any, study: Any) -> None:
    node = find_node(study.ct, SEGMENTATION, "vtkMRMLSegmentationNode")
    show_only_surfaces(scene, study)
    assert node.GetDisplayNode().GetVisibility3D()
    origin = study.ct.GetOrigin()
    study.ct.SetOrigin(origin[0], origin[1], origin[2] - 400)
    show_only_surfaces(scene, study)
    assert not node.GetDisplayNode().GetVisibility3D()
    study.ct.SetOrigin(*origin)
    show_only_surfaces(scene, study)
    assert node.GetDisplayNode().GetVisibility3D()
    # A segment of the user's may lie where it likes.
    sphere = vtk.vtkSphereSource()
    sphere.SetCenter(0, 0, 900)
    sphere.SetRadius(50)
    sphere.Update()
    node.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "Mine", (1, 0, 0))
    show_only_surfaces(scene, study)
    assert node.GetDisplayNode().GetVisibility3D()


def test_a_segmentation_without_lungs_is_refused_in_one_sentence(scene: Any, study: Any) -> None:
    empty = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mine")
    before = scene.GetNumberOfNodes()
    with pytest.raises(InputError, match="Mine has no segment of lungs"), lungs_of(empty, study.ct):
        pass
    assert scene.GetNumberOfNodes() == before
