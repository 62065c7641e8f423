"""A study as MRML nodes: on the right grid, in the right colours, its data untouched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
from CovidCTDiagnosisLib.errors import InputError
from CovidCTDiagnosisLib.scene.colors import LESIONS
from CovidCTDiagnosisLib.scene.nodes import (
    add_ct,
    ijk_to_ras,
    load_study,
)

array = slicer.util.arrayFromVolume


def voxel_at(node: Any, ras: np.ndarray) -> Any:
    """The values of a volume node at positions (3, N), RAS mm."""
    ijk = np.linalg.inv(ijk_to_ras(node)) @ np.vstack([ras, np.ones(ras.shape[1])])
    assert np.abs(ijk - ijk.round()).max() < 1e-3  # the positions are voxel centres
    i, j, k = ijk[:3].round().astype(int)
    return array(node)[k, j, i]


def test_every_voxel_is_where_it_was(scene: Any, phantom: Any) -> None:
    nodes = load_study(scene, phantom.folder, add_ct(scene, phantom.ct))
    k, j, i = np.indices(phantom.ct.shape).reshape(3, -1)
    lps = phantom.ct.affine @ np.stack([i, j, k, np.ones_like(i)])
    ras = lps[:3] * np.array([[-1], [-1], [1]])
    expected = phantom.images | {"ct": phantom.ct.voxels}
    for name, voxels in expected.items():
        node = getattr(nodes, name)
        assert array(node).dtype == voxels.dtype
        np.testing.assert_array_equal(voxel_at(node, ras), voxels.ravel())
        # Right-handed, as Slicer keeps its volumes; one grid for all.
        assert np.linalg.det(ijk_to_ras(node)[:3, :3]) > 0
        np.testing.assert_allclose(ijk_to_ras(node), ijk_to_ras(nodes.ct), atol=1e-3)


def test_ct_is_shown_in_the_lung_window(scene: Any, phantom: Any) -> None:
    display = add_ct(scene, phantom.ct).GetDisplayNode()
    assert (display.GetWindow(), display.GetLevel()) == (1400, -500)
    assert display.GetColorNode().GetName() == "Grey"


def test_labels_have_names_and_colors(scene: Any, phantom: Any) -> None:
    nodes = load_study(scene, phantom.folder, add_ct(scene, phantom.ct))
    colors = nodes.lesions.GetDisplayNode().GetColorNode()
    names = ["Background", "Ground-glass opacity", "Consolidation", "Crazy paving", "Combined pattern"]
    assert [colors.GetColorName(value) for value in range(5)] == names
    rgba = [0.0] * 4
    for value, label in LESIONS.items():
        colors.GetColor(value, rgba)
        assert rgba == pytest.approx([*label.rgb, 1], abs=1 / 255)
    colors.GetColor(0, rgba)
    assert rgba[3] == 0
    lungs = nodes.lungs.GetDisplayNode().GetColorNode()
    assert [lungs.GetColorName(value) for value in (1, 2)] == ["Right lung", "Left lung"]


def test_loading_again_replaces(scene: Any, phantom: Any) -> None:
    ct = add_ct(scene, phantom.ct)
    first = load_study(scene, phantom.folder, ct)
    count = scene.GetNumberOfNodes()
    phantom.write(lesions=np.full(phantom.ct.shape, 3, np.uint8))
    second = load_study(scene, phantom.folder, ct)
    assert scene.GetNumberOfNodes() == count
    assert second.lesions.GetID() == first.lesions.GetID()
    assert array(second.lesions).min() == 3


def test_each_ct_has_its_own_study(scene: Any, phantom: Any) -> None:
    first, second = (load_study(scene, phantom.folder, add_ct(scene, phantom.ct, name)) for name in "AB")
    assert first.lungs.GetID() != second.lungs.GetID()
    assert (first.lungs.GetName(), second.lungs.GetName()) == ("A lungs", "B lungs")
    assert first.lungs.GetDisplayNode().GetColorNodeID() == second.lungs.GetDisplayNode().GetColorNodeID()


def test_study_follows_the_transform_of_its_ct(scene: Any, phantom: Any) -> None:
    ct = add_ct(scene, phantom.ct)
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    ct.SetAndObserveTransformNodeID(transform.GetID())
    nodes = load_study(scene, phantom.folder, ct)
    assert nodes.lesions.GetTransformNodeID() == transform.GetID()
    assert nodes.relevance_ct.GetTransformNodeID() == transform.GetID()


def test_study_of_another_ct_is_refused(scene: Any, phantom: Any) -> None:
    x, y, z = phantom.ct.origin
    moved = add_ct(scene, replace(phantom.ct, origin=(x, y, z + 0.1)), "Other")
    with pytest.raises(InputError, match="not on the grid of Other"):
        load_study(scene, phantom.folder, moved)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"no image")])
def test_damaged_study_is_refused(scene: Any, phantom: Any, damage: Callable[[Path], Any]) -> None:
    damage(phantom.folder / "lesions.nii.gz")
    with pytest.raises(InputError, match=r"lesions\.nii\.gz"):
        load_study(scene, phantom.folder, add_ct(scene, phantom.ct))


def test_scene_is_saved_and_read_back(new_scene: Callable[[], Any], phantom: Any, tmp_path: Path) -> None:
    scene = new_scene()
    nodes = load_study(scene, phantom.folder, add_ct(scene, phantom.ct))
    assert scene.WriteToMRB(str(tmp_path / "scene.mrb"), None)
    again = new_scene()
    assert again.ReadFromMRB(str(tmp_path / "scene.mrb"))

    for name in phantom.images:
        saved = getattr(nodes, name)
        node = again.GetFirstNodeByName(saved.GetName())
        np.testing.assert_array_equal(array(node), array(saved))
        np.testing.assert_allclose(ijk_to_ras(node), ijk_to_ras(saved), atol=1e-4)
        color_name = saved.GetDisplayNode().GetColorNode().GetName()
        assert node.GetDisplayNode().GetColorNode().GetName() == color_name
    relevance = again.GetFirstNodeByName("CT relevance of the CT").GetDisplayNode()
    end = nodes.relevance_ct.GetDisplayNode().GetWindowLevelMax()
    assert relevance.GetWindowLevelMax() == pytest.approx(end, rel=1e-4)
    # It is still known as the study of its CT.
    count = again.GetNumberOfNodes()
    load_study(again, phantom.folder, again.GetFirstNodeByName("CT"))
    assert again.GetNumberOfNodes() == count
