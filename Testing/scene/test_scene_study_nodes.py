"""All nodes of a study: segmentation, table, texts, plot, gathered in one folder, replaced by the next study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
from CovidCTDiagnosisLib.scene import study_nodes
from CovidCTDiagnosisLib.scene.colors import LESIONS, LUNGS
from CovidCTDiagnosisLib.scene.layers import remember_layers, restore_layers, show_layers
from CovidCTDiagnosisLib.scene.nodes import add_ct, find_study_nodes
from CovidCTDiagnosisLib.scene.report import COLUMNS, kept_analysis, measurement_rows, methods_paragraph
from CovidCTDiagnosisLib.scene.segmentation import _CODES, CONTEXT
from CovidCTDiagnosisLib.scene.slice_view import SliceView
from CovidCTDiagnosisLib.scene.study_nodes import put_study
from CovidCTDiagnosisLib.study import read_study


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
    import vtk

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


def test_layers_come_back(scene: Any, phantom: Any) -> None:
    ct = add_ct(scene, phantom.ct)
    nodes = put_study(phantom.folder, ct)
    logic = SliceView(scene, "View").logic
    show_layers([logic], ct, foreground=nodes.relevance_ct, foreground_opacity=0.3)
    before = remember_layers([logic])
    show_layers([logic], ct, label=nodes.lungs, label_opacity=0.4)
    composite = logic.GetSliceCompositeNode()
    assert composite.GetForegroundVolumeID() is None
    restore_layers(before)
    assert composite.GetForegroundVolumeID() == nodes.relevance_ct.GetID() and composite.GetLabelVolumeID() is None
    assert composite.GetForegroundOpacity() == pytest.approx(0.3)


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
