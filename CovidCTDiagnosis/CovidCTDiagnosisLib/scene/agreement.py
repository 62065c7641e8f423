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

ABSENT, PRESENT, CHANGED, INCOMPLETE = "absent", "present", "changed", "incomplete"
"""What the scene holds of an analysis: nothing; all of it; all, but of a CT that was moved or changed since; not all
of its images."""


def note_ct(ct_node: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Note beside its analysis which CT it is of: voxels and grid."""
    node = analysis_node(ct_node)
    if node is not None:
        node.SetAttribute(_VOXELS, voxels_state(ct_node))
        node.SetAttribute(_GRID, " ".join(map(repr, ijk_to_ras(ct_node).ravel().tolist())))


def agreement(ct_node: slicer.vtkMRMLScalarVolumeNode | None) -> str:
    """``ABSENT``, ``PRESENT``, ``CHANGED`` or ``INCOMPLETE``: what the scene holds of an analysis of this CT.

    A transform moves the CT and what was found in it. One that is hardened in some of them alone, or a new origin of
    the CT, moves them apart: then the CT counts as changed.
    """
    if ct_node is None or ct_node.GetScene() is None:
        return ABSENT
    return _compare(ct_node, find_study_nodes(ct_node), kept_analysis(ct_node))


def present_study(ct_node: slicer.vtkMRMLScalarVolumeNode | None) -> tuple[StudyNodes, dict[str, Any]] | None:
    """Nodes and analysis of a CT as it is now, or None."""
    if ct_node is None or ct_node.GetScene() is None:
        return None
    nodes, analysis = find_study_nodes(ct_node), kept_analysis(ct_node)
    if nodes is None or analysis is None or _compare(ct_node, nodes, analysis) != PRESENT:
        return None
    return nodes, analysis


def _compare(ct_node: slicer.vtkMRMLScalarVolumeNode, nodes: StudyNodes | None, analysis: dict[str, Any] | None) -> str:
    """See ``agreement``."""
    node = analysis_node(ct_node)
    if node is None or analysis is None:
        return ABSENT
    if nodes is None:
        return INCOMPLETE
    if not all(on_same_grid(image, ct_node) for image in nodes.images):
        return CHANGED
    noted = node.GetAttribute(_VOXELS)  # scenes of older versions have none
    return CHANGED if noted and noted != voxels_state(ct_node) else PRESENT


def analyzed_grid(ct_node: slicer.vtkMRMLScalarVolumeNode) -> np.ndarray:
    """4 x 4 matrix from (i, j, k, 1) to RAS mm as it was when the CT was analyzed; transforms may be hardened since."""
    node = analysis_node(ct_node)
    noted = node.GetAttribute(_GRID) if node is not None else None
    return np.array(noted.split(), float).reshape(4, 4) if noted else ijk_to_ras(ct_node)


def voxels_state(ct_node: slicer.vtkMRMLScalarVolumeNode) -> str:
    """Tells a CT's voxels from others."""
    k, j, i = _SAMPLED
    sample = np.ascontiguousarray(slicer.util.arrayFromVolume(ct_node)[::k, ::j, ::i], np.float32)
    return f"{zlib.crc32(sample.tobytes()):08x}"
