"""Whether what was found in a CT still belongs to it, as the scene holds both now."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import slicer

from CovidCTDiagnosisLib.scene.nodes import StudyNodes, find_study_nodes, ijk_to_ras, on_same_grid
from CovidCTDiagnosisLib.scene.report import analysis_node, kept_analysis

_VOXELS, _GRID = "CovidCTDiagnosis.Voxels", "CovidCTDiagnosis.Grid"
_SAMPLED = (4, 8, 8)
"""Every so many voxels along (k, j, i) tell a CT from another one: all would take too long while a slider moves."""


def note_ct(ct_node: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Note beside its analysis which CT it is of: voxels and grid."""
    node = analysis_node(ct_node)
    if node is not None:
        node.SetAttribute(_VOXELS, _voxels(ct_node))
        node.SetAttribute(_GRID, " ".join(map(repr, ijk_to_ras(ct_node).ravel().tolist())))


def is_changed(ct_node: slicer.vtkMRMLScalarVolumeNode) -> bool:
    """Whether the CT is no longer what was analyzed: other voxels, or another place than what was found in it.

    A transform moves both. One that is hardened in the CT alone, or a new origin of it, moves the CT away.
    """
    node, nodes = analysis_node(ct_node), find_study_nodes(ct_node)
    if node is None or nodes is None:
        return False
    if ct_node.GetImageData() is None or not on_same_grid(nodes.lungs, ct_node):
        return True
    noted = node.GetAttribute(_VOXELS)  # scenes of older versions have none
    return bool(noted) and noted != _voxels(ct_node)


def present_study(ct_node: slicer.vtkMRMLScalarVolumeNode | None) -> tuple[StudyNodes, dict[str, Any]] | None:
    """Nodes and analysis of a CT as it is now, or None."""
    if ct_node is None or is_changed(ct_node):
        return None
    nodes, analysis = find_study_nodes(ct_node), kept_analysis(ct_node)
    return None if nodes is None or analysis is None else (nodes, analysis)


def analyzed_grid(ct_node: slicer.vtkMRMLScalarVolumeNode) -> np.ndarray:
    """4 x 4 matrix from (i, j, k, 1) to RAS mm as it was when the CT was analyzed; transforms may be hardened since."""
    node = analysis_node(ct_node)
    noted = node.GetAttribute(_GRID) if node is not None else None
    return np.array(noted.split(), float).reshape(4, 4) if noted else ijk_to_ras(ct_node)


def _voxels(ct_node: slicer.vtkMRMLScalarVolumeNode) -> str:
    k, j, i = _SAMPLED
    sample = np.ascontiguousarray(slicer.util.arrayFromVolume(ct_node)[::k, ::j, ::i], np.float32)
    return f"{zlib.crc32(sample.tobytes()):08x}"
