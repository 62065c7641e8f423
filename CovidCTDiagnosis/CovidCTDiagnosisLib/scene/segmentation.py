"""Lungs and lesions as a segmentation, with surfaces in 3-D; and lungs out of anyone's segmentation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import slicer
import vtk

from CovidCTDiagnosisLib.errors import InputError
from CovidCTDiagnosisLib.scene.colors import LESIONS, LUNGS
from CovidCTDiagnosisLib.scene.nodes import StudyNodes, find_node, ijk_to_ras, is_of_study, node_of

SEGMENTATION = "segmentation"
"""The role of the node."""
LUNG_OPACITY_3D = 0.2
RIGHT, LEFT = LUNGS
_AIRWAYS = ("trachea", "bronch", "airway", "vessel")
_FINDINGS = ("nodul", "tumo", "lesion", "mass", "cancer", "metasta", "effusion", "opaci", "consolid", "infect")
NOT_LUNG = (*_AIRWAYS, *_FINDINGS)
"""In names of segments."""

# SNOMED CT where the code is sure, else a scheme of our own.
_TISSUE = "SCT^85756007^Tissue"
_ABNORMAL = "SCT^49755003^Morphologically Altered Structure"
_CODES = {
    "Right lung": (_TISSUE, "SCT^3341006^Right lung"),
    "Left lung": (_TISSUE, "SCT^44029006^Left lung"),
    "Ground-glass opacity": (_ABNORMAL, "99COVIDCT^GGO^Ground-glass opacity"),
    "Consolidation": (_ABNORMAL, "SCT^9656002^Consolidation"),
    "Crazy paving": (_ABNORMAL, "99COVIDCT^CP^Crazy paving"),
    "Combined pattern": (_ABNORMAL, "99COVIDCT^CMB^Combined pattern"),
}
_ENTRY, _MADE = "TerminologyEntry", "CovidCTDiagnosis.Made"
CONTEXT = "CovidCTDiagnosis"
"""Of the terminology, as in Resources/Terminologies."""


def load_segmentation(nodes: StudyNodes) -> slicer.vtkMRMLSegmentationNode:
    """A segment for each lung and class of lesion that was found, in the place of an earlier one of the same CT.

    In 3-D the lungs are like glass. Segments that a user has added to an earlier one stay.
    """
    node = node_of(nodes.ct, SEGMENTATION, "vtkMRMLSegmentationNode")
    node.SetName(f"{nodes.ct.GetName()} segmentation")
    node.CreateDefaultDisplayNodes()
    segmentation = node.GetSegmentation()
    for segment in _ours(segmentation):
        segmentation.RemoveSegment(segment)
    users = _ids(segmentation)
    node.SetReferenceImageGeometryParameterFromVolumeNode(nodes.ct)
    # Before the import, which brings labels from their own coordinates into the segmentation's.
    node.SetAndObserveTransformNodeID(nodes.ct.GetTransformNodeID())
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    for labels in (nodes.lungs, nodes.lesions):
        if not logic.ImportLabelmapToSegmentationNode(labels, node):
            continue  # nothing was found
    _style_segments(node, [segment for segment in _ids(segmentation) if segment not in users])
    # The label layer shows the same in the slice views.
    node.GetDisplayNode().SetVisibility2D(False)
    return node


def _ids(segmentation: slicer.vtkSegmentation) -> list[str]:
    return [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]


def _ours(segmentation: slicer.vtkSegmentation) -> list[str]:
    """Segments that this module made; in scenes of older versions those of its terminology."""
    tagged = [segment for segment in _ids(segmentation) if _tag(segmentation, segment, _MADE)]
    return tagged or [s for s in _ids(segmentation) if _tag(segmentation, s, _ENTRY).startswith(f"{CONTEXT}~")]


def _tag(segmentation: slicer.vtkSegmentation, segment: str, name: str) -> str:
    value = vtk.reference("")
    segmentation.GetSegment(segment).GetTag(name, value)
    return str(value)


def show_only_surfaces(scene: slicer.vtkMRMLScene, nodes: StudyNodes | None) -> None:
    """Show the lungs and lesions of a study in 3-D views, or of none; surfaces are made when first shown.

    They are not shown where they lie outside the CT.
    """
    shown = None if nodes is None else find_node(nodes.ct, SEGMENTATION, "vtkMRMLSegmentationNode")
    if nodes is not None and shown is not None and not _lies_in(shown, nodes.ct):
        shown = None  # one of them was moved without the other
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")):
        node = scene.GetNthNodeByClass(index, "vtkMRMLSegmentationNode")
        if is_of_study(node) and node is not shown and node.GetDisplayNode() is not None:
            node.GetDisplayNode().SetVisibility3D(False)
    if shown is not None:
        shown.CreateClosedSurfaceRepresentation()  # does nothing where it is there
        shown.GetDisplayNode().SetVisibility3D(True)


def _lies_in(segmentation: slicer.vtkMRMLSegmentationNode, ct: slicer.vtkMRMLScalarVolumeNode) -> bool:
    """Whether none of our segments reaches out of the CT by more than a voxel; both have the same transform."""
    of_segment, segments = np.zeros(6), segmentation.GetSegmentation()
    bounds = np.array([np.inf, -np.inf] * 3)
    for segment in _ours(segments):
        segments.GetSegment(segment).GetBounds(of_segment)
        bounds[::2], bounds[1::2] = np.minimum(bounds[::2], of_segment[::2]), np.maximum(bounds[1::2], of_segment[1::2])
    ends = np.array(ct.GetImageData().GetDimensions())[:, None] * np.indices((2, 2, 2)).reshape(3, 8) - 0.5
    to_ras = ijk_to_ras(ct)
    corners = to_ras[:3, :3] @ ends + to_ras[:3, 3:]
    margin = max(ct.GetSpacing())
    low, high = bounds[::2], bounds[1::2]
    empty = bool((low > high).any())
    inside = (low >= corners.min(1) - margin).all() and (high <= corners.max(1) + margin).all()
    return empty or bool(inside)


@contextmanager
def lungs_of(
    segmentation: slicer.vtkMRMLSegmentationNode, ct: slicer.vtkMRMLScalarVolumeNode
) -> Iterator[slicer.vtkMRMLLabelMapVolumeNode]:
    """A segmentation's lungs as a label map on the CT's grid, which is in the scene as long as the context.

    Segments with "lung" in their name are the lungs (those that say "right" or "left", if both sides are there;
    airways, vessels, nodules and the like are none); if there is none, all that are visible. Right and left get the
    labels 1 and 2, lungs without a side 1.

    Raises:
        InputError: there is no such segment.
    """
    chosen = _lung_segments(segmentation)
    if not chosen:
        raise InputError(
            f"{segmentation.GetName()} has no segment of lungs.",
            'Call a segment "lung", show the segments that are lung, or choose another segmentation.',
        )
    scene = ct.GetScene()
    before = {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())}
    labels = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "lungs")
    made = [labels]
    try:
        labels.SetHideFromEditors(True)
        labels.SetAndObserveTransformNodeID(ct.GetTransformNodeID())
        ids = vtk.vtkStringArray()
        for segment in chosen:
            ids.InsertNextValue(segment)
        logic = slicer.vtkSlicerSegmentationsModuleLogic
        exported = logic.ExportSegmentsToLabelmapNode(segmentation, ids, labels, ct)
        # That adds display nodes and a colour table.
        made = [node for node in map(scene.GetNthNode, range(scene.GetNumberOfNodes())) if node.GetID() not in before]
        if not exported:
            raise InputError(f"{segmentation.GetName()} cannot be brought onto the CT's grid.", "Choose another one.")
        voxels = slicer.util.arrayFromVolume(labels)
        sides = [_side(_name(segmentation, segment)) or 1 for segment in chosen]
        voxels[:] = np.array([0, *sides], voxels.dtype)[voxels]
        yield labels
    finally:
        for node in made:
            scene.RemoveNode(node)


def _lung_segments(node: slicer.vtkMRMLSegmentationNode) -> list[str]:
    every = _ids(node.GetSegmentation())
    named = [segment for segment in every if _is_lung(_name(node, segment))]
    sides = {segment: side for segment in named if (side := _side(_name(node, segment)))}
    if set(sides.values()) == {RIGHT, LEFT}:
        return list(sides)
    shown = node.GetDisplayNode()
    return named or [segment for segment in every if shown is None or shown.GetSegmentVisibility(segment)]


def _name(node: slicer.vtkMRMLSegmentationNode, segment: str) -> str:
    return str(node.GetSegmentation().GetSegment(segment).GetName()).lower()


def _is_lung(name: str) -> bool:
    return "lung" in name and not any(other in name for other in NOT_LUNG)


def _side(name: str) -> int:
    """1 or 2, or 0 where the name does not say it."""
    right, left = "right" in name, "left" in name
    return RIGHT if right and not left else LEFT if left and not right else 0


def _style_segments(node: slicer.vtkMRMLSegmentationNode, made: list[str]) -> None:
    """Colours, terminology and lungs like glass for what was made; the import names segments by their colour table."""
    lungs = {label.name for label in LUNGS.values()}
    colors = {label.name: label.rgb for label in (*LUNGS.values(), *LESIONS.values())}
    segmentation = node.GetSegmentation()
    for segment_id in made:
        segment = segmentation.GetSegment(segment_id)
        segment.SetTag(_MADE, "1")
        name = segment.GetName()
        if name in colors:
            segment.SetColor(*colors[name])
            category, kind = _CODES[name]
            segment.SetTag(_ENTRY, f"{CONTEXT}~{category}~{kind}~^^~~^^~^^")
        if name in lungs:
            node.GetDisplayNode().SetSegmentOpacity3D(segment_id, LUNG_OPACITY_3D)
