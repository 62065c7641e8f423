"""Relevance and lesions along the patient's long axis, as a plot."""

from __future__ import annotations

import numpy as np
import slicer

from CovidCTDiagnosisLib.scene.nodes import node_of
from CovidCTDiagnosisLib.study import Study

_TABLE, _CHART = "slice table", "slice chart"
COLUMNS = ("Slice", "Relevance of the CT", "Relevance of the lesions", "Lesion area, cm2")
_COLORS = {COLUMNS[1]: (0.84, 0.37, 0.0), COLUMNS[2]: (0.0, 0.45, 0.70), COLUMNS[3]: (0.0, 0.62, 0.45)}


def plot_slices(ct_node: slicer.vtkMRMLScalarVolumeNode, study: Study) -> list[slicer.vtkMRMLNode]:
    """Put the plot into the scene, in the place of an earlier one of the same CT.

    Each curve is scaled to its largest value, as relevance and area have no unit in common; the table has the values.

    Returns:
        Table, series and chart.
    """
    table = node_of(ct_node, _TABLE, "vtkMRMLTableNode")
    table.SetName(f"{ct_node.GetName()} slices")
    values = slice_values(study)
    scaled = [values[0], *(column / max(column.max(), 1e-30) for column in values[1:])]
    names = [COLUMNS[0], *(f"{name}, share of largest" for name in COLUMNS[1:])]
    slicer.util.updateTableFromArray(table, [*values, *scaled[1:]], [*COLUMNS, *names[1:]])
    chart = node_of(ct_node, _CHART, "vtkMRMLPlotChartNode")
    chart.SetName(f"{ct_node.GetName()} relevance by slice")
    chart.SetTitle("Relevance and lesions by slice")
    chart.SetXAxisTitle("slice")
    chart.SetYAxisTitle("share of the largest value")
    chart.RemoveAllPlotSeriesNodeIDs()
    series = []
    for name, shown in zip(COLUMNS[1:], names[1:], strict=True):
        node = node_of(ct_node, f"slice series {name}", "vtkMRMLPlotSeriesNode")
        node.SetName(name)
        node.SetAndObserveTableNodeID(table.GetID())
        node.SetXColumnName(COLUMNS[0])
        node.SetYColumnName(shown)
        node.SetPlotType(node.PlotTypeScatter)
        node.SetMarkerStyle(node.MarkerStyleNone)
        node.SetColor(*_COLORS[name])
        chart.AddAndObservePlotSeriesNodeID(node.GetID())
        series.append(node)
    return [table, *series, chart]


def slice_values(study: Study) -> list[np.ndarray]:
    """One array per column of `COLUMNS`, a value for each slice of the CT as analysis.json counts them."""
    grid, lesions = study.grid, study.image("lesions").voxels > 0
    across = [axis for axis in range(3) if axis != grid.long_axis]
    pixel_cm2 = float(np.prod([grid.spacing[2 - axis] for axis in across])) / 100
    areas = lesions.sum(axis=tuple(across)) * pixel_cm2
    relevance = np.zeros((2, len(areas)))
    for entry in study.analysis["relevance"]["slices"]:
        relevance[:, entry["index"]] = entry["relevance_ct"], entry["relevance_lesions"]
    return [np.arange(len(areas), dtype=float), *relevance, areas]
