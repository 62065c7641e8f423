"""Colours of lungs, lesions and relevance, and the MRML colour nodes that hold them.

Lesions and lungs use the colour-blind-safe palettes of Okabe and Ito (2008) and Tol (2021).
"""

from __future__ import annotations

from typing import NamedTuple

import slicer
import vtk

RGB = tuple[float, float, float]


class Label(NamedTuple):
    """The name of a label and its colour, red, green and blue in [0, 1]."""

    name: str
    rgb: RGB


LUNGS = {
    1: Label("Right lung", (0.20, 0.73, 0.56)),
    2: Label("Left lung", (0.67, 0.60, 0.87)),
}
LESIONS = {
    1: Label("Ground-glass opacity", (0.34, 0.71, 0.91)),
    2: Label("Consolidation", (0.84, 0.37, 0.00)),
    3: Label("Crazy paving", (0.94, 0.89, 0.26)),
    4: Label("Combined pattern", (0.80, 0.47, 0.65)),
}

# Fractions of the display window and their colours.
POSITIVE: dict[float, RGB] = {
    0.0: (0.25, 0.00, 0.00),
    0.4: (0.90, 0.05, 0.00),
    0.8: (1.00, 0.75, 0.00),
    1.0: (1.00, 1.00, 0.60),
}
SIGNED: dict[float, RGB] = {
    -1.0: (0.02, 0.19, 0.38),
    -0.5: (0.26, 0.58, 0.76),
    0.0: (0.97, 0.97, 0.97),
    0.5: (0.84, 0.38, 0.30),
    1.0: (0.40, 0.00, 0.12),
}


def label_colors(scene: slicer.vtkMRMLScene, name: str, labels: dict[int, Label]) -> slicer.vtkMRMLColorTableNode:
    """The scene's colour table called `name`, made or brought up to date; label 0 is transparent."""
    node = _color_node(scene, slicer.vtkMRMLColorTableNode, name)
    node.SetTypeToUser()
    node.SetNumberOfColors(max(labels) + 1)
    node.SetColor(0, "Background", 0.0, 0.0, 0.0, 0.0)
    for value, label in labels.items():
        node.SetColor(value, label.name, *label.rgb, 1.0)
    return node


def relevance_colors(scene: slicer.vtkMRMLScene, signed: bool) -> slicer.vtkMRMLProceduralColorNode:
    """The scene's colour map of relevance, made or brought up to date.

    Positive relevance goes from dark red over orange to light yellow; signed relevance from blue (against
    the explained score) over white (none) to red (for it).
    """
    name = "Relevance, signed" if signed else "Relevance, positive"
    node = _color_node(scene, slicer.vtkMRMLProceduralColorNode, name)
    node.SetAndObserveColorTransferFunction(color_function(SIGNED if signed else POSITIVE))
    return node


def color_function(points: dict[float, RGB]) -> vtk.vtkColorTransferFunction:
    """A piecewise linear colour map through the given points."""
    function = vtk.vtkColorTransferFunction()
    for position, rgb in points.items():
        function.AddRGBPoint(position, *rgb)
    return function


def _color_node(
    scene: slicer.vtkMRMLScene, node_class: type[slicer.vtkMRMLColorNode], name: str
) -> slicer.vtkMRMLColorNode:
    tag = "CovidCTDiagnosis" + "".join(filter(str.isalpha, name))  # becomes part of the node's ID
    node = scene.GetSingletonNode(tag, node_class.__name__)
    if node is None:
        node = node_class()
        node.SetName(name)
        node.SetSingletonTag(tag)
        node.SetAttribute("Category", "CovidCTDiagnosis")
        scene.AddNode(node)
    return node
