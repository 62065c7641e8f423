"""What an analysis says, as nodes: a table of measurements, and texts on where it comes from and how to cite it."""

from __future__ import annotations

import json
from typing import Any

import slicer
import vtk

from CovidCTDiagnosisLib.scene.nodes import find_node, find_study_nodes, ijk_to_ras, node_of

_ANALYSIS, _MEASUREMENTS, _METHODS = "analysis", "measurements", "methods"

_NODES = {_ANALYSIS: "vtkMRMLTextNode", _MEASUREMENTS: "vtkMRMLTableNode", _METHODS: "vtkMRMLTextNode"}

_TARGETS = {
    "covid": "the COVID-19 score",
    "not-covid": "the score against COVID-19",
    "difference": "the difference of the scores for and against COVID-19",
}

_CALLS = {"covid": "for COVID-19", "not-covid": "against COVID-19", "difference": "for minus against COVID-19"}

_SEGMENTED = {
    "network": "Lungs and lesions were segmented",
    "lungmask": "Lungs were segmented with the package lungmask, lesions in them",
    "mask": "Lungs were given as a mask, lesions in them were segmented",
}

COLUMNS = ("Finding", "Side", "Volume, ml", "Share of lung, %", "Mean HU")


def explained_score(analysis: dict[str, Any]) -> str:
    """What the relevance of an analysis explains, in words."""
    return _TARGETS[analysis["relevance"]["target"]]


def explained_call(analysis: dict[str, Any]) -> str:
    """What relevance speaks for, in the few words that a legend has room for."""
    return _CALLS[analysis["relevance"]["target"]]


def finding_line(analysis: dict[str, Any]) -> str:
    """Label, probability and threshold, for the head of a picture."""
    diagnosis = analysis["diagnosis"]
    return (
        f"{diagnosis['label']}  ·  probability {diagnosis['probability']:.3f}, threshold {diagnosis['threshold']:.3f}"
    )


def lungs_source(analysis: dict[str, Any]) -> str:
    """Who drew the lungs: ``network`` (also where nothing is said), ``lungmask``, or a ``mask`` that was given."""
    return str(analysis["settings"].get("lungs", {}).get("source", "network"))


def measurement_rows(analysis: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Lungs and lesions, a row each side, as text for `COLUMNS`."""
    measured = analysis["measurements"]
    rows = [
        ("Lungs", side, f"{lung['volume_ml']:.1f}", "", _number(lung["mean_hu"]))
        for side, lung in measured["lungs"].items()
    ]
    rows += [
        (
            "Any lesion" if lesion["class"] == "any" else lesion["class"].capitalize(),
            lesion["side"],
            f"{lesion['volume_ml']:.1f}",
            _number(lesion["percent_of_lung"]),
            _number(lesion["mean_hu"]),
        )
        for lesion in measured["lesions"]
    ]
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def keep_analysis(ct_node: slicer.vtkMRMLScalarVolumeNode, analysis: dict[str, Any]) -> list[slicer.vtkMRMLNode]:
    """Put an analysis into the scene, in the place of an earlier one of the same CT.

    Returns:
        The nodes: all of analysis.json, the table of measurements, and a paragraph for a paper's methods.
    """
    document = node_of(ct_node, _ANALYSIS, "vtkMRMLTextNode")
    document.SetName(f"{ct_node.GetName()} analysis")
    document.SetText(json.dumps(analysis, indent=1))
    table = node_of(ct_node, _MEASUREMENTS, "vtkMRMLTableNode")
    table.SetName(f"{ct_node.GetName()} measurements")
    table.RemoveAllColumns()
    for name, cells in zip(COLUMNS, zip(*measurement_rows(analysis), strict=True), strict=True):
        column = vtk.vtkStringArray()
        column.SetName(name)
        for cell in cells:
            column.InsertNextValue(cell)
        table.AddColumn(column)
    methods = node_of(ct_node, _METHODS, "vtkMRMLTextNode")
    methods.SetName(f"{ct_node.GetName()} methods")
    methods.SetText(methods_paragraph(analysis))
    return [document, table, methods]


def analysis_node(ct_node: slicer.vtkMRMLScalarVolumeNode) -> slicer.vtkMRMLTextNode | None:
    """The text node that holds a CT's analysis, or None."""
    return find_node(ct_node, _ANALYSIS, "vtkMRMLTextNode")


def kept_analysis(ct_node: slicer.vtkMRMLScalarVolumeNode) -> dict[str, Any] | None:
    """The analysis of a CT that the scene holds, or None; also where its text was lost or changed by hand."""
    node = analysis_node(ct_node)
    try:
        return None if node is None else json.loads(node.GetText() or "null")
    except ValueError:
        return None


def kept_state(ct_node: slicer.vtkMRMLScalarVolumeNode) -> str:
    """Tells apart which analysis of a CT the scene holds, if any, and states of the CT's voxels and of all places."""
    node, image = analysis_node(ct_node), ct_node.GetImageData()
    if node is None:
        return ""
    found = find_study_nodes(ct_node)
    volumes = [ct_node] if found is None else [ct_node, *found.images]
    places = [(volume.GetTransformNodeID(), ijk_to_ras(volume).ravel().tolist()) for volume in volumes]
    return f"{node.GetID()} {node.GetMTime()} {image and image.GetMTime()} {places}"


def forget_analysis(ct_node: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Take an analysis out of the scene, so that no finding of it is shown; its images stay."""
    for role, class_name in _NODES.items():
        node = find_node(ct_node, role, class_name)
        if node is not None:
            ct_node.GetScene().RemoveNode(node)


def methods_paragraph(analysis: dict[str, Any]) -> str:
    """How the findings were made, ready to be cited."""
    bundle, versions, device = analysis["bundle"], analysis["versions"], analysis["device"]
    return (
        f"{_SEGMENTED[lungs_source(analysis)]} and the probability of COVID-19 was computed with "
        f"CovidCTDiagnosis "
        f"{versions.get('covid-ct-diagnosis', '')} and its weights {bundle['name']} {bundle['version']} (PyTorch "
        f"{versions['torch']}, {device['name']}). The probability is that of a gated two-branch encoder with spatial "
        f"pyramid pooling and NetVLAD, pre-trained in a conditional variational autoencoder, after Platt scaling; a "
        f"scan is called COVID-19 from {analysis['diagnosis']['threshold']:.3f} on. Heatmaps show composite layer-wise "
        f"relevance propagation from {explained_score(analysis)}. For research, not for diagnosis."
    )
