"""covid-ct diagnose-series: a row for every series, the classifier's own answer, nothing half done left behind."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.__main__ import main
from CovidCTDiagnosisLib.bundle import open_bundle
from CovidCTDiagnosisLib.ct import Volume, slice_images
from CovidCTDiagnosisLib.ct.slice_images import grey_to_hu, hu_to_grey, read_slice_image
from CovidCTDiagnosisLib.pipeline import slice_series
from CovidCTDiagnosisLib.pipeline.diagnosis import Diagnosis, calibrated
from CovidCTDiagnosisLib.pipeline.models import Models
from CovidCTDiagnosisLib.training.examples import prepare_examples
from CovidCTDiagnosisLib.training.sources import Series
from PIL import Image

HEADER = "series,probability,label,warnings"
WITH_BUNDLE = f"{HEADER},bundle"


@pytest.fixture(autouse=True)
def _same_signals_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)


@pytest.fixture(scope="module")
def scans(chest_phantom: Callable[..., Volume], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three series of slices of various sizes: one sick and lying on its side, two not; names in no easy order."""
    folder = tmp_path_factory.mktemp("scans") / "series"
    healthy = chest_phantom(spacing=(4.0, 4.0, 5.0)).voxels
    sick = healthy.copy()
    sick[30:38, 30:37, 24:31] = 0
    for name, voxels, turn in (("p10", healthy, 0), ("p2", sick, -1), ("other", healthy[:, 4:, 3:], 0)):
        (folder / name).mkdir(parents=True)
        for k in range(30, 42, 4):
            image = np.ascontiguousarray(np.rot90(hu_to_grey(voxels[k]), turn))
            Image.fromarray(image).save(folder / name / f"{k}.png")
    return folder


def arguments(scans: Path, table: Path, bundle: Path, *more: object) -> list[str]:
    options = ["--output", table, "--bundle", bundle, "--pixel-mm", 4, "--device", "cpu", *more]
    return ["diagnose-series", str(scans), *map(str, options)]


def read(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_series_has_a_row_in_natural_order(
    scans: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "scores.csv"
    assert main(arguments(scans, table, tiny_bundle)) == 0
    assert table.read_text().splitlines()[0] == HEADER
    rows = read(table)
    assert [row["series"] for row in rows] == ["other", "p2", "p10"]
    for row in rows:
        probability = float(row["probability"])
        assert 0 <= probability <= 1 and row["warnings"] == ""
        threshold = open_bundle(tiny_bundle).settings["diagnosis"]["threshold"]
        assert row["label"] == ("COVID-19" if probability >= threshold else "not COVID-19")
    out = capsys.readouterr().out
    assert "3 series: " in out and str(table) in out and "not for diagnosis" in out
    assert {p.name for p in tmp_path.iterdir()} == {"scores.csv"}


def test_the_weights_are_named_where_it_is_asked_for(scans: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    assert main(arguments(scans, table, tiny_bundle, "--with-bundle")) == 0
    assert table.read_text().splitlines()[0] == WITH_BUNDLE
    assert [row["bundle"] for row in read(table)] == [open_bundle(tiny_bundle).identity] * 3


def test_the_answer_is_that_for_which_the_classifier_is_trained(scans: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """The same images as training reads them: same segmentation, same input, same calibration."""
    table = tmp_path / "scores.csv"
    assert main(arguments(scans, table, tiny_bundle, "--pixel-mm", 0.7)) == 0
    models = Models(open_bundle(tiny_bundle), torch.device("cpu"))
    for row in read(table):
        paths = sorted((scans / row["series"]).iterdir())
        slices = [grey_to_hu(read_slice_image(path)) for path in paths]
        if row["series"] == "p2":
            slices = [np.rot90(s) for s in slices]
        (example,) = prepare_examples([Series(row["series"], [s[None] for s in slices], 0)], models, tmp_path / "cache")
        with torch.inference_mode():
            negative, positive = models.network("classifier")(example.ct, example.lesions).tolist()
        expected = calibrated((negative, positive), models.bundle.settings["diagnosis"]).probability
        assert float(row["probability"]) == pytest.approx(expected, abs=2e-3)  # examples are kept with 8 bits


def test_a_series_that_cannot_be_read_keeps_its_row(
    scans: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "series"
    shutil.copytree(scans / "p10", folder / "good")
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "0.png").write_bytes(b"no image")
    (folder / "dark").mkdir()
    for n in range(2):
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(folder / "dark" / f"{n}.png")
    table = tmp_path / "scores.csv"
    assert main(arguments(folder, table, tiny_bundle)) == 0
    rows = {row["series"]: row for row in read(table)}
    assert set(rows) == {"good", "empty", "broken", "dark"}
    assert rows["good"]["label"] and not rows["good"]["warnings"]
    for name, reason in (("empty", "no images"), ("broken", "cannot be read"), ("dark", "No lungs")):
        assert rows[name]["probability"] == rows[name]["label"] == "" and reason in rows[name]["warnings"]
    assert "3 not diagnosed" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes")
def test_a_folder_that_fails_or_has_an_odd_name_loses_no_other_row(
    scans: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "series"
    for name in (b"good", b"locked", b"Li\xe8ge"):
        shutil.copytree(scans / "p10", folder / os.fsdecode(name))
    found = slice_images.find_slice_images

    def find(path: Path) -> list[Path]:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return found(path)

    monkeypatch.setattr(slice_images, "find_slice_images", find)
    table = tmp_path / "scores.csv"
    assert main(arguments(folder, table, tiny_bundle)) == 0
    assert {row["series"]: bool(row["label"]) for row in read(table)} == {"good": True, "Li?ge": True, "locked": False}
    assert "Permission denied" in table.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes")
def test_a_picture_or_an_empty_folder_of_an_odd_name_loses_no_row(
    scans: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "series"
    for name in ("a", "z"):
        shutil.copytree(scans / "p10", folder / name)
    (folder / "a" / os.fsdecode(b"sch\xf6n.png")).write_bytes(b"no picture")
    (folder / os.fsdecode(b"l\xe8re")).mkdir()
    table = tmp_path / "scores.csv"
    assert main(arguments(folder, table, tiny_bundle)) == 0
    rows = {row["series"]: row for row in read(table)}
    assert set(rows) == {"a", "l?re", "z"} and rows["z"]["label"]
    assert "sch?n.png" in rows["a"]["warnings"] and "l?re" in rows["l?re"]["warnings"]


def test_a_reader_that_goes_away_costs_no_row_of_an_older_table(
    scans: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "scores.csv"
    assert main(arguments(scans, table, tiny_bundle)) == 0
    before = table.read_text()

    told: list[object] = []

    def gone(event: object) -> None:
        told.append(event)
        if len(told) > 2:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("CovidCTDiagnosisLib.console.emit_json", gone)
    monkeypatch.setattr("os.dup2", lambda *descriptors: None)  # pytest's own output goes on
    assert main(arguments(scans, table, tiny_bundle, "--events", "jsonl")) != 0
    assert table.read_text() == before


def test_progress_never_goes_back_and_the_last_event_has_the_rows(
    scans: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "scores.csv"
    assert main(arguments(scans, table, tiny_bundle, "--events", "jsonl")) == 0
    *stages, result = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    progress = [event["progress"] for event in stages]
    assert progress == sorted(progress) and progress[0] == 0 and progress[-1] == 1 and len(progress) > 6
    assert max(np.diff(progress)) < 0.3
    assert result["event"] == "result" and [r["series"] for r in result["series"]] == ["other", "p2", "p10"]


@pytest.mark.parametrize(
    ("make", "code", "text"),
    [
        (lambda folder: None, 3, "is not a folder"),
        (lambda folder: folder.mkdir(), 3, "folder above the series"),
        (lambda folder: (folder / "one").mkdir(parents=True), 3, "No series could be diagnosed. one: "),
    ],
)
def test_nothing_to_diagnose(
    make: Callable[[Path], None],
    code: int,
    text: str,
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path / "series")
    table = tmp_path / "scores.csv"
    assert main(arguments(tmp_path / "series", table, tiny_bundle)) == code
    err = capsys.readouterr().err
    assert text in err and "Traceback" not in err
    # A series keeps its row also where none can be diagnosed.
    assert [row["series"] for row in read(table)] == ["one"] if "No series" in text else not table.exists()


def test_a_damaged_picture_costs_its_series_no_answer(scans: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "series" / "p2"
    shutil.copytree(scans / "p2", folder)
    (folder / "39.png").write_bytes(b"no image")
    assert main(arguments(tmp_path / "series", tmp_path / "scores.csv", tiny_bundle)) == 0
    assert main(arguments(scans, tmp_path / "whole.csv", tiny_bundle)) == 0
    row = read(tmp_path / "scores.csv")[0]
    assert row["probability"] == next(r["probability"] for r in read(tmp_path / "whole.csv") if r["series"] == "p2")
    assert "39.png cannot be read" in row["warnings"]


def test_an_older_table_is_replaced_another_file_is_not(
    scans: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, older = tmp_path / "mine.csv", tmp_path / "older.csv"
    mine.write_text("name,age\n")
    with_truth = tmp_path / "truth.csv"
    with_truth.write_text(WITH_BUNDLE + ",covid\nold,0.5,COVID-19,,,1\n")
    older.write_text(WITH_BUNDLE + "\nold,0.5,COVID-19,,covid-ct 1 0123456789ab\n")
    one = tmp_path / "series"
    shutil.copytree(scans / "p10", one / "p10")
    assert main(arguments(one, mine, tiny_bundle)) == 2
    assert "is no table of series" in capsys.readouterr().err and mine.read_text() == "name,age\n"
    assert main(arguments(one, with_truth, tiny_bundle)) == 2 and "old,0.5" in with_truth.read_text()
    assert main(arguments(one, older, tiny_bundle)) == 0
    assert [row["series"] for row in read(older)] == ["p10"] and "bundle" not in read(older)[0]
    assert main(arguments(one, tmp_path / "none" / "x.csv", tiny_bundle)) == 2
    assert main(arguments(one, tmp_path, tiny_bundle)) == 2


def test_a_run_that_diagnoses_nothing_costs_no_row_of_the_run_before(
    scans: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    table, wrong = tmp_path / "scores.csv", tmp_path / "wrong"
    shutil.copytree(scans / "p10", tmp_path / "right" / "p10")
    assert main(arguments(tmp_path / "right", table, tiny_bundle)) == 0
    before = read(table)
    (wrong / "a").mkdir(parents=True)
    assert main(arguments(wrong, table, tiny_bundle)) == 3
    assert read(table) == before and [row["series"] for row in read(tmp_path / "scores.new.csv")] == ["a"]


def test_a_run_that_is_stopped_costs_no_row_of_the_run_before(
    scans: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, table = tmp_path / "series", tmp_path / "scores.csv"
    for name in ("a", "b", "c", "__MACOSX"):
        shutil.copytree(scans / "p10", folder / name)
    assert main(arguments(folder, table, tiny_bundle)) == 0
    before = read(table)
    assert [row["series"] for row in before] == ["a", "b", "c"]
    diagnose = slice_series.diagnose_images

    def stop_at_the_second(*given: Any) -> Diagnosis:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(None)
        return replace(diagnose(*given), probability=0.9375)

    done: list[None] = []
    monkeypatch.setattr(slice_series, "diagnose_images", stop_at_the_second)
    assert main(arguments(folder, table, tiny_bundle)) == 130
    assert read(table) == before
    assert read(tmp_path / "scores.new.csv") == [before[0] | {"probability": "0.9375", "label": "COVID-19"}]
    monkeypatch.setattr(slice_series, "diagnose_images", diagnose)
    table.write_bytes(table.read_bytes() + b"\xe4,,,,\n")  # whatever it holds, it is replaced
    assert main(arguments(folder, table, tiny_bundle)) == 0
    assert read(table) == before and not (tmp_path / "scores.new.csv").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="arguments are bytes")
def test_a_terminal_that_knows_only_ascii_is_enough(tmp_path: Path) -> None:
    name = "Lièg…".encode()  # this process may know only ASCII, too
    command = [sys.executable, "-m", "CovidCTDiagnosisLib", "diagnose-series", name, "--output", "x.csv"]
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | plain, capture_output=True, check=False)
    assert done.returncode == 3 and b"is not a folder" in done.stderr and b"Traceback" not in done.stderr
