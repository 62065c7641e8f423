"""A study on disk: complete or absent, faithful to what was found, and checked when it is read."""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from CovidCTDiagnosisLib.ct.volume import Volume
from CovidCTDiagnosisLib.errors import InputError, ResourceError, UsageError
from CovidCTDiagnosisLib.study import IMAGES, check_output, read_study, write_study
from CovidCTDiagnosisLib.study import study as study_module

# An oblique, flipped and anisotropic grid: what a gantry tilt and a feet-first series look like.
ANGLE = np.deg2rad(17.0)
DIRECTION = (
    (1.0, 0.0, 0.0),
    (0.0, -float(np.cos(ANGLE)), float(np.sin(ANGLE))),
    (0.0, float(np.sin(ANGLE)), float(np.cos(ANGLE))),
)
GRID = Volume(np.zeros((5, 7, 9), np.uint8), (0.7, 0.8, 2.5), (-171.25, 160.5, -1203.125), DIRECTION)


def make_images() -> dict[str, Volume]:
    random = np.random.default_rng(0)
    voxels = {
        "lungs": random.integers(0, 3, GRID.shape),
        "lesions": random.integers(0, 5, GRID.shape),
        "relevance_ct": random.normal(size=GRID.shape) * 1e-6,
        "relevance_lesions": random.normal(size=GRID.shape),
    }
    return {name: GRID.with_voxels(voxels[name].astype(dtype)) for name, dtype in IMAGES.items()}


def make_analysis() -> dict[str, Any]:
    lung = {"volume_ml": 2500.0, "mean_hu": -780.5, "involvement_percent": 12.5}
    return {
        "schema_version": "1.0",
        "input": {
            "name": "ct.nii.gz",
            "size": [9, 7, 5],
            "spacing_mm": list(GRID.spacing),
            "origin_mm": list(GRID.origin),
            "direction": [value for row in DIRECTION for value in row],
            "sha256": "0a" * 32,
        },
        "bundle": {"name": "covid-ct", "version": "0.1.0", "files": {"models/lungs.safetensors": "1b" * 32}},
        "device": {"type": "cpu", "name": "a processor", "threads": 2},
        "versions": {"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6"},
        "timings_s": {"lungs": 3.25},
        "peak_memory_mb": 1800.0,
        "created": "2025-01-31T12:00:00+00:00",
        "diagnosis": {
            "probability": 0.75,
            "threshold": 0.5,
            "label": "COVID-19",
            "score": 1.5,
            "scores": [-0.5, 1.5],
        },
        "relevance": {
            "target": "COVID-19 score before softmax",
            "total_ct": 0.9,
            "total_lesions": 0.6,
            "score": 1.5,
            "rule": {"alpha": 2, "beta": 1},
            "slices": [{"index": 3, "relevance_ct": 0.5, "relevance_lesions": 0.25}],
            "ledger": [{"layer": "linear", "in": 1.5, "out": 1.5, "bias": 0.0}],
        },
        "measurements": {
            "lungs": {
                "right": lung,
                "left": {"volume_ml": 0, "mean_hu": None, "involvement_percent": None},
                "both": lung,
            },
            "lesions": [
                {
                    "class": "crazy paving",
                    "side": "right",
                    "volume_ml": 0.0,
                    "percent_of_lung": 0.0,
                    "mean_hu": None,
                }
            ],
        },
        "settings": {"lesion_threshold": 0.5, "lesion_networks": ["2ds", "unet3d"]},
        "warnings": ["Thick slices – 5 mm."],
    }


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_study(tmp_path / "study", make_analysis(), make_images())
    return tmp_path / "study"


def change(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy with the value at `path` ("a/0/b") changed, or removed when the value is `...`."""
    document = copy.deepcopy(document)
    *parents, last = [int(key) if key.isdecimal() else key for key in path.split("/")]
    inner: Any = document
    for key in parents:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return document


def test_what_is_written_comes_back_on_the_same_grid(folder: Path) -> None:
    study = read_study(folder)
    assert study.analysis == make_analysis()
    for name, written in make_images().items():
        read = study.image(name)
        assert read.voxels.dtype == IMAGES[name]
        assert np.array_equal(read.voxels, written.voxels)
        assert read.on_same_grid(GRID)


def test_the_files_are_those_of_the_contract_and_compressed(folder: Path) -> None:
    images = {f"{name}.nii.gz" for name in ("lungs", "lesions", "relevance_ct", "relevance_lesions")}
    files = snapshot(folder)
    assert files.keys() == images | {"analysis.json"}
    assert all(files[name][:2] == b"\x1f\x8b" for name in images)
    assert list(folder.parent.iterdir()) == [folder]


def test_images_are_read_only_when_asked_for(folder: Path) -> None:
    (folder / "relevance_ct.nii.gz").write_bytes(b"damaged")
    study = read_study(folder)
    assert study.image("lungs").shape == GRID.shape
    with pytest.raises(InputError, match=r"relevance_ct\.nii\.gz.*damaged") as caught:
        study.image("relevance_ct")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema_version", "2.0"),
        ("extra", 1),
        ("warnings", ...),
        ("warnings", "none"),
        ("created", "2025-01-31T12:00:00+01:00"),
        ("peak_memory_mb", -1),
        ("timings_s/lungs", "3 s"),
        ("versions/torch", ...),
        ("input/name", "home/someone/ct.nii.gz"),
        ("input/name", "C:\\someone\\ct.nii.gz"),
        ("input/spacing_mm", [0.7, 0.8]),
        ("input/spacing_mm/2", 0),
        ("input/direction", [1.0] * 8),
        ("input/sha256", "0A" * 32),
        ("bundle/files/LICENSE", "no hash"),
        ("device/threads", 0),
        ("diagnosis/probability", 1.01),
        ("diagnosis/probability", float("nan")),
        ("diagnosis/score", float("inf")),
        ("diagnosis/score", np.float32(1.5)),
        ("diagnosis/label", "Covid"),
        ("diagnosis/scores", [1.5]),
        ("relevance/total_ct", None),
        ("relevance/slices/0/index", -1),
        ("relevance/slices/0/index", 0.5),
        ("relevance/ledger/0/bias", "none"),
        ("relevance/ledger/0/layer", ...),
        ("measurements/lungs/left", ...),
        ("measurements/lungs/both/involvement_percent", 101),
        ("measurements/lesions/0/class", "nodule"),
        ("measurements/lesions/0/side", "middle"),
        ("measurements/lesions/0/volume_ml", None),
    ],
)
def test_an_analysis_that_breaks_the_schema_is_not_written(tmp_path: Path, path: str, value: object) -> None:
    with pytest.raises(ValueError):
        write_study(tmp_path / "study", change(make_analysis(), path, value), make_images())
    assert list(tmp_path.iterdir()) == []


def test_the_fault_in_an_analysis_is_located(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^diagnosis/probability: "):
        write_study(tmp_path / "study", change(make_analysis(), "diagnosis/probability", 2), make_images())


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("lungs", GRID.with_voxels(GRID.voxels.astype(np.int16))),
        ("relevance_ct", GRID.with_voxels(GRID.voxels.astype(np.float64))),
        ("lesions", Volume(GRID.voxels)),
        ("lesions", Volume(GRID.voxels[1:], GRID.spacing, GRID.origin, GRID.direction)),
        ("lesions", Volume(GRID.voxels, GRID.spacing, (-171.25, 160.5, -1203.0), GRID.direction)),
    ],
)
def test_images_of_the_wrong_type_or_grid_are_not_written(tmp_path: Path, name: str, image: Volume) -> None:
    with pytest.raises(ValueError, match=name):
        write_study(tmp_path / "study", make_analysis(), {**make_images(), name: image})
    assert list(tmp_path.iterdir()) == []


def test_all_images_are_required_and_no_others(tmp_path: Path) -> None:
    images = make_images()
    for wrong in (images | {"airways": GRID}, {name: images[name] for name in list(images)[1:]}):
        with pytest.raises(ValueError, match="a study has the images"):
            write_study(tmp_path / "study", make_analysis(), wrong)
    assert list(tmp_path.iterdir()) == []


def fail_at_third_image(error: BaseException) -> Callable[[Volume, Path], None]:
    write, written = study_module.write_image, []

    def failing(volume: Volume, path: Path) -> None:
        written.append(path)
        if len(written) == 3:
            raise error
        write(volume, path)

    return failing


CRASHES = [
    (RuntimeError("crash"), RuntimeError),
    (KeyboardInterrupt(), KeyboardInterrupt),
    (OSError(errno.ENOSPC, "No space left on device"), ResourceError),
    (PermissionError(errno.EACCES, "Permission denied"), UsageError),
]


@pytest.mark.parametrize(("raised", "seen"), CRASHES)
def test_a_crash_leaves_the_old_study_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, seen: type[BaseException]
) -> None:
    before = snapshot(folder)
    monkeypatch.setattr(study_module, "write_image", fail_at_third_image(raised))
    with pytest.raises(seen):
        write_study(folder, change(make_analysis(), "diagnosis/probability", 0.9), make_images())
    assert snapshot(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(("raised", "seen"), CRASHES)
def test_a_crash_leaves_no_study_where_there_was_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, seen: type[BaseException]
) -> None:
    monkeypatch.setattr(study_module, "write_image", fail_at_third_image(raised))
    with pytest.raises(seen):
        write_study(tmp_path / "study", make_analysis(), make_images())
    assert list(tmp_path.iterdir()) == []


def test_a_crash_while_the_folders_are_exchanged_brings_the_old_study_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = snapshot(folder), Path.rename

    def failing(path: Path, target: Path) -> Path:
        if ".partial-" in path.name:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(KeyboardInterrupt):
        write_study(folder, make_analysis(), make_images())
    assert snapshot(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_an_image_that_a_full_disk_cut_off_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write = snapshot(folder), study_module.write_image

    def cut_off(volume: Volume, path: Path) -> None:
        """What ITK leaves on a full disk, without an error."""
        write(volume, path)
        path.write_bytes(path.read_bytes()[:-1])

    monkeypatch.setattr(study_module, "write_image", cut_off)
    with pytest.raises(ResourceError, match="cut off"):
        write_study(folder, make_analysis(), make_images())
    assert snapshot(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_the_old_study_is_kept_until_the_new_one_is_complete(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen, write = snapshot(folder), [], study_module.write_image

    def watching(volume: Volume, path: Path) -> None:
        write(volume, path)
        seen.append(snapshot(folder) == before)

    monkeypatch.setattr(study_module, "write_image", watching)
    write_study(folder, change(make_analysis(), "diagnosis/probability", 0.9), make_images())
    assert seen == [True] * 4
    assert read_study(folder).analysis["diagnosis"]["probability"] == 0.9
    assert list(folder.parent.iterdir()) == [folder]


def test_leftovers_of_a_killed_process_go_and_those_of_a_running_one_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    running = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        for process in (dead, running):
            (tmp_path / f".study.partial-{process.pid}").mkdir()
        (tmp_path / ".study.partial-notes").mkdir()
        write_study(tmp_path / "study", make_analysis(), make_images())
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"study", f".study.partial-{running.pid}", ".study.partial-notes"}
    finally:
        running.communicate(b"\n")


@pytest.mark.parametrize("fails", [True, False])
def test_what_a_killed_process_had_moved_away_comes_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    before = snapshot(folder)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder.rename(folder.with_name(f".{folder.name}.replaced-{dead.pid}"))
    if fails:
        monkeypatch.setattr(study_module, "write_image", fail_at_third_image(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt) if fails else contextlib.nullcontext():
        write_study(folder, change(make_analysis(), "diagnosis/probability", 0.9), make_images())
    assert (snapshot(folder) == before) is fails
    assert list(folder.parent.iterdir()) == [folder]


def test_an_empty_folder_may_become_a_study(tmp_path: Path) -> None:
    check_output(tmp_path)
    write_study(tmp_path, make_analysis(), make_images())
    assert read_study(tmp_path).analysis == make_analysis()


def test_checking_the_output_leaves_nothing_behind(folder: Path) -> None:
    before = snapshot(folder.parent)
    check_output(folder)
    check_output(folder.with_name("other"))
    assert snapshot(folder.parent) == before
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("attempt", [check_output, lambda f: write_study(f, make_analysis(), make_images())])
def test_other_things_are_not_overwritten(tmp_path: Path, attempt: Callable[[Path], None]) -> None:
    (tmp_path / "slices").mkdir()
    (tmp_path / "slices" / "1.dcm").write_text("mine")
    for target in (tmp_path / "slices", tmp_path / "slices" / "1.dcm", tmp_path / "absent" / "study"):
        with pytest.raises(UsageError) as caught:
            attempt(target)
        assert caught.value.code == 2 and caught.value.remedy
    assert snapshot(tmp_path) == {"slices/1.dcm": b"mine"}


@pytest.mark.skipif(sys.platform != "linux", reason="a place that is always a mount point")
def test_a_mount_point_is_refused_before_the_work_starts() -> None:
    with pytest.raises(UsageError, match="mounted at /proc"):
        check_output(Path("/proc"))


def test_the_folder_one_is_in_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for folder in (Path(), Path(".."), tmp_path / "here"):
        with pytest.raises(UsageError, match="that you are in"):
            check_output(folder)
    assert not check_output(Path("study"))


@pytest.mark.parametrize(("name", "fine"), [(".DS_Store", True), ("Thumbs.db", True), (".git", False), (".ssh", False)])
def test_of_what_is_hidden_only_a_file_manager_s_may_go(name: str, fine: bool, tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / name).mkdir(parents=True)
    if fine:
        write_study(target, make_analysis(), make_images())
        assert (target / "analysis.json").is_file()
        return
    for attempt in (check_output, lambda folder: write_study(folder, make_analysis(), make_images())):
        with pytest.raises(UsageError, match="is not empty"):
            attempt(target)
    assert (target / name).is_dir()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder where even root cannot write")
def test_an_unwritable_parent_is_found_before_the_work_starts() -> None:
    with pytest.raises(UsageError, match="Nothing can be written"):
        check_output(Path("/proc/study"))


def test_a_full_disk_is_found_before_the_work_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=20e6))
    with pytest.raises(ResourceError, match="Only 20 MB are free") as caught:
        check_output(tmp_path / "study")
    assert caught.value.code == 5


@pytest.mark.parametrize("name", IMAGES)
def test_a_study_without_an_image_is_not_read(folder: Path, name: str) -> None:
    (folder / f"{name}.nii.gz").unlink()
    with pytest.raises(InputError, match=rf"{name}\.nii\.gz.*missing"):
        read_study(folder)


def test_a_folder_that_is_no_study_is_not_read(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="is not a study") as caught:
            read_study(folder)
        assert caught.value.code == 3 and caught.value.remedy


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": "1.0"}', "\udcff"])
def test_a_damaged_analysis_is_not_read(folder: Path, content: str) -> None:
    (folder / "analysis.json").write_text(content, "utf-8", errors="surrogateescape")
    with pytest.raises(InputError, match=r"analysis\.json.*is not valid"):
        read_study(folder)


def test_an_analysis_with_nan_is_not_read(folder: Path) -> None:
    text = json.dumps(change(make_analysis(), "diagnosis/score", float("nan")))
    (folder / "analysis.json").write_text(text)
    with pytest.raises(InputError, match="NaN"):
        read_study(folder)


@pytest.mark.parametrize("lost", [1, 200, 1000])
def test_a_truncated_image_is_damaged(folder: Path, lost: int) -> None:
    path = folder / "relevance_lesions.nii.gz"
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(InputError, match=r"relevance_lesions\.nii\.gz.*damaged"):
        read_study(folder).image("relevance_lesions")


@pytest.mark.parametrize("shift_mm", [0.0, 0.5])
def test_an_image_on_another_grid_is_refused(folder: Path, shift_mm: float) -> None:
    path = folder / "lungs.nii.gz"
    image = sitk.ReadImage(str(path))
    x, y, z = image.GetOrigin()
    image.SetOrigin((x, y, z + shift_mm))
    sitk.WriteImage(image, str(path))
    if shift_mm:
        with pytest.raises(InputError, match="damaged"):
            read_study(folder).image("lungs")
    else:
        assert read_study(folder).image("lungs").on_same_grid(GRID)


def test_an_image_with_two_dimensions_is_refused(folder: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((7, 9), np.uint8)), str(folder / "lungs.nii.gz"))
    with pytest.raises(InputError, match="damaged"):
        read_study(folder).image("lungs")


@pytest.mark.parametrize(("letters", "fits"), [(150, True), (215, False), (255, False)])
def test_a_name_that_leaves_no_room_is_refused_before_the_work(tmp_path: Path, letters: int, fits: bool) -> None:
    folder = tmp_path / ("s" * letters)
    if fits:
        check_output(folder)
        folder.mkdir()
    else:
        with pytest.raises(UsageError, match="too long"):
            check_output(folder)
