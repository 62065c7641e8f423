"""Views drawn as in Slicer: its displayable managers in a window of VTK, with all that lies over the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

_IN_SLICES = (
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLColorLegendDisplayableManager",
)
_IN_3D = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
)


class _View:
    """A window of VTK with the managers of one view node, which must be in the scene.

    As in Slicer, managers are there before what they show: a legend that is older than its manager is not drawn.
    """

    def __init__(self, factory: Any, managers: tuple[str, ...], application_logic: Any, node: Any) -> None:
        factory.SetMRMLApplicationLogic(application_logic)
        for name in managers:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self.renderer, self.window = vtk.vtkRenderer(), vtk.vtkRenderWindow()
        self.window.SetOffScreenRendering(True)
        self.window.AddRenderer(self.renderer)
        self._interactor = vtk.vtkRenderWindowInteractor()
        self.window.SetInteractor(self._interactor)
        self._managers = factory.InstantiateDisplayableManagers(self.renderer)
        self._managers.SetMRMLDisplayableNode(node)

    def _picture(self, width: int, height: int) -> np.ndarray:
        """(rows, columns, RGB) uint8, row 0 at the top."""
        self.window.SetSize(width, height)
        self.window.Render()
        pixels = vtk.vtkUnsignedCharArray()
        self.window.GetPixelData(0, 0, width - 1, height - 1, 1, pixels, 0)
        return vtk_to_numpy(pixels).reshape(height, width, 3)[::-1].copy()


class DrawnSliceView(_View):
    """A slice view; `logic` must be among the application logic's."""

    def __init__(self, application_logic: Any, logic: Any) -> None:
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        super().__init__(factory, _IN_SLICES, application_logic, logic.GetSliceNode())
        self._node, self._logic = logic.GetSliceNode(), logic
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        image = vtk.vtkActor2D()
        image.SetMapper(self._mapper)
        image.GetProperty().SetDisplayLocationToBackground()
        self.renderer.AddViewProp(image)

    def picture(self) -> np.ndarray:
        """Image, segments and legend: (rows, columns, RGB) uint8, row 0 at the top, of the slice node's size."""
        self._logic.UpdatePipeline()
        self._mapper.SetInputConnection(self._logic.GetImageDataConnection())
        width, height, _ = self._node.GetDimensions()
        return self._picture(width, height)


class DrawnThreeDView(_View):
    """A 3-D view of its own, seen from the front."""

    def __init__(self, application_logic: Any, scene: Any, side: int) -> None:
        node = scene.AddNewNodeByClass("vtkMRMLViewNode")
        node.SetBoxVisible(False)
        node.SetAxisLabelsVisible(False)
        factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
        super().__init__(factory, _IN_3D, application_logic, node)
        self._side = side

    def picture(self) -> np.ndarray:
        """All surfaces: (side, side, RGB) uint8, row 0 at the top."""
        camera = self.renderer.GetActiveCamera()
        camera.SetFocalPoint(0, 0, 0)
        camera.SetPosition(0, 1, 0)
        camera.SetViewUp(0, 0, 1)
        self.renderer.ResetCamera()
        return self._picture(self._side, self._side)
