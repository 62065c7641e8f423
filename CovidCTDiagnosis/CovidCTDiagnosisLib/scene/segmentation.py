"""Lungs and lesions as a segmentation, with surfaces in 3-D."""

from __future__ import annotations

import slicer

from CovidCTDiagnosisLib.scene.colors import LESIONS, LUNGS
from CovidCTDiagnosisLib.scene.nodes import StudyNodes, find_node, node_of

SEGMENTATION = "segmentation"
"""The role of the node."""
LUNG_OPACITY_3D = 0.2

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
CONTEXT = "CovidCTDiagnosis"
"""Of the terminology, as in Resources/Terminologies."""


def load_segmentation(nodes: StudyNodes) -> slicer.vtkMRMLSegmentationNode:
    """A segment for each lung and class of lesion that was found, in the place of an earlier one of the same CT.

    In 3-D the lungs are like glass.
    """
    node = node_of(nodes.ct, SEGMENTATION, "vtkMRMLSegmentationNode")
    node.SetName(f"{nodes.ct.GetName()} segmentation")
    node.CreateDefaultDisplayNodes()
    node.GetSegmentation().RemoveAllSegments()
    node.SetReferenceImageGeometryParameterFromVolumeNode(nodes.ct)
    # Before the import, which brings labels from their own coordinates into the segmentation's.
    node.SetAndObserveTransformNodeID(nodes.ct.GetTransformNodeID())
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    for labels in (nodes.lungs, nodes.lesions):
        if not logic.ImportLabelmapToSegmentationNode(labels, node):
            continue  # nothing was found
    _style_segments(node)
    # The label layer shows the same in the slice views.
    node.GetDisplayNode().SetVisibility2D(False)
    return node


def show_surfaces(nodes: StudyNodes, visible: bool) -> None:
    """Show lungs and lesions in 3-D views, or hide them; surfaces are made when first shown."""
    node = find_node(nodes.ct, SEGMENTATION, "vtkMRMLSegmentationNode")
    if node is None:
        return
    if visible:
        node.CreateClosedSurfaceRepresentation()  # does nothing where it is there
    node.GetDisplayNode().SetVisibility3D(visible)


def _style_segments(node: slicer.vtkMRMLSegmentationNode) -> None:
    """Colours, terminology and lungs like glass; the import names segments by their colour table."""
    lungs = {label.name for label in LUNGS.values()}
    colors = {label.name: label.rgb for label in (*LUNGS.values(), *LESIONS.values())}
    segmentation = node.GetSegmentation()
    for index in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(index)
        name = segment.GetName()
        if name in colors:
            segment.SetColor(*colors[name])
            category, kind = _CODES[name]
            segment.SetTag("TerminologyEntry", f"{CONTEXT}~{category}~{kind}~^^~~^^~^^")
        if name in lungs:
            node.GetDisplayNode().SetSegmentOpacity3D(segmentation.GetNthSegmentID(index), LUNG_OPACITY_3D)
