"""What slice views show: background, foreground and label layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import slicer

from CovidCTDiagnosisLib.scene.nodes import is_of_study


def show_layers(
    slice_logics: Iterable[slicer.vtkMRMLSliceLogic],
    background: slicer.vtkMRMLVolumeNode,
    foreground: slicer.vtkMRMLVolumeNode | None = None,
    foreground_opacity: float = 0.5,
    label: slicer.vtkMRMLLabelMapVolumeNode | None = None,
    label_opacity: float = 1.0,
    label_outline: bool = False,
) -> None:
    """Show the same layers in every slice view, and link the views; a layer that is None is emptied.

    Args:
        slice_logics: the views, for example all of them: `applicationLogic.GetSliceLogics()`.
        background: the CT.
        foreground: relevance, or a label map to be filled.
        foreground_opacity: 0 (only the background) to 1.
        label: lungs or lesions.
        label_opacity: 0 to 1.
        label_outline: draw the outlines of the labels instead of filling them.
    """
    for logic in slice_logics:
        composite = logic.GetSliceCompositeNode()
        composite.SetLinkedControl(True)
        composite.SetBackgroundVolumeID(background.GetID())
        composite.SetForegroundVolumeID(foreground.GetID() if foreground else None)
        composite.SetForegroundOpacity(foreground_opacity)
        composite.SetLabelVolumeID(label.GetID() if label else None)
        composite.SetLabelOpacity(label_opacity)
        logic.GetSliceNode().SetUseLabelOutline(label_outline)


class _Shown(NamedTuple):
    """What one view shows."""

    composite: slicer.vtkMRMLSliceCompositeNode
    linked: bool
    background: str | None
    foreground: str | None
    foreground_opacity: float
    label: str | None
    label_opacity: float
    slice_node: slicer.vtkMRMLSliceNode
    label_outline: bool


class LayersOfViews:
    """What views showed before they showed a study."""

    def __init__(self) -> None:
        self._shown: dict[str, _Shown] = {}

    def __bool__(self) -> bool:
        return bool(self._shown)

    def remember(self, slice_logics: Iterable[slicer.vtkMRMLSliceLogic], anew: bool = True) -> None:
        """Remember what views show now; not of those that show a study already.

        Args:
            slice_logics: the views.
            anew: also of those of which something is remembered; else of new ones alone, as another layout has.
        """
        for logic in slice_logics:
            composite, slice_node = logic.GetSliceCompositeNode(), logic.GetSliceNode()
            if any(map(is_of_study, _overlays(logic))) or (slice_node.GetID() in self._shown and not anew):
                continue
            self._shown[slice_node.GetID()] = _Shown(
                composite,
                composite.GetLinkedControl(),
                composite.GetBackgroundVolumeID(),
                composite.GetForegroundVolumeID(),
                composite.GetForegroundOpacity(),
                composite.GetLabelVolumeID(),
                composite.GetLabelOpacity(),
                slice_node,
                slice_node.GetUseLabelOutline(),
            )

    def restore(self) -> None:
        """Show what the views showed when they were remembered; a background that was removed since stays today's."""
        for shown in self._shown.values():
            composite = shown.composite
            if composite.GetScene() is None:
                continue  # the view was removed
            composite.SetLinkedControl(shown.linked)
            if shown.background is None or _is_there(composite, shown.background):
                composite.SetBackgroundVolumeID(shown.background)
            composite.SetForegroundVolumeID(shown.foreground if _is_there(composite, shown.foreground) else None)
            composite.SetForegroundOpacity(shown.foreground_opacity)
            composite.SetLabelVolumeID(shown.label if _is_there(composite, shown.label) else None)
            composite.SetLabelOpacity(shown.label_opacity)
            shown.slice_node.SetUseLabelOutline(shown.label_outline)


def _is_there(composite: slicer.vtkMRMLSliceCompositeNode, node_id: str | None) -> bool:
    return node_id is not None and composite.GetScene().GetNodeByID(node_id) is not None


def hide_study(slice_logics: Iterable[slicer.vtkMRMLSliceLogic]) -> None:
    """Empty the layers that show what was found in a CT; the others stay."""
    for logic in slice_logics:
        composite = logic.GetSliceCompositeNode()
        foreground, label = _overlays(logic)
        if is_of_study(foreground):
            composite.SetForegroundVolumeID(None)
        if is_of_study(label):
            composite.SetLabelVolumeID(None)


def _overlays(logic: slicer.vtkMRMLSliceLogic) -> tuple[slicer.vtkMRMLNode | None, slicer.vtkMRMLNode | None]:
    """What lies over a view's background: foreground and label."""
    composite, scene = logic.GetSliceCompositeNode(), logic.GetMRMLScene()
    foreground, label = composite.GetForegroundVolumeID(), composite.GetLabelVolumeID()
    return scene.GetNodeByID(foreground) if foreground else None, scene.GetNodeByID(label) if label else None


def jump_to(slice_logics: Iterable[slicer.vtkMRMLSliceLogic], ras: tuple[float, float, float]) -> None:
    """Bring all views to the slice of a position, RAS mm; one that does not show the position is centred on it."""
    for logic in slice_logics:
        node = logic.GetSliceNode()
        node.JumpSliceByOffsetting(*ras)
        column, row = (np.linalg.inv(slicer.util.arrayFromVTKMatrix(node.GetXYToRAS())) @ [*ras, 1])[:2]
        width, height, _ = node.GetDimensions()
        if not (0 <= column < width and 0 <= row < height):
            node.JumpSliceByCentering(*ras)
