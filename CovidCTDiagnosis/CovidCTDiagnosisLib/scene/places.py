"""Where in the scene the slices of an analysis lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk

from CovidCTDiagnosisLib.scene.agreement import analyzed_grid
from CovidCTDiagnosisLib.scene.nodes import StudyNodes, ijk_to_ras
from CovidCTDiagnosisLib.study.study import input_grid


def slice_position_mm(nodes: StudyNodes, analysis: dict[str, Any], index: int) -> float:
    """Where the middle of a slice lies along the patient's long axis, S in mm, without the CT's transform."""
    return float((ijk_to_ras(nodes.relevance_ct) @ _middle_ijk(nodes, analysis, index))[2])


def peak_ras(nodes: StudyNodes, analysis: dict[str, Any], index: int) -> tuple[float, float, float]:
    """Where the scene shows the most relevant voxel of a slice, RAS mm, the CT's transform taken in.

    The voxel with the most positive relevance of CT and lesions together; the slice's middle where there is none.

    Args:
        nodes: of the study.
        analysis: content of analysis.json.
        index: as in its slices.
    """
    grid = input_grid(analysis)
    to_ras = ijk_to_ras(nodes.relevance_ct)
    voxel = _middle_ijk(nodes, analysis, index)
    middle = (to_ras @ voxel)[:3]
    axis = grid.long_axis
    plane = round(voxel[2 - axis])
    heat = sum(
        np.maximum(np.take(slicer.util.arrayFromVolume(node), plane, axis), 0)
        for node in (nodes.relevance_ct, nodes.relevance_lesions)
    )
    if heat.max() > 0:
        kji = np.insert(np.unravel_index(int(heat.argmax()), heat.shape), axis, plane)
        middle = (to_ras @ [*kji[::-1], 1])[:3]
    return _to_world(nodes.ct, middle)


def _middle_ijk(nodes: StudyNodes, analysis: dict[str, Any], index: int) -> np.ndarray:
    """The middle of a slice as (i, j, k, 1) of the CT, which may have been moved since it was analyzed."""
    ras = input_grid(analysis).slice_center(index) * [-1, -1, 1]
    voxel: np.ndarray = np.linalg.inv(analyzed_grid(nodes.ct)) @ [*ras, 1]
    return voxel


def _to_world(node: slicer.vtkMRMLTransformableNode, point: np.ndarray) -> tuple[float, float, float]:
    transform = node.GetParentTransformNode()
    if transform is not None:
        to_world = vtk.vtkGeneralTransform()
        transform.GetTransformToWorld(to_world)
        point = np.array(to_world.TransformPoint(point))
    return float(point[0]), float(point[1]), float(point[2])
