"""A slice view without a window: Slicer's slice logic, its picture taken from the image pipeline."""

from __future__ import annotations

import numpy as np
import slicer
from vtk.util.numpy_support import vtk_to_numpy


class SliceView:
    """One slice view of a scene; it needs neither a display nor OpenGL.

    What it shows is set by `show_layers([view.logic], …)`.

    Args:
        scene: the scene whose volumes are shown.
        name: name of the view, unique in the scene.
    """

    def __init__(self, scene: slicer.vtkMRMLScene, name: str) -> None:
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLScene(scene)
        self.logic.AddSliceNode(name)

    def look(
        self,
        orientation: str,
        center_ras: tuple[float, float, float],
        size_mm: tuple[float, float],
        pixels_per_mm: float,
    ) -> None:
        """Point the view.

        Args:
            orientation: "Axial" (patient right at the left, anterior at the top), "Coronal" (patient right at
                the left, superior at the top) or "Sagittal" (anterior at the left, superior at the top).
            center_ras: centre of the view, RAS mm.
            size_mm: field of view, width and height, mm; rounded to whole pixels.
            pixels_per_mm: resolution.
        """
        width, height = (round(size * pixels_per_mm) for size in size_mm)
        node = self.logic.GetSliceNode()
        node.SetOrientation(orientation)
        node.SetDimensions(width, height, 1)
        node.SetFieldOfView(width / pixels_per_mm, height / pixels_per_mm, 1.0)
        node.JumpSliceByCentering(*center_ras)

    def picture(self) -> np.ndarray:
        """The blended layers: (rows, columns, RGB) uint8, row 0 at the top, black where there is nothing."""
        self.logic.UpdatePipeline()
        port = self.logic.GetImageDataConnection()
        producer = port.GetProducer()
        producer.Update(port.GetIndex())
        image = producer.GetOutputDataObject(port.GetIndex())
        columns, rows, _ = image.GetDimensions()
        rgba = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(rows, columns, 4)[::-1]
        # Outside the background volume the colours are those of 0 HU; only alpha tells.
        return np.where(rgba[..., 3:] > 0, rgba[..., :3], np.uint8(0))

    def pixel_to_ras(self) -> np.ndarray:
        """4 x 4 matrix from (column, row, 0, 1) of `picture` to RAS mm, pixel centres at whole numbers."""
        node = self.logic.GetSliceNode()
        xy_to_ras = slicer.util.arrayFromVTKMatrix(node.GetXYToRAS())
        upside_down = np.diag([1.0, -1.0, 1.0, 1.0])
        upside_down[1, 3] = node.GetDimensions()[1] - 1
        return xy_to_ras @ upside_down

    def edges(self) -> tuple[str, str, str, str]:
        """Where the view's left, right, top and bottom edges lie in the patient: letters of R L A P S I."""
        right, down = self.pixel_to_ras()[:3, :2].T
        return _letter(-right), _letter(right), _letter(-down), _letter(down)


def _letter(ras: np.ndarray) -> str:
    axis = int(np.argmax(np.abs(ras)))
    return "RAS"[axis] if ras[axis] > 0 else "LPI"[axis]
