"""All that the scene holds of an analysis: images, segmentation, table and texts, in one folder."""

from __future__ import annotations

from pathlib import Path

import slicer

from CovidCTDiagnosisLib.scene.nodes import StudyNodes, load_study
from CovidCTDiagnosisLib.scene.report import keep_analysis
from CovidCTDiagnosisLib.scene.segmentation import load_segmentation
from CovidCTDiagnosisLib.scene.slice_plot import plot_slices
from CovidCTDiagnosisLib.study import read_study


def put_study(study_folder: Path, ct: slicer.vtkMRMLScalarVolumeNode) -> StudyNodes:
    """Put a study into the CT's scene, in the place of an earlier one of the same CT.

    Raises:
        InputError: the study cannot be read or does not belong to the CT.
    """
    study = read_study(study_folder)
    nodes = load_study(ct.GetScene(), study_folder, ct)
    segmentation = load_segmentation(nodes)
    kept = [*keep_analysis(ct, study.analysis), *plot_slices(ct, study)]
    images = [nodes.lungs, nodes.lesions, nodes.relevance_ct, nodes.relevance_lesions]
    _gather(ct, [*images, segmentation, *kept])
    return nodes


def _gather(ct: slicer.vtkMRMLScalarVolumeNode, nodes: list[slicer.vtkMRMLNode]) -> None:
    """Put nodes into a folder beside the CT."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(ct.GetScene())
    if hierarchy is None:
        return
    item = hierarchy.GetItemByDataNode(ct)
    parent = hierarchy.GetItemParent(item) if item else hierarchy.GetSceneItemID()
    name = f"{ct.GetName()} CovidCTDiagnosis"
    folder = hierarchy.GetItemChildWithName(parent, name) or hierarchy.CreateFolderItem(parent, name)
    for node in nodes:
        item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(folder, node)
        hierarchy.SetItemParent(item, folder)
