"""A study folder as MRML nodes: label maps, relevance volumes and how they are displayed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from CovidCTDiagnosisLib.ct.orientation import straightened
from CovidCTDiagnosisLib.ct.volume import Volume
from CovidCTDiagnosisLib.errors import InputError
from CovidCTDiagnosisLib.scene.colors import LESIONS, LUNGS, label_colors

LUNG_WINDOW_HU = 1400.0
LUNG_LEVEL_HU = -500.0
"""As radiologists look at lungs: not the window of the networks."""

ROLE = "CovidCTDiagnosis.Role"
"""Attribute that says what a node is for its CT."""
_CT = "CovidCTDiagnosis.CT"
_SELF = "CovidCTDiagnosis.Self"
"""Reference of a node to itself, which tells it from a user's copy: copies take attributes and references along."""

_CLASSES = {
    "lungs": "vtkMRMLLabelMapVolumeNode",
    "lesions": "vtkMRMLLabelMapVolumeNode",
    "relevance_ct": "vtkMRMLScalarVolumeNode",
    "relevance_lesions": "vtkMRMLScalarVolumeNode",
}


@dataclass(frozen=True)
class StudyNodes:
    """The nodes of one analysed CT, all on the CT's grid.

    Attributes:
        ct: the CT, HU.
        lungs: label map, 1 right, 2 left.
        lesions: label map, 1 ground-glass opacity, 2 consolidation, 3 crazy paving, 4 combined pattern.
        relevance_ct: signed relevance of the CT for the score that was explained, unscaled.
        relevance_lesions: signed relevance of the lesion mask for that score, unscaled.
    """

    ct: slicer.vtkMRMLScalarVolumeNode
    lungs: slicer.vtkMRMLLabelMapVolumeNode
    lesions: slicer.vtkMRMLLabelMapVolumeNode
    relevance_ct: slicer.vtkMRMLScalarVolumeNode
    relevance_lesions: slicer.vtkMRMLScalarVolumeNode

    @property
    def images(self) -> tuple[slicer.vtkMRMLScalarVolumeNode, ...]:
        """What was found in the CT."""
        return self.lungs, self.lesions, self.relevance_ct, self.relevance_lesions


def add_ct(scene: slicer.vtkMRMLScene, volume: Volume, name: str = "CT") -> slicer.vtkMRMLScalarVolumeNode:
    """Add a CT to the scene, displayed in the lung window (width 1400 HU, level -500 HU).

    The voxels are copied. As when Slicer reads a file, the slices of a left-handed grid are stored in reverse
    order, so that the grid becomes right-handed and every voxel stays where it is in the patient.

    Args:
        scene: a scene with Slicer's default colours (`vtkMRMLColorLogic`).
        volume: the CT, HU, LPS.
        name: name of the node.
    """
    voxels, ijk_to_lps = volume.voxels, volume.affine
    if np.linalg.det(ijk_to_lps[:3, :3]) < 0:
        ijk_to_lps[:3, 3] += ijk_to_lps[:3, 2] * (len(voxels) - 1)
        ijk_to_lps[:3, 2] *= -1
        voxels = voxels[::-1]
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    display_manually(node)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ ijk_to_lps))
    node.SetAndObserveImageData(image_data(voxels))
    node.GetDisplayNode().SetWindowLevel(LUNG_WINDOW_HU, LUNG_LEVEL_HU)
    return node


def load_study(scene: slicer.vtkMRMLScene, study_folder: Path, ct_node: slicer.vtkMRMLScalarVolumeNode) -> StudyNodes:
    """Load the images of a study; the nodes of an earlier study of the same CT are reused, not added to.

    The nodes lie under the CT's transform. How relevance is displayed is left to `heatmap`.

    Raises:
        InputError: an image cannot be read, or it is not on the grid of `ct_node`.
    """

    # All are read and checked before the scene changes.
    read = {role: _read(study_folder / f"{role}.nii.gz", role, ct_node) for role in _CLASSES}

    def load(role: str, title: str) -> slicer.vtkMRMLVolumeNode:
        node = node_of(ct_node, role, _CLASSES[role])
        node.SetName(f"{ct_node.GetName()} {title}")
        display_manually(node)
        node.CopyOrientation(read[role])
        node.SetAndObserveImageData(read[role].GetImageData())
        node.SetAndObserveTransformNodeID(ct_node.GetTransformNodeID())
        return node

    nodes = StudyNodes(
        ct=ct_node,
        lungs=load("lungs", "lungs"),
        lesions=load("lesions", "lesions"),
        relevance_ct=load("relevance_ct", "relevance of the CT"),
        relevance_lesions=load("relevance_lesions", "relevance of the lesions"),
    )
    nodes.lungs.GetDisplayNode().SetAndObserveColorNodeID(label_colors(scene, "Lungs", LUNGS).GetID())
    nodes.lesions.GetDisplayNode().SetAndObserveColorNodeID(label_colors(scene, "Lesions", LESIONS).GetID())
    return nodes


def find_study_nodes(ct_node: slicer.vtkMRMLScalarVolumeNode) -> StudyNodes | None:
    """The nodes of a study that is in the scene already, or None."""
    found = {role: find_node(ct_node, role, class_name) for role, class_name in _CLASSES.items()}
    return None if None in found.values() else StudyNodes(ct_node, **found)


def ijk_to_ras(node: slicer.vtkMRMLVolumeNode) -> np.ndarray:
    """4 x 4 matrix from a volume's (i, j, k, 1) to RAS mm, without its transform."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def display_manually(node: slicer.vtkMRMLVolumeNode) -> None:
    """Give a volume a display node that never chooses a window by itself: before its voxels, it saves time."""
    node.CreateDefaultDisplayNodes()
    if isinstance(node.GetDisplayNode(), slicer.vtkMRMLScalarVolumeDisplayNode):
        node.GetDisplayNode().SetAutoWindowLevel(False)


def image_data(voxels: np.ndarray) -> vtk.vtkImageData:
    """A copy of voxels (K, J, I) as image data."""
    image = vtk.vtkImageData()
    image.SetDimensions(*voxels.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(voxels).ravel(), deep=True))
    return image


def is_of_study(node: slicer.vtkMRMLNode | None) -> bool:
    """Whether the node was made for a CT by this module; a user's copy of such a node was not."""
    if node is None or not node.GetAttribute(ROLE):
        return False
    itself = node.GetNodeReferenceID(_SELF)
    # Scenes of older versions know the CT alone.
    return bool(itself == node.GetID() if itself else node.GetNodeReferenceID(_CT))


def study_volumes(scene: slicer.vtkMRMLScene) -> list[str]:
    """IDs of the volumes that belong to studies: relevance is no CT to choose."""
    return [node.GetID() for node in _volumes(scene) if is_of_study(node)]


def lesion_maps(scene: slicer.vtkMRMLScene) -> list[str]:
    """IDs of the label maps of lesions that belong to studies: they are no lungs to choose."""
    return [node.GetID() for node in _volumes(scene) if is_of_study(node) and node.GetAttribute(ROLE) == "lesions"]


def _volumes(scene: slicer.vtkMRMLScene) -> list[slicer.vtkMRMLScalarVolumeNode]:
    nodes = [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]
    return [node for node in nodes if node.IsA("vtkMRMLScalarVolumeNode")]


def is_bent(node: slicer.vtkMRMLVolumeNode) -> bool:
    """Whether its transform moves voxels against each other by more than half of one.

    Slicer keeps what it has found of irregular slices or a tilted gantry in such a transform.
    """
    transform = node.GetParentTransformNode()
    if transform is None or transform.IsTransformToWorldLinear():
        return False
    from scipy.spatial.transform import Rotation  # slow to import, and seldom wanted

    to_world = vtk.vtkGeneralTransform()
    transform.GetTransformToWorld(to_world)
    affine = ijk_to_ras(node)
    ends = [np.linspace(0, size - 1, 9) for size in node.GetImageData().GetDimensions()]
    points = np.stack(np.meshgrid(*ends), -1).reshape(-1, 3) @ affine[:3, :3].T
    moved = np.array([to_world.TransformPoint(point) for point in points + affine[:3, 3]])
    before, after = points - points.mean(0), moved - moved.mean(0)
    turn, _ = Rotation.align_vectors(after, before)
    return bool(np.linalg.norm(turn.apply(before) - after, axis=1).max() > 0.5 * min(node.GetSpacing()))


def first_scan(scene: slicer.vtkMRMLScene) -> slicer.vtkMRMLScalarVolumeNode | None:
    """The scene's first volume that may be a CT: neither a label map nor a part of a study."""
    class_name = "vtkMRMLScalarVolumeNode"
    nodes = (scene.GetNthNodeByClass(n, class_name) for n in range(scene.GetNumberOfNodesByClass(class_name)))
    return next((n for n in nodes if n.GetClassName() == class_name and not is_of_study(n)), None)


def find_node(ct_node: slicer.vtkMRMLScalarVolumeNode, role: str, class_name: str) -> slicer.vtkMRMLNode | None:
    """The node that has this role for this CT, or None."""
    scene = ct_node.GetScene()
    for index in range(scene.GetNumberOfNodesByClass(class_name)):
        node = scene.GetNthNodeByClass(index, class_name)
        of_ct = node.GetAttribute(ROLE) == role and node.GetNodeReferenceID(_CT) == ct_node.GetID()
        if of_ct and is_of_study(node):
            return node
    return None


def node_of(ct_node: slicer.vtkMRMLScalarVolumeNode, role: str, class_name: str) -> slicer.vtkMRMLNode:
    """The node that has this role for this CT, made when there is none."""
    node = find_node(ct_node, role, class_name)
    if node is not None:
        return node
    scene = ct_node.GetScene()
    node = scene.AddNewNodeByClass(class_name)
    node.SetAttribute(ROLE, role)
    node.SetNodeReferenceID(_CT, ct_node.GetID())
    node.SetNodeReferenceID(_SELF, node.GetID())
    return node


def put_beside(node: slicer.vtkMRMLNode, other: slicer.vtkMRMLNode) -> None:
    """Put a node into the folder of another one in the Data module."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(other.GetScene())
    item = hierarchy.GetItemByDataNode(other) if hierarchy is not None else 0
    if not item:
        return
    folder = hierarchy.GetItemParent(item)
    own = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(folder, node)
    if hierarchy.GetItemParent(own) != folder:
        hierarchy.SetItemParent(own, folder)


def _read(path: Path, role: str, ct_node: slicer.vtkMRMLScalarVolumeNode) -> slicer.vtkMRMLVolumeNode:
    """An image of a study on the CT's grid, as a node that is in no scene."""
    node = getattr(slicer, _CLASSES[role])()
    # The storage node is not kept: saving the scene must not write into the study.
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    storage.SetSingleFile(True)
    if not path.is_file() or not storage.ReadData(node):
        raise InputError(f"{path.name} of the study {path.parent} cannot be read.", "Analyze the CT again.")
    if not on_same_grid(node, ct_node):
        raise InputError(
            f"{path.name} of the study {path.parent} is not on the grid of {ct_node.GetName()}.",
            "Choose the CT that was analyzed.",
        )
    return node


def on_same_grid(node: slicer.vtkMRMLVolumeNode, other: slicer.vtkMRMLVolumeNode) -> bool:
    """Whether two volumes have the same size and the same corners, in whatever order.

    NIfTI keeps its grid in single precision: corners may differ by 0.01 mm.
    """
    if node.GetImageData() is None or other.GetImageData() is None:
        return False
    size, other_size = (volume.GetImageData().GetDimensions() for volume in (node, other))
    distances = np.linalg.norm(_corners_ras(node)[:, :, None] - _corners_ras(other)[:, None, :], axis=0)
    return size == other_size and bool(distances.min(axis=0).max() <= 0.01)


def _corners_ras(node: slicer.vtkMRMLVolumeNode) -> np.ndarray:
    """Centres of a volume's corner voxels, RAS mm, (3, 8), on axes that are straightened as those of a study are."""
    ends = np.array(node.GetImageData().GetDimensions()) - 1
    ijk = np.indices((2, 2, 2)).reshape(3, 8) * ends[:, None]
    matrix, spacing = ijk_to_ras(node), np.array(node.GetSpacing())
    corners: np.ndarray = straightened(matrix[:3, :3] / spacing) * spacing @ ijk + matrix[:3, 3:]
    return corners
