"""Lungs and lesions as a segmentation, with surfaces in 3-D."""

from __future__ import annotations

import slicer

from CovidCTDiagnosisLib.scene.colors import LESIONS, LUNGS
from CovidCTDiagnosisLib.scene.nodes import StudyNodes, node_of

_ROLE = "segmentation"

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
    """A segment for each lung and class of lesion that was found, in the place of an earlier one of the same CT."""
    node = node_of(nodes.ct, _ROLE, "vtkMRMLSegmentationNode")
    node.SetName(f"{nodes.ct.GetName()} segmentation")
    node.CreateDefaultDisplayNodes()
    node.GetSegmentation().RemoveAllSegments()
    node.SetReferenceImageGeometryParameterFromVolumeNode(nodes.ct)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    for labels in (nodes.lungs, nodes.lesions):
        if not logic.ImportLabelmapToSegmentationNode(labels, node):
            continue  # nothing was found
    _name_segments(node)
    node.SetAndObserveTransformNodeID(nodes.ct.GetTransformNodeID())
    # The label layer shows the same in the slice views.
    node.GetDisplayNode().SetVisibility2D(False)
    return node


def _name_segments(node: slicer.vtkMRMLSegmentationNode) -> None:
    """Names, colours and terminology; the import names segments by their colour table."""
    colors = {label.name: label.rgb for label in (*LUNGS.values(), *LESIONS.values())}
    segmentation = node.GetSegmentation()
    for index in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(index)
        name = segment.GetName()
        if name in colors:
            segment.SetColor(*colors[name])
            category, kind = _CODES[name]
            segment.SetTag("TerminologyEntry", f"{CONTEXT}~{category}~{kind}~^^~~^^~^^")
