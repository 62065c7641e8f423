"""covid-ct segment-slices: masks of the images' names and sizes, exit codes, nothing half done left behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from CovidCTDiagnosisLib.__main__ import main
from CovidCTDiagnosisLib.ct import Volume
from CovidCTDiagnosisLib.ct.slice_images import hu_to_grey
from CovidCTDiagnosisLib.pipeline.slice_segmentation import ORIENTATIONS
from PIL import Image

Start = Callable[..., "subprocess.Popen[str]"]
WAIT = 300
KINDS = {"lungs", "infection", "classes"}


@pytest.fixture(autouse=True)
def _same_signals_afterwards() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def images(chest_phantom: Callable[..., Volume], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slices of various sizes and kinds, lying on their left side, one with a bright lesion."""
    folder = tmp_path_factory.mktemp("images") / "slices"
    folder.mkdir()
    voxels = chest_phantom(spacing=(4.0, 4.0, 5.0)).voxels.copy()
    voxels[34, 30:37, 24:31] = 0
    for name, k in (("a.png", 34), ("b 2.jpg", 38), ("c.bmp", 40)):
        lying = np.rot90(hu_to_grey(voxels[k]), -1)[k - 34 :, :]
        Image.fromarray(np.ascontiguousarray(lying)).save(folder / name)
    return folder


def arguments(images: Path, masks: Path, bundle: Path, *more: object) -> list[str]:
    options = ["--output", masks, "--bundle", bundle, "--pixel-mm", 4, "--device", "cpu", *more]
    return ["segment-slices", str(images), *map(str, options)]


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_masks_have_the_images_names_sizes_and_values(
    images: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    assert main(arguments(images, masks, tiny_bundle)) == 0
    assert {p.name for p in masks.iterdir()} == KINDS | {"slices.json"}
    for kind in KINDS:
        assert {p.name for p in (masks / kind).iterdir()} == {"a.png", "b 2.png", "c.png"}
    for path in images.iterdir():
        lungs, infection, classes = (read(masks / k / f"{path.stem}.png") for k in ("lungs", "infection", "classes"))
        assert lungs.shape == infection.shape == classes.shape == read(path).shape
        assert lungs.dtype == np.uint8 and set(np.unique(lungs)) == {0, 255}
        assert set(np.unique(infection)) <= {0, 255} and set(np.unique(classes)) <= {0, 1, 2}
        np.testing.assert_array_equal(infection > 0, classes > 0)
        assert not infection[lungs == 0].any()
    assert read(masks / "infection" / "a.png").any()
    document = json.loads((masks / "slices.json").read_text())
    assert {i["name"]: i["orientation"] for i in document["images"]} == dict.fromkeys(
        ("a.png", "b 2.jpg", "c.bmp"), "back-left"
    )
    assert "3 slices, each on its own; orientation: back-left 3" in (told := capsys.readouterr().out)
    assert "replaces" not in told


def test_older_masks_are_replaced_and_other_folders_are_not(
    images: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    for kind in KINDS:
        (masks / kind).mkdir(parents=True)
        (masks / kind / "old.png").touch()
    assert main(arguments(images, masks, tiny_bundle)) == 2
    (masks / "slices.json").touch()
    (masks / "lungs" / "diary.txt").touch()
    assert main(arguments(images, masks, tiny_bundle)) == 2
    assert (masks / "lungs" / "diary.txt").exists()
    (masks / "lungs" / "diary.txt").unlink()
    (masks / "lungs" / ".DS_Store").touch()
    assert main(arguments(images, masks, tiny_bundle)) == 0
    assert not (masks / "lungs" / "old.png").exists()
    assert "(replaces older ones)" in capsys.readouterr().out


def test_the_images_themselves_are_never_replaced(images: Path, tiny_bundle: Path) -> None:
    before = {p.name for p in images.iterdir()}
    for output in (images, images.parent):
        assert main(arguments(images, output, tiny_bundle)) == 2
    assert {p.name for p in images.iterdir()} == before


@pytest.mark.parametrize("kind", ["16 bit", "colour", "damaged", "none"])
def test_unfit_images_end_with_code_3_and_one_sentence(
    kind: str, images: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    if kind == "16 bit":
        Image.fromarray(np.zeros((9, 9), np.uint16)).save(folder / "x.png")
    elif kind == "colour":
        Image.fromarray(np.eye(9, dtype=np.uint8)[..., None] * np.array([0, 99, 200], np.uint8)).save(folder / "x.png")
    elif kind == "damaged":
        (folder / "x.png").write_bytes((images / "a.png").read_bytes()[:200])
    assert main(arguments(folder, tmp_path / "masks", tiny_bundle)) == 3
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.endswith(".") and "Traceback" not in complaint
    assert kind == "none" or "x.png" in complaint
    assert {p.name for p in tmp_path.iterdir()} == {"in"}


def test_what_is_no_slice_costs_the_others_nothing_and_empty_lungs_are_told_of(
    images: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(images, folder)
    (folder / "d.png").write_bytes((images / "a.png").read_bytes()[:200])
    Image.fromarray((read(images / "a.png") > 99).astype(np.uint8)).save(folder / "a_mask.png")
    Image.fromarray(np.zeros((60, 60), np.uint8)).save(folder / "z.png")
    assert main(arguments(folder, tmp_path / "masks", tiny_bundle)) == 0
    assert {p.stem for p in (tmp_path / "masks" / "lungs").iterdir()} == {"a", "b 2", "c", "z"}
    told = capsys.readouterr().err
    assert (
        "d.png cannot be read" in told
        and "a_mask.png" in told
        and "No lungs were found in 1 of 4 images: z.png" in told
    )
    kept = json.loads((tmp_path / "masks" / "slices.json").read_text())["warnings"]
    for text in ("d.png", "a_mask.png", "No lungs were found in 1 of 4 images: z.png"):
        assert any(text in warning for warning in kept)


@pytest.mark.parametrize(("side", "pixel_mm"), [(1, 4), (20, 4), (40, 0.1)])
def test_tiny_images_end_with_code_3_and_one_sentence(
    side: int, pixel_mm: float, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(np.zeros((side, side), np.uint8)).save(folder / "x.png")
    assert main(arguments(folder, tmp_path / "masks", tiny_bundle, "--pixel-mm", pixel_mm)) == 3
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert (
        ("x.png has only" if side < 32 else "Image 1 of 1 shows only") in complaint
        and complaint.endswith(".")
        and "Traceback" not in complaint
    )
    assert {p.name for p in tmp_path.iterdir()} == {"in"}


@pytest.mark.parametrize("wrong", [("--window", 400, -1000), ("--pixel-mm", 0), ("--slice-mm", "nan")])
def test_senseless_options_are_a_wrong_call(
    wrong: tuple[object, ...], images: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    assert main(arguments(images, tmp_path / "masks", tiny_bundle, *wrong)) == 2
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_can_be_asked_for(orientation: str, images: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    assert main(arguments(images, tmp_path / "masks", tiny_bundle, "--orientation", orientation)) == 0
    document = json.loads((tmp_path / "masks" / "slices.json").read_text())
    expected = "back-left" if orientation == "auto" else orientation
    assert {i["orientation"] for i in document["images"]} == {expected}


def test_events_never_go_back_and_end_with_the_result(
    images: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(images, tmp_path / "masks", tiny_bundle, "--events", "jsonl")) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    progress = [e["progress"] for e in events if e["event"] == "stage"]
    assert progress == sorted(progress) and (progress[0], progress[-1]) == (0, 1)
    assert events[-1]["event"] == "result" and events[-1]["masks"] == str(tmp_path / "masks")
    assert len(events[-1]["images"]) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_an_interrupted_run_leaves_nothing(
    number: signal.Signals, start: Start, images: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for n in range(60):
        Image.fromarray(read(images / "a.png")[n % 7 :]).save(many / f"{n}.png")
    masks = tmp_path / "masks"
    process = start(*arguments(many, masks, tiny_bundle, "--pixel-mm", 1, "--events", "jsonl"))
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["stage"] == "lungs":
            process.send_signal(number)
            break
    _, err = process.communicate(timeout=WAIT)
    assert process.returncode == 130
    assert err.endswith(".\n") and "Traceback" not in err
    assert {p.name for p in tmp_path.iterdir()} == {"many"}
