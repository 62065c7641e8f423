"""The contact sheet: the slices that matter, and a picture of any study."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from CovidCTDiagnosisLib.errors import InputError
from CovidCTDiagnosisLib.scene import contact_sheet as module
from CovidCTDiagnosisLib.scene.colors import LESIONS
from CovidCTDiagnosisLib.scene.contact_sheet import contact_sheet
from CovidCTDiagnosisLib.scene.drawing import font
from CovidCTDiagnosisLib.scene.heatmap import HeatmapView, show_heatmap
from CovidCTDiagnosisLib.scene.nodes import add_ct, load_study
from CovidCTDiagnosisLib.scene.report import finding_line
from CovidCTDiagnosisLib.study import read_study
from PIL import Image, ImageDraw

# As in conftest.py, RAS mm.
OPACITY, CONSOLIDATION = (45.0, -44.0, -200.0), (-20.0, -24.0, -222.0)


real = module._draw


def draw(phantom: Any, output: Path) -> np.ndarray:
    contact_sheet(phantom.folder, phantom.ct, output)
    picture = Image.open(output)
    assert picture.format == "PNG"
    return np.asarray(picture).astype(int)


def pixels_of(picture: np.ndarray, value: int) -> np.ndarray:
    """Columns of the pixels (over lung at -300 HU) with the colour of a lesion class, legend left out."""
    gray = 255 * (-300 - (module.LUNG_LEVEL_HU - module.LUNG_WINDOW_HU / 2)) / module.LUNG_WINDOW_HU
    rgb = 255 * np.array(LESIONS[value].rgb) * module._LESION_OPACITY + gray * (1 - module._LESION_OPACITY)
    return np.nonzero((np.abs(picture - rgb) <= 3).all(axis=2))[1]


def test_lesions_are_where_they_are_in_the_patient(
    phantom: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(module, "_draw", lambda columns, *rest: drawn.append(columns) or real(columns, *rest))
    picture = draw(phantom, tmp_path / "sheet.png")
    assert picture.shape[1] == module.WIDTH
    found = set()
    for column in drawn[0][:4]:
        lesions = column.pictures[1].astype(int)
        for value, center in ((1, OPACITY), (2, CONSOLIDATION)):
            columns = pixels_of(lesions, value)
            if len(columns) > 100:
                found.add(value)
                # The picture's left is the patient's right.
                from_middle_mm = (columns.mean() - (lesions.shape[1] - 1) / 2) / column.pixels_per_mm
                assert column.plane.center_ras[0] - from_middle_mm == pytest.approx(center[0], abs=2)
    assert found == {1, 2}


def test_a_long_name_leaves_the_finding_readable(phantom: Any) -> None:
    analysis = read_study(phantom.folder).analysis
    pictures = {}
    for length in (10, 160):
        image = Image.new("RGB", (module.WIDTH, 140))
        draw = ImageDraw.Draw(image)
        named = {**analysis, "input": {**analysis["input"], "name": "M" * length}}
        module._draw_heading(draw, named)
        pictures[length] = np.asarray(image)[:80]
        end = int(module._EDGE + draw.textlength(finding_line(analysis), font(38)))
    assert np.array_equal(pictures[10][:, : end + 10], pictures[160][:, : end + 10])
    assert not np.array_equal(pictures[10], pictures[160])


def test_slices_go_through_what_was_found(scene: Any, phantom: Any) -> None:
    nodes = load_study(scene, phantom.folder, add_ct(scene, phantom.ct))
    planes = module._choose_planes(nodes, show_heatmap(nodes, HeatmapView()))
    assert [plane.orientation for plane in planes] == [*["Axial"] * 4, "Coronal", "Sagittal"]
    axial = [plane.offset_mm for plane in planes[:4]]
    assert axial == sorted(axial, reverse=True)
    assert min(abs(offset - OPACITY[2]) for offset in axial) < 6
    assert min(abs(offset - CONSOLIDATION[2]) for offset in axial) < 10
    assert min(np.abs(np.diff(axial))) > 3
    # Most of all lies around the opacity: relevance and half of the lesions.
    assert abs(planes[4].offset_mm - OPACITY[1]) < 6
    assert abs(planes[5].offset_mm - OPACITY[0]) < 6


@pytest.mark.parametrize("empty", [("lesions",), ("relevance_ct",), ("lesions", "relevance_ct", "lungs")])
def test_studies_without_findings_are_drawn(phantom: Any, tmp_path: Path, empty: tuple[str, ...]) -> None:
    changed = {name: np.zeros_like(phantom.images[name]) for name in empty}
    picture = draw(phantom.write(**changed), tmp_path / "sheet.png")
    assert (len(pixels_of(picture, 1)) > 50) == ("lesions" not in empty)


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_lungs_in_few_slices(phantom: Any, tmp_path: Path, slices: int) -> None:
    changed = {name: voxels.copy() for name, voxels in phantom.images.items()}
    for voxels in changed.values():
        voxels[:18] = voxels[18 + slices :] = 0
    draw(phantom.write(**changed), tmp_path / "sheet.png")


def test_not_a_study(phantom: Any, tmp_path: Path) -> None:
    (phantom.folder / "analysis.json").unlink()
    with pytest.raises(InputError, match="is not a study"):
        contact_sheet(phantom.folder, phantom.ct, tmp_path / "sheet.png")


def test_profiles_on_a_straight_grid_are_the_slices() -> None:
    matrix = np.diag([-0.7, -0.7, 2.5, 1.0])
    matrix[:3, 3] = (150.0, 120.0, -300.0)
    mask = np.zeros((6, 5, 4), bool)
    mask[2, 1:3, 1:4] = True
    positions, profile = module._profiles(matrix, 2, mask)
    np.testing.assert_allclose(positions, -300 + 2.5 * np.arange(6))
    assert profile.tolist() == [0, 0, 6, 0, 0, 0]
    positions, profile = module._profiles(matrix, 0, mask)
    np.testing.assert_allclose(positions, 150 - 0.7 * np.arange(4)[::-1])
    assert profile.tolist() == [2, 2, 2, 0]


def test_other_rooms_and_a_window_are_not_needed() -> None:
    """`scene` itself loads nothing; drawing loads neither torch nor Qt, and needs no display."""
    code = (
        "import sys, CovidCTDiagnosisLib.scene; assert not {'slicer', 'vtk'} & set(sys.modules);"
        "import CovidCTDiagnosisLib.scene.contact_sheet;"
        "print({'torch', 'qt', 'ctk', 'PySide6'} & set(sys.modules))"
    )
    folder = Path(module.__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=True,
    )
    assert result.stdout.strip() == "set()"
