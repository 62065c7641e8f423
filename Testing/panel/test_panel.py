"""The panel as a radiologist uses it: the real module, .ui file, scene and child process."""

from __future__ import annotations

import gc
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import slicer
import vtk
from CovidCTDiagnosisLib.ct.phantom import make_chest
from CovidCTDiagnosisLib.errors import CovidCTError, UsageError
from CovidCTDiagnosisLib.scene.nodes import add_ct, find_study_nodes, first_scan, ijk_to_ras, is_bent
from CovidCTDiagnosisLib.scene.report import analysis_node, kept_analysis
from PIL import Image
from PySide6 import QtCore, QtGui, QtWidgets

PATIENCE_S = 120


def nodes_of_scene() -> set[str]:
    scene = slicer.mrmlScene
    return {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())}


def layers(host: Any) -> list[tuple[Any, Any, Any]]:
    logics = [host.slice_logics.GetItemAsObject(n) for n in range(3)]
    composites = [logic.GetSliceCompositeNode() for logic in logics]
    return [(c.GetBackgroundVolumeID(), c.GetForegroundVolumeID(), c.GetLabelVolumeID()) for c in composites]


def saved_scene(folder: Path) -> Path:
    """The scene as Slicer archives it."""
    scene, path = slicer.mrmlScene, folder / "scene.mrb"
    scene.SetRootDirectory(str(folder))
    for n in range(scene.GetNumberOfNodes()):
        node = scene.GetNthNode(n)
        if node.IsA("vtkMRMLStorableNode") and node.GetSaveWithScene() and node.GetStorageNode() is None:
            node.AddDefaultStorageNode()
    assert scene.WriteToMRB(str(path))
    return path


def children() -> list[psutil.Process]:
    return [process for process in psutil.Process().children(recursive=True) if _is_ours(process)]


def _is_ours(process: psutil.Process) -> bool:
    try:
        return "CovidCTDiagnosisLib" in " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return False


def analyze(host: Any) -> None:
    """Click Analyze and wait for the end."""
    ui = host.widget.ui
    ui.analyzeButton.click()
    assert ui.analyzeButton.text == "Cancel"
    assert host.spin(lambda: not host.widget.panel.running, PATIENCE_S), ui.statusLabel.text


def test_the_panel_chooses_the_ct_and_waits_for_a_click(opened: Any) -> None:
    ui = opened.widget.ui
    assert ui.inputSelector.currentNode() is opened.ct
    assert ui.analyzeButton.enabled and ui.analyzeButton.text == "Analyze"
    assert not ui.progressBar.visible and not ui.logButton.visible and not children()


def test_without_a_ct_there_is_nothing_to_analyze(host: Any) -> None:
    ui = host.open().ui
    assert not ui.analyzeButton.enabled and ui.statusLabel.text == "Choose a chest CT."
    host.close()


def test_a_click_brings_findings_layers_and_slices(opened: Any) -> None:
    ui, seen = opened.widget.ui, []
    ui.progressBar._wrapped.valueChanged.connect(seen.append)
    analyze(opened)
    analysis = kept_analysis(opened.ct)
    assert analysis is not None and ui.statusLabel.text == "Done."
    assert f"{analysis['diagnosis']['probability']:.3f}" in ui.findingLabel.text
    assert seen == sorted(seen) and len(seen) > 3 and seen[-1] == 100
    study = find_study_nodes(opened.ct)
    assert study is not None and (slicer.util.arrayFromVolume(study.lungs) > 0).any()
    assert {(b, label) for b, _, label in layers(opened)} == {(opened.ct.GetID(), study.lesions.GetID())}
    assert len({foreground for _, foreground, _ in layers(opened)}) == 1 and layers(opened)[0][1]
    assert ui.measurementsTable.rowCount == 3 + 15
    assert ui.slicesTable.item(0, 0).text() == str(analysis["relevance"]["slices"][0]["index"])
    assert not children()
    assert "accept" in opened.asked[0]  # the terms, once


def test_a_click_on_a_slice_brings_all_views_there(opened: Any) -> None:
    analyze(opened)
    ui = opened.widget.ui
    study = find_study_nodes(opened.ct)
    assert study is not None
    before = nodes_of_scene()
    heights = []
    for row in (0, 1):
        ui.slicesTable._wrapped.cellClicked.emit(row, 0)
        logics = [opened.slice_logics.GetItemAsObject(n) for n in range(3)]
        places = [logic.GetSliceNode().GetSliceToRAS() for logic in logics]
        centers = {tuple(round(place.GetElement(axis, 3), 3) for axis in range(3)) for place in places}
        assert len(centers) == 1
        heights.append(centers.pop()[2])
        index = int(ui.slicesTable.item(row, 0).text())
        bounds = np.zeros(6)
        opened.ct.GetRASBounds(bounds)
        assert heights[-1] == pytest.approx(bounds[4] + (index + 0.5) * 8, abs=0.1)
    assert nodes_of_scene() == before


def test_running_again_replaces_and_earlier_layers_come_back(opened: Any) -> None:
    first = layers(opened)
    analyze(opened)
    opened.widget.ui.restoreButton.click()
    assert layers(opened) == first
    analyze(opened)
    after = nodes_of_scene()
    analyze(opened)
    assert nodes_of_scene() == after
    assert len(opened.asked) == 1
    opened.widget.ui.restoreButton.click()  # those before the first of the two
    assert layers(opened) == first


def test_a_segmentation_serves_as_lung_mask(opened: Any) -> None:
    analyze(opened)
    study = find_study_nodes(opened.ct)
    assert study is not None
    first = slicer.util.arrayFromVolume(study.lungs).copy()
    labels = slicer.vtkMRMLLabelMapVolumeNode()
    slicer.mrmlScene.AddNode(labels)
    labels.Copy(study.lungs)
    upper = first.copy()
    upper[: len(first) // 2] = 0
    slicer.util.updateVolumeFromArray(labels, upper)
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mine")
    assert slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(labels, mine)
    opened.widget.logic.getParameterNode().lungMask = mine
    analyze(opened)
    assert np.array_equal(slicer.util.arrayFromVolume(study.lungs), upper) and upper.any()
    mine.GetSegmentation().RemoveAllSegments()
    opened.widget.ui.analyzeButton.click()
    assert "Mine has no segment of lungs" in opened.widget.ui.statusLabel.text and not children()
    moved = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    labels.SetAndObserveTransformNodeID(moved.GetID())
    opened.widget.logic.getParameterNode().lungMask = labels
    opened.widget.ui.analyzeButton.click()
    assert "different transforms" in opened.widget.ui.statusLabel.text and not children()


def test_cancel_ends_the_whole_tree_within_a_second_and_leaves_the_scene(opened: Any) -> None:
    ui = opened.widget.ui
    before, shown = nodes_of_scene(), layers(opened)
    ui.analyzeButton.click()
    assert opened.spin(lambda: bool(children()) and ui.progressBar.value > 0, PATIENCE_S)
    tree, begun = children(), time.monotonic()
    ui.analyzeButton.click()
    gone, alive = psutil.wait_procs(tree, timeout=1)
    assert not alive and gone and time.monotonic() - begun < 1.2
    assert ui.statusLabel.text == "Cancelled." and ui.analyzeButton.text == "Analyze"
    assert nodes_of_scene() == before and layers(opened) == shown


def test_cancel_while_files_are_written_leaves_none(opened: Any, tmp_path: Path) -> None:
    opened.widget.logic.getParameterNode().keepFiles = tmp_path
    opened.widget.ui.analyzeButton.click()
    assert opened.spin(lambda: bool(children()), PATIENCE_S)
    (process,) = [p for p in children() if p.ppid() == psutil.Process().pid]
    partial = tmp_path / f".Phantom.partial-{process.pid}"  # as it is when the process has no time to clear up
    partial.mkdir()
    (partial / "relevance_ct.nii.gz").touch()
    opened.widget.ui.analyzeButton.click()
    assert not children() and not list(tmp_path.glob(".Phantom*")) and not list(tmp_path.glob("Phantom*"))


def test_closing_slicer_ends_the_analysis(opened: Any) -> None:
    opened.widget.ui.analyzeButton.click()
    assert opened.spin(lambda: bool(children()), PATIENCE_S)
    tree = children()
    opened.widget.cleanup()
    assert not psutil.wait_procs(tree, timeout=1)[1]


def test_what_is_no_chest_is_said_in_one_sentence_and_the_log_is_at_hand(opened: Any) -> None:
    voxels = slicer.util.arrayFromVolume(opened.ct)
    voxels[:] = 40
    voxels[:2] = -1000
    slicer.util.arrayFromVolumeModified(opened.ct)
    analyze(opened)
    ui = opened.widget.ui
    assert "shows no lungs" in ui.statusLabel.text and "Traceback" not in ui.statusLabel.text
    assert ui.logButton.visible and find_study_nodes(opened.ct) is None
    ui.logButton.click()
    assert '"event": "error"' in slicer.app.clipboard().text()


def test_a_crash_becomes_a_sentence(opened: Any) -> None:
    ui = opened.widget.ui
    ui.analyzeButton.click()
    assert opened.spin(lambda: bool(children()), PATIENCE_S)
    for process in children():
        process.kill()
    assert opened.spin(lambda: not opened.widget.panel.running, 5)
    assert "stopped unexpectedly" in ui.statusLabel.text and ui.logButton.visible


def test_another_module_may_be_opened_meanwhile(opened: Any) -> None:
    widget = opened.widget
    widget.ui.analyzeButton.click()
    assert opened.spin(lambda: bool(children()), PATIENCE_S)
    widget.exit()
    assert opened.spin(lambda: not widget.panel.running, PATIENCE_S)
    assert find_study_nodes(opened.ct) is not None
    assert widget.ui.statusLabel.text == "Done."
    widget.enter()
    assert widget.ui.findingLabel.text and widget.ui.slicesTable.rowCount > 0
    assert {background for background, _, _ in layers(opened)} == {opened.ct.GetID()}


def test_a_failure_meanwhile_is_still_told_on_the_way_back(opened: Any) -> None:
    widget = opened.widget
    widget.ui.analyzeButton.click()
    assert opened.spin(lambda: bool(children()), PATIENCE_S)
    widget.exit()
    for process in children():
        process.kill()
    assert opened.spin(lambda: not widget.panel.running, 5)
    widget.enter()
    assert "stopped unexpectedly" in widget.ui.statusLabel.text and widget.ui.analyzeButton.enabled


def test_the_next_scene_starts_empty(opened: Any) -> None:
    analyze(opened)
    name = opened.ct.GetID()
    slicer.mrmlScene.Clear()
    assert opened.widget.ui.findingLabel.text == ""
    other = add_ct(slicer.mrmlScene, make_chest(spacing=(8.0, 8.0, 8.0)))
    opened.widget.logic.getParameterNode().inputVolume = other
    assert opened.widget.ui.findingLabel.text == "" and opened.widget.ui.analyzeButton.enabled, name


def test_a_second_click_while_packages_are_installed_starts_nothing(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    widget, started = opened.widget, []
    launch = widget.logic.launch

    def slow(arguments: Any, **more: Any) -> Any:
        started.append(arguments)
        assert not widget.ui.analyzeButton.enabled and not widget.ui.removeButton.enabled
        widget.panel._on_analyze()  # as a click would, if it came through
        return launch(arguments, **more)

    monkeypatch.setattr(widget.logic, "launch", slow)
    analyze(opened)
    assert len(started) == 1 and widget.ui.statusLabel.text == "Done." and widget.ui.removeButton.enabled


def test_a_ct_that_is_removed_meanwhile_is_said(opened: Any) -> None:
    widget = opened.widget
    widget.ui.analyzeButton.click()
    assert opened.spin(lambda: bool(children()), PATIENCE_S)
    before = slicer.mrmlScene.GetNumberOfNodes()
    slicer.mrmlScene.RemoveNode(opened.ct)
    assert opened.spin(lambda: not widget.panel.running, PATIENCE_S)
    assert slicer.mrmlScene.GetNumberOfNodes() < before and not children()
    assert "was removed" in widget.ui.statusLabel.text


def test_refused_terms_start_nothing(opened: Any) -> None:
    opened.answers = False
    opened.widget.ui.analyzeButton.click()
    assert "terms of the weights are not accepted" in opened.widget.ui.statusLabel.text
    assert not opened.widget.panel.running and not children()


def test_display_controls_change_the_layers(opened: Any) -> None:
    analyze(opened)
    ui, parameters = opened.widget.ui, opened.widget.logic.getParameterNode()
    shown = layers(opened)[0][1]
    ui.relevanceCheckBox.checked = False
    assert layers(opened)[0][1] is None and not parameters.showRelevance
    ui.relevanceCheckBox.checked = True
    ui.branchComboBox.currentText = "Lesion mask"
    assert layers(opened)[0][1] not in (None, shown)
    ui.lesionsCheckBox.checked = False
    assert layers(opened)[0][2] is None
    ui.signedCheckBox.checked = True
    node = slicer.mrmlScene.GetNodeByID(layers(opened)[0][1])
    display = node.GetDisplayNode()
    assert display.GetWindowLevelMin() == pytest.approx(-display.GetWindowLevelMax())
    count = slicer.mrmlScene.GetNumberOfNodes()
    ui.lesionOpacitySlider.value = 0.3
    ui.percentileSlider.value = 95.0
    ui.smoothingSlider.value = 5.0
    assert slicer.mrmlScene.GetNumberOfNodes() == count


def test_choices_and_findings_come_back_with_the_scene(opened: Any, new_scene: Any, tmp_path: Path) -> None:
    analyze(opened)
    opened.widget.logic.getParameterNode().relevanceOpacity = 0.35
    archive = saved_scene(tmp_path)
    scene = new_scene()
    assert scene.ReadFromMRB(str(archive))
    ct = scene.GetFirstNodeByName("Phantom")
    analysis = kept_analysis(ct)
    assert analysis is not None and analysis["diagnosis"] == kept_analysis(opened.ct)["diagnosis"]
    assert find_study_nodes(ct) is not None
    shown = slicer.mrmlScene.GetNodeByID(layers(opened)[0][1])
    heatmap = scene.GetFirstNodeByName(shown.GetName())
    window = [node.GetDisplayNode().GetWindowLevelMax() for node in (heatmap, shown)]
    assert window[0] == pytest.approx(window[1]) and heatmap.GetDisplayNode().GetApplyThreshold()
    assert heatmap.GetDisplayNode().GetColorNode().IsA("vtkMRMLProceduralColorNode")
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(heatmap)
    assert legend is not None and legend.GetVisibility() and legend.GetTitleText() == "Relevance for COVID-19"
    assert scene.GetFirstNodeByClass("vtkMRMLSegmentationNode").GetSegmentation().GetNumberOfSegments() > 1
    node = scene.GetFirstNodeByClass("vtkMRMLScriptedModuleNode")
    assert node.GetParameter("relevanceOpacity") == "0.35"
    assert node.GetNodeReference("inputVolume").GetName() == "Phantom"


def test_a_program_analyzes_without_the_panel(
    host: Any, tiny_bundle: Path, chest_phantom: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # a killed test run leaves files in the usual place
    ct = add_ct(slicer.mrmlScene, chest_phantom(spacing=(4.0, 4.0, 8.0)), "Phantom")
    told: list[float] = []
    logic = host.module.CovidCTDiagnosisLogic()
    analysis = logic.analyze(
        ct, progress=lambda share, message: told.append(share), options=["--bundle", str(tiny_bundle)]
    )
    assert 0 <= analysis["diagnosis"]["probability"] <= 1 and told == sorted(told) and told[-1] > 0
    assert find_study_nodes(ct) is not None
    assert not list(Path(tempfile.gettempdir()).glob("CovidCTDiagnosis-*"))

    def stop(share: float, message: str) -> None:
        if children():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        logic.analyze(ct, progress=stop, options=["--bundle", str(tiny_bundle)])
    assert not children() and not list(Path(tempfile.gettempdir()).glob("CovidCTDiagnosis-*"))
    with pytest.raises(CovidCTError, match="was removed"):
        logic.analyze(
            ct,
            progress=lambda share, message: slicer.mrmlScene.RemoveNode(ct) if share > 0.5 else None,
            options=["--bundle", str(tiny_bundle)],
        )


def test_each_ct_shows_its_own_findings(opened: Any, chest_phantom: Any) -> None:
    ui, parameters = opened.widget.ui, opened.widget.logic.getParameterNode()
    analyze(opened)
    found = ui.findingLabel.text
    other = add_ct(slicer.mrmlScene, chest_phantom(spacing=(5.0, 5.0, 8.0), seed=3), "Other")
    parameters.inputVolume = other
    assert ui.findingLabel.text == "" and ui.slicesTable.rowCount == 0 and find_study_nodes(other) is None
    analyze(opened)
    assert ui.findingLabel.text and find_study_nodes(other) is not None
    shown = layers(opened)[0]
    parameters.inputVolume = opened.ct
    assert ui.findingLabel.text == found
    assert layers(opened)[0] != shown and layers(opened)[0][0] == opened.ct.GetID()


def test_a_ct_that_is_chosen_while_another_is_analyzed_shows_its_own(opened: Any, chest_phantom: Any) -> None:
    ui, parameters = opened.widget.ui, opened.widget.logic.getParameterNode()
    analyze(opened)
    other = add_ct(slicer.mrmlScene, chest_phantom(spacing=(5.0, 5.0, 8.0), seed=3), "Other")
    ui.analyzeButton.click()
    parameters.inputVolume = other
    assert opened.widget.panel.running and ui.findingLabel.text == "" and ui.slicesTable.rowCount == 0
    assert not opened.widget.ui.statusLabel.text.startswith("Ready")
    assert opened.spin(lambda: not opened.widget.panel.running, PATIENCE_S)
    assert ui.statusLabel.text == "Phantom: Done." and ui.findingLabel.text == "" and find_study_nodes(other) is None
    parameters.inputVolume = opened.ct
    assert ui.findingLabel.text


def test_a_ct_without_findings_shows_none_of_another(opened: Any, chest_phantom: Any) -> None:
    analyze(opened)
    scene, parameters = slicer.mrmlScene, opened.widget.logic.getParameterNode()
    display = scene.GetFirstNodeByClass("vtkMRMLSegmentationNode").GetDisplayNode()
    assert display.GetVisibility3D()
    other = add_ct(scene, chest_phantom(spacing=(5.0, 5.0, 8.0), seed=3), "Other")
    parameters.inputVolume = other
    assert {(foreground, label) for _, foreground, label in layers(opened)} == {(None, None)}
    legends = [
        scene.GetNthNodeByClass(n, "vtkMRMLColorLegendDisplayNode")
        for n in range(scene.GetNumberOfNodesByClass("vtkMRMLColorLegendDisplayNode"))
    ]
    assert legends and not any(legend.GetVisibility() for legend in legends) and not display.GetVisibility3D()
    analyze(opened)
    shown = [
        scene.GetNthNodeByClass(n, "vtkMRMLSegmentationNode").GetDisplayNode().GetVisibility3D()
        for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"))
    ]
    assert sorted(map(bool, shown)) == [False, True] and not display.GetVisibility3D()
    parameters.inputVolume = opened.ct
    assert display.GetVisibility3D()


def test_what_was_found_moves_with_its_ct_and_is_not_shown_of_one_that_was_changed(opened: Any) -> None:
    analyze(opened)
    ui, ct, found = opened.widget.ui, opened.ct, opened.widget.ui.findingLabel.text
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    ct.SetAndObserveTransformNodeID(transform.GetID())
    overlays = [slicer.mrmlScene.GetNodeByID(name) for name in layers(opened)[0][1:]]
    assert [node.GetTransformNodeID() for node in overlays] == [transform.GetID()] * 2
    assert ui.findingLabel.text == found
    origin = ct.GetOrigin()
    ct.SetOrigin(origin[0] + 5, *origin[1:])  # as Center volume does
    assert ui.findingLabel.text == "" and ui.slicesTable.rowCount == 0
    assert "moved or changed" in ui.statusLabel.text and "Analyze it again" in ui.statusLabel.text
    assert {(foreground, label) for _, foreground, label in layers(opened)} == {(None, None)}
    ct.SetOrigin(*origin)
    assert ui.findingLabel.text == found and layers(opened)[0][1] and ui.statusLabel.text == "Ready."
    slicer.util.arrayFromVolume(ct)[:] += 50
    slicer.util.arrayFromVolumeModified(ct)
    assert ui.findingLabel.text == ""
    analyze(opened)
    assert ui.findingLabel.text and ui.statusLabel.text == "Done."


def test_a_transform_hardened_in_the_ct_and_then_in_all_that_was_found_brings_it_back(opened: Any) -> None:
    analyze(opened)
    widget, ct, found = opened.widget, opened.ct, opened.widget.ui.findingLabel.text
    study, scene = find_study_nodes(ct), slicer.mrmlScene
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = np.eye(4)
    matrix[2, 3] = -400
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    ct.SetAndObserveTransformNodeID(transform.GetID())
    widget.exit()
    ct.HardenTransform()
    widget.enter()
    assert widget.ui.findingLabel.text == "" and "moved or changed" in widget.ui.statusLabel.text
    widget.exit()
    for node in (study.lungs, study.lesions, study.relevance_ct, study.relevance_lesions):
        node.HardenTransform()
    widget.enter()
    assert widget.ui.findingLabel.text == found
    widget.panel._on_slice(0, 0)
    shown = slicer.mrmlScene.GetNodeByID(layers(opened)[0][1])
    np.testing.assert_allclose(ijk_to_ras(shown), ijk_to_ras(ct), atol=1e-3)


def test_a_ct_that_is_moved_in_another_module_takes_its_overlays_along_or_loses_them(opened: Any) -> None:
    analyze(opened)
    widget, ct, found = opened.widget, opened.ct, opened.widget.ui.findingLabel.text
    shown = layers(opened)
    overlays = [slicer.mrmlScene.GetNodeByID(name) for name in shown[0][1:]]
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    widget.exit()
    ct.SetAndObserveTransformNodeID(transform.GetID())
    assert [node.GetTransformNodeID() for node in overlays] == [transform.GetID()] * 2 and layers(opened) == shown
    origin = ct.GetOrigin()
    ct.SetOrigin(origin[0] + 50, *origin[1:])
    assert {(foreground, label) for _, foreground, label in layers(opened)} == {(None, None)}
    ct.SetOrigin(*origin)
    widget.enter()
    assert layers(opened) == shown and widget.ui.findingLabel.text == found
    widget.exit()
    slicer.mrmlScene.RemoveNode(ct)
    widget.enter()
    assert widget.ui.statusLabel.text == "Choose a chest CT."


def test_a_ct_that_is_changed_while_it_is_analyzed_is_told(opened: Any) -> None:
    ui = opened.widget.ui
    ui.analyzeButton.click()
    slicer.util.arrayFromVolume(opened.ct)[:] = 40
    opened.ct.GetImageData().Modified()
    assert opened.spin(lambda: not opened.widget.panel.running, PATIENCE_S)
    assert "was changed while it was analyzed" in ui.statusLabel.text
    assert ui.findingLabel.text == "" and find_study_nodes(opened.ct) is None


def test_images_that_were_removed_are_told_and_the_findings_go_with_them(opened: Any) -> None:
    analyze(opened)
    ui = opened.widget.ui
    slicer.mrmlScene.RemoveNode(find_study_nodes(opened.ct).relevance_lesions)
    opened.widget.exit()
    opened.widget.enter()
    assert "were removed" in ui.statusLabel.text and ui.findingLabel.text == "" and ui.slicesTable.rowCount == 0
    assert {(foreground, label) for _, foreground, label in layers(opened)} == {(None, None)}
    analyze(opened)
    assert ui.findingLabel.text and ui.statusLabel.text == "Done."


def test_a_ct_that_is_gone_is_not_kept_in_memory(opened: Any) -> None:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Large")
    parameters = opened.widget.logic.getParameterNode()
    parameters.inputVolume = node
    gone = []
    node.AddObserver("DeleteEvent", lambda *_: gone.append(True))
    parameters.inputVolume = opened.ct
    slicer.mrmlScene.RemoveNode(node)
    del node
    gc.collect()
    assert gone


def test_what_is_no_choice_of_display_leaves_the_views_to_the_user(opened: Any) -> None:
    analyze(opened)
    ui, shown = opened.widget.ui, layers(opened)
    ui.restoreButton.click()
    theirs = layers(opened)
    assert theirs != shown
    parameters = opened.widget.logic.getParameterNode()
    parameters.device = "cpu"
    parameters.explain = "not COVID-19"
    assert layers(opened) == theirs
    ui.analyzeButton.click()
    ui.analyzeButton.click()
    assert ui.statusLabel.text == "Cancelled." and layers(opened) == theirs
    parameters.relevanceOpacity = 0.4
    assert layers(opened) == shown


def test_lesions_are_no_lung_mask_to_choose(opened: Any) -> None:
    analyze(opened)
    selector = opened.widget.ui.lungMaskSelector._wrapped
    names = [selector.itemText(n) for n in range(selector.count())]
    assert "Phantom lungs" in names and "Phantom lesions" not in names


def test_a_scene_that_is_added_leaves_the_chosen_ct_and_its_lungs(
    opened: Any, chest_phantom: Any, tmp_path: Path, new_scene: Any
) -> None:
    scene, parameters = slicer.mrmlScene, opened.widget.logic.getParameterNode()
    second = add_ct(scene, chest_phantom(spacing=(4.0, 4.0, 8.0)), "Second")
    mask = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Lungs of the second")
    parameters.inputVolume = second
    parameters.lungMask = mask
    other = new_scene()
    other.AddNewNodeByClass("vtkMRMLTextNode", "Note")
    assert other.WriteToMRB(str(tmp_path / "note.mrb"), None)
    assert scene.ReadFromMRB(str(tmp_path / "note.mrb"), False)
    parameters = opened.widget.logic.getParameterNode()
    assert parameters.inputVolume is second and parameters.lungMask is mask
    assert opened.widget.ui.inputSelector.currentNode() is second


def test_keys_go_through_the_slices_and_on_to_the_next_widget(opened: Any) -> None:
    analyze(opened)
    table = opened.widget.ui.slicesTable._wrapped
    logic = opened.slice_logics.GetItemAsObject(0)
    at_first = logic.GetSliceNode().GetSliceToRAS().GetElement(2, 3)
    table.setCurrentCell(0, 0)  # as the focus does
    assert logic.GetSliceNode().GetSliceToRAS().GetElement(2, 3) == at_first
    press = QtGui.QKeyEvent
    for kind in (QtCore.QEvent.Type.KeyPress, QtCore.QEvent.Type.KeyRelease):
        QtWidgets.QApplication.sendEvent(table, press(kind, QtCore.Qt.Key.Key_Down, QtCore.Qt.KeyboardModifier(0)))
    assert table.currentRow() == 1 and logic.GetSliceNode().GetSliceToRAS().GetElement(2, 3) != at_first
    for widget in (table, opened.widget.ui.measurementsTable._wrapped):
        assert not widget.tabKeyNavigation()


def test_a_ct_that_is_removed_takes_its_layers_out_of_the_views(opened: Any) -> None:
    analyze(opened)
    assert layers(opened)[0][1]
    display = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode").GetDisplayNode()
    slicer.mrmlScene.RemoveNode(opened.ct)
    assert opened.widget.ui.statusLabel.text == "Choose a chest CT."
    assert {(foreground, label) for _, foreground, label in layers(opened)} == {(None, None)}
    assert not slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLColorLegendDisplayNode").GetVisibility()
    assert not display.GetVisibility3D()


def test_an_analysis_whose_text_is_lost_blocks_nothing(opened: Any) -> None:
    analyze(opened)
    analysis_node(opened.ct).SetText("lost")
    opened.widget.exit()
    opened.widget.enter()
    assert opened.widget.ui.findingLabel.text == "" and opened.widget.ui.analyzeButton.enabled
    analyze(opened)
    assert opened.widget.ui.findingLabel.text


def test_a_log_is_that_of_the_last_analysis(opened: Any) -> None:
    ui = opened.widget.ui
    ui.analyzeButton.click()
    assert opened.spin(lambda: bool(children()), PATIENCE_S)
    for process in children():
        process.kill()
    assert opened.spin(lambda: not opened.widget.panel.running, 5) and ui.logButton.visible
    opened.ct.SetAndObserveImageData(None)
    ui.analyzeButton.click()
    assert "holds no image" in ui.statusLabel.text and not ui.logButton.visible


def test_a_scene_that_is_read_in_another_module_brings_its_choices(opened: Any, tmp_path: Path) -> None:
    parameters = opened.widget.logic.getParameterNode()
    parameters.device = "cpu"
    archive = saved_scene(tmp_path)
    parameters.device = "auto"
    opened.widget.exit()
    opened.widget.parent.isEntered = False
    slicer.mrmlScene.Clear()
    assert slicer.mrmlScene.ReadFromMRB(str(archive))
    opened.widget.enter()
    assert opened.widget.logic.getParameterNode().device == "cpu"


def test_what_a_program_analyzes_is_shown_at_once_where_the_panel_is_open(opened: Any, tiny_bundle: Path) -> None:
    assert opened.widget.ui.findingLabel.text == ""
    opened.widget.logic.analyze(opened.ct, options=["--bundle", str(tiny_bundle), "--explain", "not-covid"])
    analysis = kept_analysis(opened.ct)
    assert analysis is not None
    assert f"{analysis['diagnosis']['probability']:.3f}" in opened.widget.ui.findingLabel.text
    assert "the score against COVID-19" in opened.widget.ui.findingLabel.text
    legend = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLColorLegendDisplayNode")
    assert legend.GetTitleText() == "Relevance against COVID-19"


def test_what_a_program_analyzed_is_shown_on_the_way_back(opened: Any, tiny_bundle: Path) -> None:
    widget = opened.widget
    assert widget.ui.findingLabel.text == ""
    widget.exit()
    widget.logic.analyze(opened.ct, options=["--bundle", str(tiny_bundle)])
    widget.enter()
    assert widget.ui.findingLabel.text and widget.ui.slicesTable.rowCount > 0


def test_a_scene_that_is_read_while_the_panel_is_open_shows_its_findings(opened: Any, tmp_path: Path) -> None:
    analyze(opened)
    ui, scene = opened.widget.ui, slicer.mrmlScene
    found, rows = ui.findingLabel.text, ui.slicesTable.rowCount
    opened.widget.logic.getParameterNode().relevanceOpacity = 0.35
    archive = saved_scene(tmp_path)
    scene.Clear()
    assert ui.findingLabel.text == ""
    assert scene.ReadFromMRB(str(archive))
    assert opened.widget.logic.getParameterNode().inputVolume.GetName() == "Phantom"
    assert ui.findingLabel.text == found and ui.slicesTable.rowCount == rows
    assert {label for _, _, label in layers(opened)} == {find_study_nodes(first_scan(scene)).lesions.GetID()}


def test_what_is_explained_and_where_files_stay_can_be_chosen(opened: Any, tmp_path: Path) -> None:
    parameters = opened.widget.logic.getParameterNode()
    opened.widget.ui.explainComboBox.currentText = "not COVID-19"
    parameters.keepFiles = tmp_path
    opened.ct.SetName("A/B: chest")
    analyze(opened)
    analysis = kept_analysis(opened.ct)
    assert analysis is not None and analysis["relevance"]["target"] == "not-covid"
    assert analysis["input"]["name"] == "A_B_ chest.nrrd"
    assert (tmp_path / "A_B_ chest" / "analysis.json").is_file()
    analyze(opened)  # another scan may have the same name: nothing is replaced
    kept = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert kept == ["A_B_ chest", "A_B_ chest-2"]
    parameters.keepFiles = tmp_path / "missing"
    analyze(opened)
    assert "does not exist" in opened.widget.ui.statusLabel.text


def test_weights_from_a_zip_file_serve_too(
    opened: Any, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COVID_CT_CACHE", str(tmp_path / "cache"))
    archive = shutil.make_archive(str(tmp_path / "weights"), "zip", tiny_bundle)
    opened.widget.logic.getParameterNode().bundle = Path(archive)
    analyze(opened)
    assert opened.widget.ui.statusLabel.text == "Done."
    opened.widget.ui.removeButton.click()
    assert "Removed" in opened.widget.ui.checkLabel.text and not list((tmp_path / "cache").iterdir())


def test_the_legend_is_that_of_the_heatmap_shown(opened: Any) -> None:
    analyze(opened)
    ui = opened.widget.ui

    def legends() -> set[str]:
        scene, found = slicer.mrmlScene, set()
        for n in range(scene.GetNumberOfNodesByClass("vtkMRMLColorLegendDisplayNode")):
            legend = scene.GetNthNodeByClass(n, "vtkMRMLColorLegendDisplayNode")
            if legend.GetVisibility():
                found.add(legend.GetDisplayableNode().GetID())
        return found

    assert legends() == {layers(opened)[0][1]}
    ui.branchComboBox.currentText = "Lesion mask"
    assert legends() == {layers(opened)[0][1]}
    ui.legendCheckBox.checked = False
    assert legends() == set()
    ui.legendCheckBox.checked = True
    ui.relevanceCheckBox.checked = False
    assert legends() == set()


def test_surfaces_can_be_hidden(opened: Any) -> None:
    analyze(opened)
    display = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode").GetDisplayNode()
    assert display.GetVisibility3D()
    opened.widget.ui.surfacesCheckBox.checked = False
    assert not display.GetVisibility3D()


def test_the_tab_key_goes_through_the_panel_from_top_to_bottom(opened: Any) -> None:
    widget, order = opened.widget.ui.inputSelector._wrapped, []
    first = widget
    while widget is not first or not order:
        if widget.objectName() and widget.isVisible() and widget.focusPolicy() & QtCore.Qt.FocusPolicy.TabFocus:
            order.append(widget.mapTo(widget.window(), QtCore.QPoint(0, 0)).toTuple()[::-1])
        widget = widget.nextInFocusChain()
    assert len(order) > 20 and order == sorted(order)


def test_packages_come_from_slicer_s_helpers_or_from_a_folder(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from CovidCTDiagnosisLib.panel.slicer_application import SlicerInstaller

    calls: list[Any] = []
    monkeypatch.setattr(slicer.util, "pip_install", calls.append, raising=False)
    monkeypatch.setattr(slicer.util, "pip_uninstall", calls.append, raising=False)
    logic = SimpleNamespace(installTorch=lambda askConfirmation: calls.append("torch"))
    monkeypatch.setitem(sys.modules, "PyTorchUtils", SimpleNamespace(PyTorchUtilsLogic=lambda: logic))
    SlicerInstaller().install(["torch>=2", "SimpleITK"])
    SlicerInstaller(Path("wheels")).install(["torch>=2", "SimpleITK"])
    SlicerInstaller().uninstall(["SimpleITK"])
    from_folder = ["--no-index", "--find-links", "wheels", "torch>=2", "SimpleITK"]
    assert calls == ["torch", ["SimpleITK"], from_folder, ["SimpleITK"]]
    monkeypatch.delitem(sys.modules, "PyTorchUtils")
    with pytest.raises(UsageError, match="extension PyTorch"):
        SlicerInstaller().install(["torch"])


def test_the_self_test_passes_on_phantom_and_sample(host: Any, pictures: Path) -> None:
    host.show_views(590)
    host.testing = True
    host.module.CovidCTDiagnosisTest().runTest()
    host.open()  # on the sample, which comes last
    assert host.widget.ui.findingLabel.text and host.widget.ui.slicesTable.rowCount == 20
    host.fit_views()
    host.widget.ui.slicesTable._wrapped.cellClicked.emit(0, 0)
    picture = pictures / "panel.png"
    assert host.shot(picture) and len(np.unique(np.asarray(Image.open(picture)))) > 50
    host.close()


def test_the_samples_are_registered(host: Any) -> None:
    import SampleData

    host.module.register_sample_data()
    checksum = SampleData.registered["CTChest"]["checksums"]
    assert checksum.startswith("SHA256:") and SampleData.registered["CTChest"]["uris"].endswith(checksum[7:])
    source = SampleData.registered["ChestPhantom"]
    phantom = source["customDownloader"](source)  # as Slicer's button does
    assert phantom.GetName() == "ChestPhantom" and phantom.GetScene() is slicer.mrmlScene


def test_the_computer_is_checked_and_every_line_has_its_remedy(opened: Any, tmp_path: Path) -> None:
    ui = opened.widget.ui
    ui.checkButton.click()
    assert opened.spin(lambda: "Time" in ui.checkLabel.text and not children(), PATIENCE_S), ui.checkLabel.text
    for name in ("Packages", "Graphics card", "Memory", "Disk", "Weights"):
        assert f"<b>{name}</b>" in ui.checkLabel.text
    assert not opened.asked  # nothing is installed for it
    opened.widget.logic.getParameterNode().bundle = tmp_path / "gone"
    ui.checkButton.click()
    assert opened.spin(lambda: "✘ <b>Weights</b>" in ui.checkLabel.text, PATIENCE_S), ui.checkLabel.text


def test_the_plot_has_a_value_for_every_slice(opened: Any) -> None:
    analyze(opened)
    chart = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLPlotChartNode")
    assert chart.GetNumberOfPlotSeriesNodes() == 3
    table = chart.GetNthPlotSeriesNode(0).GetTableNode()
    analysis = kept_analysis(opened.ct)
    assert analysis is not None and table.GetNumberOfRows() == analysis["input"]["size"][2]
    top = analysis["relevance"]["slices"][0]
    assert float(table.GetCellText(top["index"], 1)) == pytest.approx(top["relevance_ct"], rel=1e-3)
    areas = [float(table.GetCellText(k, 3)) for k in range(table.GetNumberOfRows())]
    lesions = next(m for m in analysis["measurements"]["lesions"] if m["class"] == "any" and m["side"] == "both")
    assert sum(areas) * 0.8 == pytest.approx(lesions["volume_ml"], rel=0.01)  # slices of 8 mm


def test_a_ct_that_its_transform_bends_is_refused_at_once(opened: Any) -> None:
    """As Slicer's DICOM reader leaves one with irregular slices: on a regular grid, with a grid of displacements."""
    ui, spline = opened.widget.ui, vtk.vtkThinPlateSplineTransform()
    spline.SetBasisToR()
    low, high = np.array(opened.ct.GetOrigin()) - 10, np.array(opened.ct.GetOrigin()) + 300
    corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
    before, after = vtk.vtkPoints(), vtk.vtkPoints()
    for point in [*corners, corners.mean(0)]:
        before.InsertNextPoint(point)
    for point in [*corners, corners.mean(0) + np.array([0, 0, 25])]:
        after.InsertNextPoint(point)
    spline.SetSourceLandmarks(before)
    spline.SetTargetLandmarks(after)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    transform.SetAndObserveTransformToParent(spline)
    opened.ct.SetAndObserveTransformNodeID(transform.GetID())
    ui.analyzeButton.click()
    assert "A transform bends Phantom" in ui.statusLabel.text and not children()
    assert not opened.widget.panel.running
    spline.SetTargetLandmarks(before)  # and one that moves nothing is no obstacle
    assert not is_bent(opened.ct)


@pytest.mark.parametrize("singletons", [True, False])
def test_what_is_of_the_computer_outlives_the_scene_and_lungs_of_one_ct_are_not_those_of_another(
    opened: Any, chest_phantom: Any, tiny_bundle: Path, singletons: bool
) -> None:
    logic = opened.widget.logic
    parameters = logic.getParameterNode()
    parameters.device, parameters.relevanceOpacity = "cpu", 0.35
    lungs = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    parameters.lungMask = lungs
    assert logic.getParameterNode().lungMask is lungs
    other = add_ct(slicer.mrmlScene, chest_phantom(spacing=(8.0, 8.0, 8.0)), "Other")
    parameters.inputVolume = other
    assert logic.getParameterNode().lungMask is None
    parameters.inputVolume = None
    parameters.lungMask = lungs  # chosen before the CT
    parameters.inputVolume = other
    assert logic.getParameterNode().lungMask is lungs
    opened.widget.exit()
    slicer.mrmlScene.RemoveNode(other)
    opened.widget.enter()
    assert logic.getParameterNode().inputVolume is opened.ct and logic.getParameterNode().lungMask is None
    slicer.mrmlScene.Clear(singletons)
    parameters = logic.getParameterNode()
    assert (parameters.bundle, parameters.device) == (tiny_bundle, "cpu")
    assert parameters.relevanceOpacity == 0.6


def test_what_is_of_the_computer_outlives_a_binding_of_slicer_5_10_that_fills_the_node_anew(opened: Any) -> None:
    parameters = opened.widget.logic.getParameterNode()
    parameters.device = "cpu"
    node = parameters.parameterNode

    def fill(caller: Any, event: Any) -> None:
        if not node.GetParameter("device"):
            node.SetParameter("device", "auto")

    node.AddObserver("ModifiedEvent", fill)
    slicer.mrmlScene.Clear(False)
    assert opened.widget.logic.getParameterNode().device == "cpu"


def test_a_view_that_a_layout_adds_shows_the_study_and_the_others_stay(opened: Any) -> None:
    widget = opened.widget
    early = opened.add_view("Early")
    assert early.GetSliceCompositeNode().GetForegroundVolumeID() is None  # nothing was analyzed yet
    analyze(opened)
    (shown,) = set(layers(opened))
    opened.slice_logics.GetItemAsObject(0).GetSliceCompositeNode().SetForegroundVolumeID(None)
    left = layers(opened)
    composite = opened.add_view("Slice4").GetSliceCompositeNode()
    assert (composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID(), composite.GetLabelVolumeID()) == shown
    assert all(shown) and layers(opened) == left  # what the user turned off stays off
    legend = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLColorLegendDisplayNode")
    legend.SetVisibility(False)
    opened.add_view("Slice6")
    assert not legend.GetVisibility()
    # One that comes while another module is open shows the study as soon as this one is opened again.
    widget.exit()
    later = opened.add_view("Slice5").GetSliceCompositeNode()
    assert later.GetForegroundVolumeID() is None
    widget.enter()
    assert later.GetForegroundVolumeID() == shown[1] and layers(opened) == left
    widget.ui.restoreButton.click()
    assert composite.GetForegroundVolumeID() is None and composite.GetBackgroundVolumeID() is None
    widget.cleanup()
    assert not opened.layout_manager.slots


def test_coming_back_to_the_panel_leaves_the_views_alone(opened: Any) -> None:
    widget = opened.widget
    assert not widget.ui.restoreButton.enabled
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Somebody's")
    for n in range(3):
        opened.slice_logics.GetItemAsObject(n).GetSliceCompositeNode().SetLabelVolumeID(other.GetID())
    before = layers(opened)
    analyze(opened)
    selector = widget.ui.inputSelector._wrapped
    assert [selector.itemText(n) for n in range(selector.count())] == ["Phantom"]  # relevance is no CT
    assert widget.ui.restoreButton.enabled
    widget.exit()
    for n in range(3):
        opened.slice_logics.GetItemAsObject(n).GetSliceCompositeNode().SetForegroundVolumeID(None)
    left = layers(opened)
    widget.enter()
    assert layers(opened) == left and widget.ui.findingLabel.text
    parameters = widget.logic.getParameterNode()
    parameters.relevanceOpacity = 0.3
    assert layers(opened) != left
    parameters.showRelevance = parameters.showLesions = False
    parameters.smoothingMm = 1.0
    widget.ui.restoreButton.click()  # what was there before the study, not our own without its overlays
    assert layers(opened) == before


def test_a_result_that_cannot_be_shown_is_told_and_leaves_no_files(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise MemoryError

    widget = opened.widget
    monkeypatch.setattr(sys.modules["CovidCTDiagnosisLib.panel.panel"], "put_study", fail)
    folders: list[Path] = []
    launch = widget._launch
    monkeypatch.setattr(
        widget.panel, "_launch", lambda arguments: folders.append(Path(arguments[1]).parents[1]) or launch(arguments)
    )
    analyze(opened)
    assert "cannot be shown (MemoryError)" in widget.ui.statusLabel.text and widget.ui.logButton.visible
    assert widget.ui.analyzeButton.text == "Analyze" and folders and not folders[0].exists()


def test_a_panel_that_could_not_be_set_up_can_be_reloaded(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slicer.util, "loadUI", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        host.open()
    host.widget.cleanup()


def test_cleaning_up_unbinds_the_panel(opened: Any) -> None:
    widget = opened.widget
    widget.cleanup()
    widget.logic.getParameterNode().relevanceOpacity = 0.25
    (slider,) = (
        w for w in vars(widget.ui).values() if w._wrapped.property("SlicerParameterName") == "relevanceOpacity"
    )
    assert slider.value == 0.6
