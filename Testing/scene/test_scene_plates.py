"""The plate: its slices, what it names, and a picture of any study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from CovidCTDiagnosisLib.__main__ import main
from CovidCTDiagnosisLib.ct import Volume, write_image
from CovidCTDiagnosisLib.errors import InputError
from CovidCTDiagnosisLib.scene import plates as module
from CovidCTDiagnosisLib.scene.drawing import TEXT, draw_scale
from CovidCTDiagnosisLib.scene.plates import findings, most_relevant_slices, plate
from CovidCTDiagnosisLib.study import read_study
from PIL import Image, ImageDraw

# As in conftest.py, RAS mm.
OPACITY, CONSOLIDATION, HEAT = (45.0, -44.0, -200.0), (-20.0, -24.0, -222.0), "relevance_ct"


@pytest.fixture
def ranked(phantom: Any) -> Any:
    """The phantom's study, its slices in order of relevance as an analysis writes them."""
    path = phantom.folder / "analysis.json"
    document = json.loads(path.read_text())
    positive = np.maximum(phantom.images[HEAT], 0).sum((1, 2))
    document["relevance"]["slices"] = [
        {"index": int(k), "relevance_ct": float(positive[k]), "relevance_lesions": 0.0}
        for k in np.argsort(-positive)
        if positive[k] > 0
    ]
    path.write_text(json.dumps(document))
    return phantom


def test_slices_are_the_most_relevant_apart_and_from_head_to_feet(ranked: Any) -> None:
    study = read_study(ranked.folder)
    by_relevance = [entry["index"] for entry in study.analysis["relevance"]["slices"]]
    chosen = most_relevant_slices(study, count=3, apart_mm=6.0)
    heights = [study.grid.slice_center(index)[2] for index in chosen]
    assert by_relevance[0] in chosen and len(chosen) == 3
    assert heights == sorted(heights, reverse=True) and min(-np.diff(heights)) >= 6
    assert most_relevant_slices(study, count=1) == by_relevance[:1]


def test_lesions_of_a_slice_are_named_where_they_are(ranked: Any) -> None:
    study = read_study(ranked.folder)
    lesions = study.image("lesions").voxels
    found = [f for index in range(len(lesions)) for f in findings(study.grid, lesions, index)]
    for center, name in ((OPACITY, "Ground-glass opacity"), (CONSOLIDATION, "Consolidation")):
        largest = max((f for f in found if f.name == name), key=lambda f: f.radius_mm)
        assert largest.center_ras == pytest.approx(center, abs=3)  # slices lie 5 mm apart
        assert largest.radius_mm == pytest.approx(10, abs=1.5)
    assert findings(study.grid, np.zeros_like(lesions), 0) == []


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def warm(picture: np.ndarray) -> np.ndarray:
    """Where relevance is drawn: much more red than blue."""
    return picture[..., 0] - picture[..., 2] > 100


def test_the_plate_shows_relevance_within_its_rows(ranked: Any, tmp_path: Path) -> None:
    plate(ranked.folder, ranked.ct, [tmp_path / "plate.png", tmp_path / "plate.pdf"])
    picture = pixels(tmp_path / "plate.png")
    assert (tmp_path / "plate.pdf").read_bytes().startswith(b"%PDF")
    height = (picture.shape[0] - module._TOP - module._BOTTOM) // 3
    first, second, third = (picture[module._TOP + row * height : module._TOP + (row + 1) * height] for row in range(3))
    # The phantom's lesion mask speaks against COVID-19 everywhere but at the lungs' rim.
    assert not warm(first).any() and warm(second).sum() > 500
    assert warm(third).sum() != warm(second).sum()
    pointers = (np.abs(first - module._POINTER) <= 2).all(-1)
    assert pointers.sum() > 100


def test_a_file_that_stores_the_ct_in_another_order_gives_the_same_plate(ranked: Any, tmp_path: Path) -> None:
    """As conversions of one series do; the CT of the study itself is drawn for comparison."""
    ct = ranked.ct
    flipped = Volume(
        np.ascontiguousarray(ct.voxels[:, ::-1]),
        ct.spacing,
        tuple((ct.affine @ [0, ct.shape[1] - 1, 0, 1])[:3]),
        tuple((a, -b, c) for a, b, c in ct.direction),
    )
    for name, volume in (("straight", ct), ("flipped", flipped)):
        plate(ranked.folder, volume, [tmp_path / f"{name}.png"])
    assert np.array_equal(pixels(tmp_path / "flipped.png"), pixels(tmp_path / "straight.png"))
    elsewhere = Volume(ct.voxels, ct.spacing, (0.0, 0.0, 0.0), ct.direction)
    with pytest.raises(InputError, match="not on the grid"):
        plate(ranked.folder, elsewhere, [tmp_path / "elsewhere.png"])


def test_without_the_ct_the_masks_are_shown(ranked: Any, tmp_path: Path) -> None:
    plate(ranked.folder, None, [tmp_path / "masks.png"])
    plate(ranked.folder, ranked.ct, [tmp_path / "ct.png"])
    masks, ct = pixels(tmp_path / "masks.png"), pixels(tmp_path / "ct.png")
    assert masks.shape[1] == ct.shape[1] and masks.shape[0] < ct.shape[0]
    assert warm(masks).sum() > 500


def test_names_of_lesions_do_not_lie_on_each_other(
    ranked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes: list[tuple[float, ...]] = []
    text = ImageDraw.ImageDraw.text

    def noted(pen: Any, place: Any, name: str, *rest: Any, **more: Any) -> None:
        if name == "Consolidation":
            boxes.append(pen.textbbox(place, name, *rest[1:3]))
        text(pen, place, name, *rest, **more)

    beside = [module.Finding("Consolidation", np.array([x, -24.0, -222.0]), 4.0) for x in (-20.0, -22.0)]
    monkeypatch.setattr(module, "findings", lambda grid, lesions, index: beside)
    monkeypatch.setattr(module, "COLUMNS", 1)
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    plate(ranked.folder, ranked.ct, [tmp_path / "plate.png"])
    assert len(boxes) >= 2 and len(boxes) % 2 == 0
    for first, second in zip(boxes[::2], boxes[1::2], strict=True):
        assert first[3] <= second[1] or second[3] <= first[1] or first[2] <= second[0] or second[2] <= first[0]


@pytest.mark.parametrize("pixels_per_mm", [1.0, 2.5])
def test_the_scale_is_five_centimetres_long(pixels_per_mm: float) -> None:
    picture = Image.new("RGB", (400, 60))
    draw_scale(ImageDraw.Draw(picture), 0, 60, pixels_per_mm)
    lit = np.flatnonzero((np.asarray(picture)[60 - 18] == TEXT).all(-1))
    bar = np.split(lit, np.flatnonzero(np.diff(lit) > 1) + 1)[0]
    assert len(bar) == pytest.approx(50 * pixels_per_mm, abs=1)


def test_a_study_without_positive_relevance_says_so(phantom: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no positive relevance"):
        plate(phantom.folder, phantom.ct, [tmp_path / "plate.png"])


def test_the_command_writes_png_and_pdf(ranked: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(ranked.ct, tmp_path / "ct.nii.gz")
    assert main(["plates", str(ranked.folder), "--output", str(tmp_path / "plate")]) == 0
    assert "plate.png and " in capsys.readouterr().out and (tmp_path / "plate.pdf").is_file()
    assert main(["plates", str(ranked.folder), "--output", str(ranked.folder)]) == 0  # beside the study
    assert main(["plates", str(ranked.folder), "--output", "."]) == 2
    assert main(["plates", str(ranked.folder), "--output", str(tmp_path / "plate"), "--series", "2"]) == 2
    assert ranked.folder.with_suffix(".png").is_file() and ranked.folder.with_suffix(".pdf").is_file()
    for output, says in (("plate.txt", "cannot be a plate"), ("none/plate.png", "does not exist")):
        assert main(["plates", str(ranked.folder), "--output", str(tmp_path / output)]) == 2
        assert says in capsys.readouterr().err
