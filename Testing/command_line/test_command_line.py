"""The contract of the command line: exit codes, one sentence on failure, events, nothing half done left behind."""

from __future__ import annotations

import errno
import json
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from CovidCTDiagnosisLib.__main__ import main
from CovidCTDiagnosisLib.ct import Volume, read_image, write_image
from CovidCTDiagnosisLib.scene import contact_sheet
from CovidCTDiagnosisLib.study import IMAGES, read_study

Start = Callable[..., "subprocess.Popen[str]"]
WAIT = 120


@pytest.fixture(autouse=True)
def _same_signals_afterwards() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def is_one_clear_complaint(text: str) -> bool:
    """One line of text that ends as a sentence does, no traceback."""
    return text.count("\n") == 1 and text.endswith(".\n") and "Traceback" not in text


# In a process of its own


def test_help_lists_the_commands(start: Start) -> None:
    process = start("--help")
    out, err = process.communicate(timeout=WAIT)
    assert process.returncode == 0 and err == ""
    for command in ("analyze", "picture", "plates", "sample", "check", "complexity", "bench", "train", "evaluate"):
        assert f"\n    {command} " in out or f"\n    {command}\n" in out
    assert "130 cancelled" in " ".join(out.split())


@pytest.mark.parametrize(
    "arguments",
    [("--wrong",), (), ("analyze",), ("analyze", "x", "--output", "y", "--device", "tpu"), ("dance",)],
    ids=lambda arguments: " ".join(arguments) or "nothing",
)
def test_a_wrong_call_is_answered_with_code_2(start: Start, arguments: tuple[str, ...]) -> None:
    process = start(*arguments)
    out, err = process.communicate(timeout=WAIT)
    assert process.returncode == 2 and out == ""
    assert is_one_clear_complaint(err) and "--help" in err


def test_events_are_json_lines_that_never_go_back_and_end_with_the_result(
    start: Start, scan: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    study = tmp_path / "study"
    process = start("analyze", scan, "--output", study, "--bundle", tiny_bundle, "--events", "jsonl")
    out, err = process.communicate(timeout=WAIT)
    assert process.returncode == 0, err
    assert err == ""
    events = [json.loads(line) for line in out.splitlines()]
    stages = [e for e in events if e["event"] == "stage"]
    progress = [e["progress"] for e in stages]
    assert progress == sorted(progress) and progress[0] == 0 and progress[-1] == 1
    assert list(dict.fromkeys(e["stage"] for e in stages)) == [
        "reading",
        "lungs",
        "lesions",
        "diagnosis",
        "relevance",
        "writing",
    ]
    assert all(e["message"] for e in stages)
    assert [e["event"] for e in events].index("result") == len(events) - 1
    assert {e["event"] for e in events} <= {"stage", "warning", "result"}

    written = read_study(study)
    assert events[-1]["study"] == str(study)
    assert events[-1]["diagnosis"] == written.analysis["diagnosis"]
    assert written.analysis["input"]["name"] == scan.name
    assert all(written.image(name).on_same_grid(read_image(scan), 0.01) for name in IMAGES)
    assert names(tmp_path) == {"study"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_an_interrupted_run_leaves_nothing(
    number: signal.Signals, start: Start, chest_phantom: Callable[..., Volume], tiny_bundle: Path, tmp_path: Path
) -> None:
    write_image(chest_phantom(spacing=(2.5, 2.5, 4.0)), tmp_path / "chest.nii.gz")
    study = tmp_path / "study"
    process = start(
        "analyze", tmp_path / "chest.nii.gz", "--output", study, "--bundle", tiny_bundle, "--events", "jsonl"
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["stage"] == "lungs":
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=WAIT)
    assert process.returncode == 130
    assert is_one_clear_complaint(err)
    assert json.loads(out.splitlines()[-1])["code"] == 130
    assert names(tmp_path) == {"chest.nii.gz"}


def test_a_reader_that_goes_away_ends_the_run_quietly(
    start: Start, scan: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    process = start("analyze", scan, "--output", tmp_path / "study", "--bundle", tiny_bundle, "--events", "jsonl")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(WAIT) == 130
    assert "Traceback" not in err and "BrokenPipe" not in err
    assert names(tmp_path) == set()


def test_a_reader_that_goes_away_before_a_failure_is_told(start: Start, tmp_path: Path) -> None:
    process = start("analyze", tmp_path / "none.nii", "--output", tmp_path / "study", "--events", "jsonl")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(WAIT) in (3, 130)
    assert "Traceback" not in process.stderr.read()


@pytest.mark.skipif(sys.platform == "win32", reason="there is a shell")
def test_where_there_is_no_standard_error_codes_are_the_same(scan: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "CovidCTDiagnosisLib", "analyze"]
    options = ["--output", str(tmp_path / "study"), "--bundle", str(tiny_bundle)]
    for path, code in ((scan, 0), (tmp_path / "none.nii", 3)):
        closed = shlex.join([*command, str(path), *options]) + " 2>&-"
        assert subprocess.run(closed, shell=True, check=False, stdout=subprocess.DEVNULL).returncode == code


def test_a_missing_scan_is_told_in_one_sentence_of_a_real_process(
    start: Start, tiny_bundle: Path, tmp_path: Path
) -> None:
    process = start("analyze", tmp_path / "none.nii", "--output", tmp_path / "study", "--bundle", tiny_bundle)
    out, err = process.communicate(timeout=WAIT)
    assert process.returncode == 3
    # Plain lines of progress may come before the sentence.
    assert is_one_clear_complaint(err.splitlines(keepends=True)[-1]) and "none.nii" in err
    assert "Traceback" not in err + out and names(tmp_path) == set()


# In this process, for speed: `main` is what the process runs


Fails = Callable[..., str]


@pytest.fixture
def fails(tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Analyze and fail: checks code, sentence, event and that no study is left; returns the sentence."""

    def check(code: int, scan: Path, *options: object, bundle: Path = tiny_bundle) -> str:
        study = tmp_path / "study"
        arguments = ["analyze", scan, "--output", study, "--bundle", bundle, "--events", "jsonl", *options]
        before = names(tmp_path)
        capsys.readouterr()
        assert main([str(a) for a in arguments]) == code
        out, err = capsys.readouterr()
        assert is_one_clear_complaint(err), err
        event = json.loads(out.splitlines()[-1])
        assert (event["event"], event["code"]) == ("error", code)
        assert err == f"{event['message']} {event['remedy']}".strip() + "\n" and event["remedy"]
        assert names(tmp_path) == before
        return err

    return check


def test_a_missing_scan(fails: Fails, tmp_path: Path) -> None:
    assert "does not exist" in fails(3, tmp_path / "no.nii.gz")


def test_a_text_file(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("This is no scan.")
    assert "notes.txt" in fails(3, tmp_path / "notes.txt")


def test_a_text_file_that_calls_itself_nifti(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "notes.nii").write_text("This is no scan." * 100)
    assert "damaged" in fails(3, tmp_path / "notes.nii")


def test_an_empty_folder(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fails(3, tmp_path / "empty")


def test_a_head(fails: Fails, head: Path) -> None:
    assert "lungs" in fails(3, head)


def test_a_label_map(fails: Fails, scan: Path, tmp_path: Path) -> None:
    ct = read_image(scan)
    write_image(ct.with_voxels((ct.voxels > -300).astype(np.uint8)), tmp_path / "labels.nii.gz")
    assert "segmentation" in fails(3, tmp_path / "labels.nii.gz")


def test_a_missing_bundle(fails: Fails, scan: Path, tmp_path: Path) -> None:
    assert "not a bundle" in fails(4, scan, bundle=tmp_path / "none")


@pytest.mark.parametrize("file", ["models/lungs.safetensors", "LICENSE"])
def test_a_bundle_with_one_changed_byte(fails: Fails, scan: Path, tiny_bundle: Path, tmp_path: Path, file: str) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    data = bytearray((tmp_path / "bundle" / file).read_bytes())
    data[-2] ^= 1
    (tmp_path / "bundle" / file).write_bytes(data)
    assert "damaged" in fails(4, scan, bundle=tmp_path / "bundle")


def test_pickled_weights(fails: Fails, scan: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    import torch

    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    torch.save({"a": torch.ones(1)}, tmp_path / "bundle" / "models" / "lungs.pt")
    assert "pickled" in fails(4, scan, bundle=tmp_path / "bundle")


def test_an_output_folder_that_is_no_study_stays_as_it_is(fails: Fails, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "thesis.tex").write_text("ten years of work")
    assert "not a study" in fails(2, scan)
    assert (tmp_path / "study" / "thesis.tex").read_text() == "ten years of work"


def test_an_output_in_a_folder_that_does_not_exist(fails: Fails, scan: Path, tmp_path: Path) -> None:
    assert "does not exist" in fails(2, scan, "--output", tmp_path / "none" / "study")


def test_a_series_of_a_file_without_series(fails: Fails, scan: Path) -> None:
    assert "--series" in fails(2, scan, "--series", "1")


def test_a_bundle_that_is_not_complete(fails: Fails, scan: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """As after `covid-ct train lungs`."""
    from CovidCTDiagnosisLib.bundle import NetworkRecord, open_bundle, write_bundle

    whole = open_bundle(tiny_bundle)
    lungs = whole.networks["lungs"]
    record = NetworkRecord(lungs["architecture"], lungs["preprocessing"], whole.weights("lungs"))
    write_bundle(
        tmp_path / "bundle",
        name="part",
        version="0.0.1",
        networks={"lungs": record},
        settings=whole.settings,
        model_card="",
        license_text="",
    )
    assert "has no network lesions" in fails(4, scan, bundle=tmp_path / "bundle")


def test_a_picture_that_cannot_be_drawn_leaves_no_study(
    fails: Fails, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder.png").mkdir()
    assert "cannot be a picture" in fails(2, scan, "--picture", tmp_path / "folder.png")
    (tmp_path / "study").mkdir()
    assert "would lie in the study folder" in fails(2, scan, "--picture", tmp_path / "study" / "sheet.png")
    (tmp_path / "study").rmdir()

    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(contact_sheet, "_draw", full)
    assert "disk is full" in fails(5, scan, "--picture", tmp_path / "sheet.png")


def test_a_study_is_drawn_over_its_own_ct_alone_however_that_is_stored(
    scan: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, picture = tmp_path / "study", tmp_path / "sheet.png"
    assert main([*map(str, ("analyze", scan, "--output", study, "--bundle", tiny_bundle))]) == 0
    ct = read_image(scan)
    affine = ct.affine
    turned = replace(
        ct,
        voxels=np.ascontiguousarray(ct.voxels[::-1]),
        origin=tuple((affine @ [0, 0, len(ct.voxels) - 1, 1])[:3]),
        direction=tuple((row[0], row[1], -row[2]) for row in ct.direction),
    )
    write_image(turned, tmp_path / "turned.nrrd")
    write_image(ct.with_voxels(ct.voxels + np.int16(1)), tmp_path / "other.nrrd")
    write_image(replace(ct, origin=(500.0, 0.0, 0.0)), tmp_path / "elsewhere.nrrd")
    for command in ("picture", "plates"):
        assert main([command, str(study), str(tmp_path / "turned.nrrd"), "--output", str(picture)]) == 0
        picture.unlink()
        for name, says in (("other", "is of another CT"), ("elsewhere", "is not on the grid of")):
            capsys.readouterr()
            assert main([command, str(study), str(tmp_path / f"{name}.nrrd"), "--output", str(picture)]) == 3
            assert says in capsys.readouterr().err and not picture.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_study_has_the_name_that_was_given_not_the_one_behind_a_link(
    scan: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "DOE^JANE.nii.gz").write_bytes(scan.read_bytes())
    (tmp_path / "case7.nii.gz").symlink_to(tmp_path / "DOE^JANE.nii.gz")
    arguments = ["analyze", tmp_path / "case7.nii.gz", "--output", tmp_path / "study", "--bundle", tiny_bundle]
    assert main([str(a) for a in arguments]) == 0
    assert "DOE" not in (tmp_path / "study" / "analysis.json").read_text()


def test_an_older_study_is_kept_when_a_run_fails_and_replaced_when_one_ends_well(
    scan: Path, head: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(path: Path, *options: str) -> int:
        arguments = ["analyze", path, "--output", tmp_path / "study", "--bundle", tiny_bundle, *options]
        return main([str(a) for a in arguments])

    assert run(scan) == 0
    report = capsys.readouterr().out
    assert "COVID-19 probability" in report and "For research, not for diagnosis." in report
    assert f"{scan.name}, " in report and "replaces" not in report
    old = {path.name: path.read_bytes() for path in (tmp_path / "study").iterdir()}
    assert run(head) == 3
    assert {path.name: path.read_bytes() for path in (tmp_path / "study").iterdir()} == old
    assert run(scan, "--lesion-source", "involvement") == 0
    assert "study (replaces an older one)" in capsys.readouterr().out
    assert read_study(tmp_path / "study").analysis["settings"]["lesion_source"] == "involvement"
    assert names(tmp_path) == {"study"}
