"""The findings in the panel: probability, warnings, measurements, and the slices in order of relevance."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import qt

from CovidCTDiagnosisLib.panel.translation import _
from CovidCTDiagnosisLib.scene.nodes import StudyNodes
from CovidCTDiagnosisLib.scene.places import slice_position_mm
from CovidCTDiagnosisLib.scene.report import COLUMNS, explained_score, lungs_source, measurement_rows

SLICES = 20
"""So many of the most relevant slices are listed."""
_LUNGS = {"network": "", "lungmask": _("; lungs by lungmask"), "mask": _("; lungs from the mask given")}
SLICE_COLUMNS = ("Slice", "S, mm", "Relevance of the CT", "Relevance of the lesions")


def show_findings(ui: Any, study: tuple[StudyNodes, dict[str, Any]] | None) -> None:
    """Fill the section of findings with a study's nodes and analysis; None empties it."""
    analysis = None if study is None else study[1]
    ui.findingLabel.text = "" if analysis is None else _finding(analysis)
    ui.warningsLabel.text = "" if analysis is None else _warnings(analysis["warnings"])
    ui.warningsLabel.visible = bool(ui.warningsLabel.text)
    _fill(ui.measurementsTable, COLUMNS, [] if analysis is None else measurement_rows(analysis))
    _fill(ui.slicesTable, SLICE_COLUMNS, [] if study is None else _slice_rows(*study))


def slice_index(analysis: dict[str, Any], row: int) -> int:
    """Which slice of the CT a row of the list stands for."""
    return int(analysis["relevance"]["slices"][row]["index"])


def _finding(analysis: dict[str, Any]) -> str:
    diagnosis, bundle = analysis["diagnosis"], analysis["bundle"]
    finding = _("<b>{label}</b>: probability {probability:.3f} (called COVID-19 from {threshold:.3f} on)").format(
        label=escape(diagnosis["label"]), probability=diagnosis["probability"], threshold=diagnosis["threshold"]
    )
    made_by = _("Weights: {name} {version}").format(name=escape(bundle["name"]), version=escape(bundle["version"]))
    explained = _("Heatmaps explain {score}").format(score=_(explained_score(analysis)))
    return f"{finding}<br>{explained}<br>{made_by}{_LUNGS[lungs_source(analysis)]}"


def _warnings(warnings: Sequence[str]) -> str:
    return "<br>".join(f"⚠ {escape(warning)}" for warning in warnings)


def _slice_rows(nodes: StudyNodes, analysis: dict[str, Any]) -> list[tuple[str, ...]]:
    entries = analysis["relevance"]["slices"][:SLICES]
    return [
        (
            str(e["index"]),
            f"{slice_position_mm(nodes, analysis, e['index']):.1f}",
            f"{e['relevance_ct']:.3g}",
            f"{e['relevance_lesions']:.3g}",
        )
        for e in entries
    ]


def _fill(table: Any, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table.setColumnCount(len(columns))
    table.setHorizontalHeaderLabels([_(column) for column in columns])
    table.setRowCount(len(rows))
    table.verticalHeader().visible = False
    for number, row in enumerate(rows):
        for column, text in enumerate(row):
            table.setItem(number, column, qt.QTableWidgetItem(text))
    table.resizeColumnsToContents()
