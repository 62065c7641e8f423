"""All that the scene holds of an analysis: images, segmentation, table and texts, in one folder."""

from __future__ import annotations

from pathlib import Path

import slicer

from CovidCTDiagnosisLib.errors import InputError
from CovidCTDiagnosisLib.scene.agreement import note_ct, voxels_state
from CovidCTDiagnosisLib.scene.heatmap import display_relevance, heatmaps_of, refresh_heatmaps
from CovidCTDiagnosisLib.scene.nodes import StudyNodes, find_node, find_study_nodes, load_study
from CovidCTDiagnosisLib.scene.report import explained_call, forget_analysis, keep_analysis
from CovidCTDiagnosisLib.scene.segmentation import SEGMENTATION, load_segmentation
from CovidCTDiagnosisLib.scene.slice_plot import plot_slices
from CovidCTDiagnosisLib.study import Study, read_study

_FOLDER = "CovidCTDiagnosis.Folder"


def put_study(study_folder: Path, ct: slicer.vtkMRMLScalarVolumeNode, analyzed: str | None = None) -> StudyNodes:
    """Put a study into the CT's scene, in the place of an earlier one of the same CT.

    Args:
        study_folder: written by ``covid-ct analyze``.
        ct: of the scene.
        analyzed: ``agreement.voxels_state`` of the CT when it was handed to the analysis; None asks nothing.

    Raises:
        InputError: the study cannot be read or does not belong to the CT, or this has left the scene or got other
            voxels; then the scene stays as it was. Where anything else fails, an earlier analysis is shown no longer:
            parts of it are gone.
    """
    if ct.GetScene() is None:
        raise InputError("The CT was removed from the scene while it was analyzed.", "Load it and analyze it again.")
    if analyzed is not None and (ct.GetImageData() is None or voxels_state(ct) != analyzed):
        raise InputError(f"{ct.GetName()} was changed while it was analyzed.", "Analyze it again.")
    study = read_study(study_folder)
    try:
        return _put(study, study_folder, ct)
    except InputError:
        raise
    except Exception:
        forget_analysis(ct)
        raise


def _put(study: Study, study_folder: Path, ct: slicer.vtkMRMLScalarVolumeNode) -> StudyNodes:
    nodes = load_study(ct.GetScene(), study_folder, ct)
    for relevance in (nodes.relevance_ct, nodes.relevance_lesions):
        display_relevance(relevance)
    segmentation = load_segmentation(nodes)
    kept = [*keep_analysis(ct, study.analysis), *plot_slices(ct, study)]
    note_ct(ct)
    refresh_heatmaps(nodes, explained_call(study.analysis))
    _gather(ct, [*nodes.images, segmentation, *kept])
    ct.Modified()  # whoever shows it has more to show now
    return nodes


def follow_ct(nodes: StudyNodes) -> None:
    """Move all that was found in a CT with it: it may have been put under another transform since."""
    transform = nodes.ct.GetTransformNodeID()
    segmentation = find_node(nodes.ct, SEGMENTATION, "vtkMRMLSegmentationNode")
    for node in (*nodes.images, segmentation, *heatmaps_of(nodes.ct)):
        if node is not None and node.GetTransformNodeID() != transform:
            node.SetAndObserveTransformNodeID(transform)


def _gather(ct: slicer.vtkMRMLScalarVolumeNode, nodes: list[slicer.vtkMRMLNode]) -> None:
    """Put nodes into the CT's folder, which lies beside the CT, under its study if it has one."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(ct.GetScene())
    if hierarchy is None:
        return
    folder = _folder(hierarchy, ct)
    for node in nodes:
        item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(folder, node)
        hierarchy.SetItemParent(item, folder)


def _folder(hierarchy: slicer.vtkMRMLSubjectHierarchyNode, ct: slicer.vtkMRMLScalarVolumeNode) -> int:
    """The one in which the lungs lie already, whatever it and the CT are called by now, or a new one."""
    known = find_study_nodes(ct)
    item = hierarchy.GetItemByDataNode(known.lungs) if known is not None else 0
    if item and hierarchy.HasItemAttribute(hierarchy.GetItemParent(item), _FOLDER):
        return int(hierarchy.GetItemParent(item))
    item = hierarchy.GetItemByDataNode(ct)
    parent = hierarchy.GetItemParent(item) if item else hierarchy.GetSceneItemID()
    folder = hierarchy.CreateFolderItem(parent, f"{ct.GetName()} CovidCTDiagnosis")
    hierarchy.SetItemAttribute(folder, _FOLDER, "")
    return int(folder)
