"""A hospital's own scans: the table is checked, split by patients, and trained from to a bundle that answers."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from CovidCTDiagnosisLib.__main__ import main
from CovidCTDiagnosisLib.bundle import open_bundle, revise_bundle
from CovidCTDiagnosisLib.ct import Volume, write_image
from CovidCTDiagnosisLib.ct.slice_images import hu_to_grey, write_png
from CovidCTDiagnosisLib.ct.text_header import files_of
from CovidCTDiagnosisLib.errors import InputError
from CovidCTDiagnosisLib.evaluation.predictions import read_predictions
from CovidCTDiagnosisLib.pipeline.models import Models
from CovidCTDiagnosisLib.training import diagnosis
from CovidCTDiagnosisLib.training import train as train_module
from CovidCTDiagnosisLib.training.examples import SEGMENTING
from CovidCTDiagnosisLib.training.scan_table import (
    ONE_PATIENT,
    is_scan_table,
    read_scan_table,
    split_scans,
    table_fingerprint,
)
from CovidCTDiagnosisLib.training.splits import require_enough
from PIL import Image


@pytest.fixture
def empty_scans(tmp_path: Path) -> Path:
    """Files by name; nothing is read of them before segmentation."""
    for n in range(30):
        (tmp_path / f"scan{n}.nii.gz").write_bytes(bytes([n]))
    return tmp_path


def table(folder: Path, text: str) -> Path:
    path = folder / "scans.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_are_read_however_they_are_written(empty_scans: Path) -> None:
    path = table(empty_scans, "Scan,Label,Centre,CO-RADS,Split\nscan0.nii.gz,1,Köln,5,Train\nscan1.nii.gz,0,,,test\n")
    first, second = read_scan_table(path)
    assert (first.covid, first.centre, first.co_rads, first.split) == (1, "Köln", 5, "train")
    assert (second.covid, second.centre, second.co_rads, second.split) == (0, "", None, "test")
    assert first.path == empty_scans / "scan0.nii.gz" and first.name == "0001-scan0"


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("scan,covid\nscan0.nii.gz,1\n", "no column label"),
        ("scan,label\nscan0.nii.gz,2\n", "line 2: label is 2"),
        ("scan,label\nscan0.nii.gz,0.5\n", "line 2: label must be 1 or 0"),
        ("scan,label\nnone.nii.gz,1\n", "line 2: there is no scan none.nii.gz"),
        ("scan,label\n,1\n", "line 2: scan is empty"),
        ("scan,label\nscan0.nii.gz,1\nscan0.nii.gz,1\n", "line 3: scan0.nii.gz stands twice"),
        ("scan,label,split\nscan0.nii.gz,1,dev\n", "line 2: the split is dev"),
        ("scan,label,split\nscan0.nii.gz,1,train\nscan1.nii.gz,1,\n", "gives some scans no split"),
        ("scan,label,co_rads\nscan0.nii.gz,1,7\n", "line 2: co_rads is 7"),
        (
            "scan,label,patient,split\nscan0.nii.gz,1,anna,train\nscan1.nii.gz,1,anna,test\n",
            "line 3: the patient of line 2 stands in the splits train and test",
        ),
        (
            "scan;label;Patient ID;split\nscan0.nii.gz;1;anna;train\nscan1.nii.gz;1;Anna;test\n",
            "line 3: the patient of line 2 stands in the splits train and test",
        ),
        ("scan,label,patient\nscan0.nii.gz,1,anna\nscan1.nii.gz,0,\n", "names the patient of some scans only"),
        ("scan,label,Label\nscan0.nii.gz,1,0\n", "two columns label"),
        ("scan,label,centre\nscan0.nii.gz,1,Leuven, UZ\n", "line 2: there are more cells than columns"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(rows: str, says: str, empty_scans: Path) -> None:
    with pytest.raises(InputError, match=says):
        read_scan_table(table(empty_scans, rows))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_cells_are_separated_as_spreadsheets_do(separator: str, tmp_path: Path) -> None:
    rows = [["series", "probability", "covid"], ["a", "0.75" if separator == "," else "0,75", "1"], ["b", "0.5", "0"]]
    path = table(tmp_path, "\n".join(separator.join(cells) for cells in rows) + "\n")
    assert [s.probability for s in read_predictions(path).scans] == [0.75, 0.5]


def test_a_patient_of_dicom_scans_is_known_by_its_tag(dicom_ct_path: Path, empty_scans: Path) -> None:
    """The same patient's CT in two folders must not stand in two splits, though no column names the patient."""
    for name in ("one", "two"):
        (empty_scans / name).mkdir()
        for path in sorted(dicom_ct_path.glob("*.dcm"))[:2]:
            (empty_scans / name / path.name).symlink_to(path)
    rows = "scan,label,split\none,1,train\nscan0.nii.gz,0,train\n"
    assert read_scan_table(table(empty_scans, rows))[0].patient not in ("", "one")
    rows = "scan,label,split\none,1,train\ntwo,0,test\n"
    with pytest.raises(InputError, match="by the PatientID of their DICOM files; a column patient can say otherwise"):
        read_scan_table(table(empty_scans, rows))
    scans = read_scan_table(table(empty_scans, "scan,label\none,1\ntwo,0\n"))
    assert all(scan.by_tag for scan in scans)
    with pytest.raises(InputError) as error:
        require_enough(split_scans(scans), ONE_PATIENT)
    assert "unless a column patient says otherwise" in error.value.remedy


def test_without_splits_patients_are_divided_and_stay_whole(empty_scans: Path) -> None:
    for n in range(200):
        (empty_scans / f"scan{n}.nii.gz").write_bytes(bytes([n]))
    rows = "".join(f"scan{n}.nii.gz,{int(n < 90)},p{n // 2}\n" for n in range(200))
    scans = read_scan_table(table(empty_scans, "scan,label,patient\n" + rows))
    split = split_scans(scans)
    parts = [split.train, split.validation, split.test]
    assert sorted(s.name for part in parts for s in part) == sorted(s.name for s in scans)
    patients = [{s.patient for s in part} for part in parts]
    assert not patients[0] & patients[1] and not patients[0] & patients[2] and not patients[1] & patients[2]
    assert all({s.covid for s in part} == {0, 1} for part in parts)
    assert 100 <= len(split.train) <= 140 and min(len(split.validation), len(split.test)) >= 25
    assert split_scans(scans) == split
    fewer = split_scans(scans[20:120])  # whoever joins the table changes nobody else's split
    assert all(set(a) <= set(b) for a, b in zip(vars(fewer).values(), vars(split).values(), strict=True))


def test_too_few_scans_of_a_kind_are_refused(empty_scans: Path) -> None:
    rows = "".join(f"scan{n}.nii.gz,{n % 2},{'train' if n < 6 else 'validation'}\n" for n in range(9))
    with pytest.raises(InputError, match="validation has 1 COVID-19 scans"):
        require_enough(split_scans(read_scan_table(table(empty_scans, "scan,label,split\n" + rows))))


def test_a_patient_written_in_other_letters_is_not_divided(empty_scans: Path) -> None:
    for n in range(80):
        (empty_scans / f"scan{n}.nii.gz").write_bytes(bytes([n]))
    rows = "".join(f"scan{n}.nii.gz,{n % 2},{'pP'[n // 40]}{n % 40}\n" for n in range(80))
    split = split_scans(read_scan_table(table(empty_scans, "scan,label,patient\n" + rows)))
    parts = [{s.path.name for s in part} for part in (split.train, split.validation, split.test)]
    assert all(any({f"scan{n}.nii.gz", f"scan{n + 40}.nii.gz"} <= part for part in parts) for n in range(40))
    backwards = "".join(f"{row}\n" for row in reversed(rows.splitlines()))
    again = split_scans(read_scan_table(table(empty_scans, "scan,label,patient\n" + backwards)))
    assert [{s.path.name for s in part} for part in (again.train, again.validation, again.test)] == parts


@pytest.mark.parametrize(("before", "after"), [("p{n}", "P{n}"), ("P{n}", "p{n}")], ids=["capitals", "small"])
def test_whoever_joins_in_another_spelling_changes_nobody_s_part(before: str, after: str, empty_scans: Path) -> None:
    header = "scan,label,patient\n"
    old = "".join(f"scan{n}.nii.gz,{n % 2},{before.format(n=n)}\n" for n in range(30))
    new = "".join(f"new{n}.nii.gz,{n % 2},{after.format(n=n)}\n" for n in range(30))
    for n in range(30):
        (empty_scans / f"new{n}.nii.gz").write_bytes(bytes([n, 1]))
    parts = []
    for rows in (header + old, header + old + new):
        split = vars(split_scans(read_scan_table(table(empty_scans, rows))))
        parts.append({s.path.name: part for part, scans in split.items() for s in scans})
    assert parts[0].items() <= parts[1].items()


def test_a_path_written_in_another_way_is_the_same_patient(empty_scans: Path) -> None:
    parts = []
    for prefix in ("", "./"):
        rows = "".join(f"{prefix}scan{n}.nii.gz,{n % 2}\n" for n in range(30))
        split = split_scans(read_scan_table(table(empty_scans, "scan,label\n" + rows)))
        parts.append({part: [s.path.name for s in scans] for part, scans in vars(split).items()})
    assert parts[0] == parts[1]


def test_a_copy_of_a_scan_is_not_tested_on_where_the_scan_is_learned_from(empty_scans: Path) -> None:
    (empty_scans / "copy.nii.gz").write_bytes((empty_scans / "scan0.nii.gz").read_bytes())
    for split, refused in (("test", True), ("train", False)):
        rows = f"scan,label,split\nscan0.nii.gz,1,train\nscan1.nii.gz,0,train\ncopy.nii.gz,1,{split}\n"
        scans = read_scan_table(table(empty_scans, rows))
        if refused:
            with pytest.raises(InputError, match=r"scan0\.nii\.gz and copy\.nii\.gz are the same scan, one for train"):
                split_scans(scans)
        else:
            assert len(split_scans(scans).train) == 3


@pytest.mark.parametrize("change", ["other names", "a note beside"])
def test_a_copy_under_other_file_names_is_a_copy(tmp_path: Path, change: str) -> None:
    for name, names in (("a", ("000.png", "001.png")), ("b", ("IM1.png", "IM0.png"))):
        (tmp_path / name).mkdir()
        for grey, file in enumerate(names if change == "other names" else ("000.png", "001.png")):
            Image.fromarray(np.full((8, 8), grey, np.uint8)).save(tmp_path / name / file)
    if change == "a note beside":
        (tmp_path / "b" / "note.txt").write_text("a copy")
    scans = read_scan_table(table(tmp_path, "scan,label,split\na,1,train\nb,1,test\n"))
    with pytest.raises(InputError, match="a and b are the same scan"):
        split_scans(scans)


@pytest.mark.parametrize("name", ["scans.tsv", "scans.txt"])
def test_a_table_of_another_ending_is_a_table(empty_scans: Path, name: str) -> None:
    (empty_scans / name).write_text("scan\tlabel\nscan0.nii.gz\t1\n")
    assert is_scan_table(empty_scans / name) and len(read_scan_table(empty_scans / name)) == 1
    assert not is_scan_table(empty_scans) and is_scan_table(empty_scans / "missing.tsv")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_linked_scan_is_known_by_what_the_link_leads_to(empty_scans: Path) -> None:
    for n in range(2):
        (empty_scans / f"archive{n}").mkdir()
        (empty_scans / f"archive{n}" / "1.dcm").write_text(f"scan {n}")
        (empty_scans / f"patient{n}").mkdir()
        (empty_scans / f"patient{n}" / "series").symlink_to(empty_scans / f"archive{n}")
    path = table(empty_scans, "scan,label\npatient0,1\npatient1,0\n")
    first, second = read_scan_table(path)
    assert first.digest != second.digest
    before = table_fingerprint(path)
    (empty_scans / "patient1" / "series").unlink()
    (empty_scans / "patient1" / "series").symlink_to(empty_scans / "archive0")
    assert table_fingerprint(path) != before


def test_a_scan_that_changes_is_another_state_of_the_data(empty_scans: Path) -> None:
    path = table(empty_scans, "scan,label\nscan0.nii.gz,1\nscan1.nii.gz,0\n")
    before = table_fingerprint(path)
    assert table_fingerprint(path) == before
    (empty_scans / "scan1.nii.gz").write_bytes(b"changed")
    assert table_fingerprint(path) != before


@pytest.fixture
def hospital(chest_phantom: Callable[..., Volume], tmp_path: Path) -> Path:
    """Eight CTs as NIfTI and two as folders of slices; COVID-19 has a lesion in the lungs."""
    rows = []
    for n in range(10):
        covid, split = n % 2, ("train", "train", "validation", "validation", "test")[n // 2]
        chest = chest_phantom(spacing=(4.0, 4.0, 10.0), seed=n)
        if covid:
            chest.voxels[12:20, 20:34, 16:30] = -300
        if n < 8:
            name = f"ct{n}.nii.gz"
            write_image(chest, tmp_path / name)
        else:
            name = f"ct{n}"
            (tmp_path / name).mkdir()
            for k, hu in enumerate(chest.voxels[8:24:2]):
                write_png(hu_to_grey(np.kron(hu, np.ones((2, 2)))), tmp_path / name / f"{k}.png")
        rows.append(f"{name},{covid},{split},{1 + 4 * covid},A\n")
    return table(tmp_path, "scan,label,split,co_rads,centre\n" + "".join(rows))


def test_a_table_trains_cvae_and_classifier_and_is_evaluated(
    hospital: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    bundle = tmp_path / "own" / "mine"
    seen: dict[str, list[str]] = {}

    def watch(module: Any, name: str, place: int) -> None:
        call = getattr(module, name)

        def watched(*given: Any, **named: Any) -> Any:
            seen[name] = [example.name[:4] for example in given[place]]
            return call(*given, **named)

        monkeypatch.setattr(module, name, watched)

    watch(diagnosis, "cvae_recipe", 0)
    watch(diagnosis, "classifier_recipe", 0)
    watch(train_module, "calibrate", 1)
    # A clinic without label maps starts from the bundle that there is.
    for network, base in (("cvae", ("--bundle", tiny_bundle)), ("classifier", ())):
        call = ["train", network, "--data", hospital, "--output", bundle, "--steps", 1, *base]
        assert main([str(a) for a in call]) == 0
    assert seen["cvae_recipe"] == seen["classifier_recipe"] == ["0001", "0002", "0003", "0004"]
    assert seen["calibrate"] == ["0005", "0006", "0007", "0008"]
    told = capsys.readouterr().out
    assert "starts as a copy of the bundle" in told
    assert "of the scans for validation it calls 2 of 2 COVID-19" in told
    facts = open_bundle(bundle).networks
    assert facts.keys() == open_bundle(tiny_bundle).networks.keys() | {"cvae", "novelty"}
    assert open_bundle(bundle).fingerprint(SEGMENTING) == open_bundle(tiny_bundle).fingerprint(SEGMENTING)
    assert open_bundle(bundle).version.endswith("+retrained")
    assert main([*map(str, call), "--bundle", str(tiny_bundle)]) == 2
    assert "is a bundle already" in capsys.readouterr().err
    assert facts["classifier"]["training"]["sources"] == "own data"
    assert facts["classifier"]["training"]["recipe"] == "short"
    assert main([str(a) for a in ["train", "cvae", "--data", hospital, "--output", bundle, "--steps", 2]]) == 0
    assert "The bundle's classifier learned beside another cvae: train it again." in capsys.readouterr().out
    assert open_bundle(bundle).settings["diagnosis"]["threshold"] != 0.5
    fitted = open_bundle(bundle).settings["diagnosis"]["calibrated_on"]
    assert fitted == {"scans": 4, "covid": 2, "aimed_sensitivity": 0.9}
    usual = open_bundle(bundle).settings["appearance"]
    assert 0 < usual["least_texture"] < usual["greatest_texture"] < 1 and 0 < usual["least_surround"] < 1
    table_out = tmp_path / "predictions.csv"
    call = ["evaluate", "diagnosis", "--data", hospital, "--bundle", bundle, "--output", table_out, "--all-splits"]
    call += ["--pictures", tmp_path / "pictures", "--run", tmp_path / "kept"]
    assert main([str(a) for a in call]) == 0
    told = capsys.readouterr()
    assert "2 held-out scans (1 COVID-19)" in told.out and told.err.count("Segmenting scan") == 10
    once = table_out.read_text()
    assert main([str(a) for a in call]) == 0  # goes on from what is kept
    assert "Segmenting" not in capsys.readouterr().err and table_out.read_text() == once
    found = read_predictions(table_out)
    assert [(s.covid, s.co_rads, s.centre) for s in found.tested.scans] == [(0, 1, "A"), (1, 5, "A")]
    assert [s.split for s in found.scans] == ["test"] * 2 + ["train"] * 4 + ["validation"] * 4
    assert all(s.involvement_percent is not None for s in found.scans)
    # Called and warned of as diagnosing one scan does; the table says so.
    threshold = open_bundle(bundle).settings["diagnosis"]["threshold"]
    assert [s.called for s in found.scans] == [s.probability >= threshold for s in found.scans]
    assert {p.stem for p in (tmp_path / "pictures").iterdir()} == {s.name for s in found.tested.scans}
    for path in (tmp_path / "pictures").iterdir():
        with Image.open(path) as picture:
            assert picture.format == "PNG" and np.asarray(picture).std() > 5
    page = tmp_path / "report.html"
    call = ["evaluate", "report", table_out, "--output", page, "--bundle", bundle, "--pictures", tmp_path / "pictures"]
    assert main([str(a) for a in call]) == 0 and page.read_text().count("data:image/png") == 2
    call = ["evaluate", "diagnosis", "--data", hospital, "--bundle", bundle]
    # Nothing but an older table of its own is written over, and that is said before hours of work.
    own = tmp_path / "own.csv"
    own.write_text(once.replace("scan,", "patient,scan,", 1))
    capsys.readouterr()
    for path in (hospital, own, page, tmp_path):
        before = path.read_bytes() if path.is_file() else None
        assert main([str(a) for a in (*call, "--output", path)]) == 2
        assert "Choose another name for the table" in capsys.readouterr().err
        assert before is None or path.read_bytes() == before
    assert main([str(a) for a in (*call, "--all-splits")]) == 2
    assert main([str(a) for a in (*call, "--pictures", table_out)]) == 2


def test_a_bundle_is_measured_on_a_table_of_tests_alone(
    hospital: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "validation"):
        hospital.write_text(hospital.read_text().replace(f",{split},", ",test,"))
    assert main(["evaluate", "diagnosis", "--data", str(hospital), "--bundle", str(tiny_bundle)]) == 0
    assert "10 held-out scans (5 COVID-19)" in capsys.readouterr().out
    assert main(["train", "cvae", "--data", str(hospital), "--output", str(tiny_bundle)]) == 3
    assert "The split train has 0 other scans" in capsys.readouterr().err


def test_masks_beside_slices_are_not_learned_from(hospital: Path, tiny_bundle: Path) -> None:
    scan = read_scan_table(hospital)[9]
    models = Models(open_bundle(tiny_bundle), torch.device("cpu"))
    alone = scan.classifier_input(models, 64)
    mask = np.zeros((120, 120), np.uint8)
    mask[40:80, 40:80] = 255
    write_png(mask, scan.path / "3_mask.png")
    beside = scan.classifier_input(models, 64)
    assert len(alone.ct) == 8 and torch.equal(beside.ct, alone.ct) and torch.equal(beside.lesions, alone.lesions)


def test_scans_that_cannot_be_used_are_all_named(
    hospital: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = revise_bundle(tiny_bundle, tmp_path / "mine", networks={}).folder
    for name in ("ct1.nii.gz", "ct2.nii.gz"):
        (tmp_path / name).write_bytes(b"no image")
    assert main([str(a) for a in ("train", "cvae", "--data", hospital, "--output", bundle, "--steps", 1)]) == 3
    told = capsys.readouterr().err
    assert "0002-ct1" in told and "0003-ct2" in told and "Traceback" not in told
    rows = [*csv.DictReader(hospital.open(encoding="utf-8"))]
    assert len(rows) == 10


@pytest.mark.parametrize(
    ("network", "options", "says"),
    [
        ("lungs", [], "does not learn from a table"),
        ("lungs", ["--recipe", "paper"], "does not learn from a table"),
        ("cvae", ["--recipe", "paper", "--steps", "5"], "has its own length"),
        ("classifier", ["--sensitivity", "0"], "is no sensitivity"),
        ("cvae", ["--sensitivity", "0.8"], "has no threshold"),
    ],
)
def test_a_wrong_call_is_refused(
    network: str, options: list[str], says: str, empty_scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(empty_scans, "scan,label\nscan0.nii.gz,1\n")
    assert main(["train", network, "--data", str(path), "--output", str(empty_scans / "b"), *options]) == 2
    assert says in capsys.readouterr().err


@pytest.fixture
def detached(tmp_path: Path, chest_phantom: Callable[..., Volume]) -> Path:
    """Two patients whose MetaImage headers are equal, as after resampling to one grid; their voxels are not."""
    for patient, seed in (("p0", 0), ("p1", 1)):
        (tmp_path / patient).mkdir()
        image = sitk.GetImageFromArray(chest_phantom(spacing=(8.0, 8.0, 10.0), seed=seed).voxels)
        sitk.WriteImage(image, str(tmp_path / patient / "ct.mhd"))
    headers = [(tmp_path / patient / "ct.mhd").read_bytes() for patient in ("p0", "p1")]
    assert headers[0] == headers[1] and b"ElementDataFile = ct.raw" in headers[0]
    return tmp_path


def test_the_voxels_beside_a_header_belong_to_the_scan(detached: Path) -> None:
    first, second = read_scan_table(table(detached, "scan,label\np0/ct.mhd,1\np1/ct.mhd,0\n"))
    assert first.digest != second.digest and first.size > 1000
    swapped, _ = read_scan_table(table(detached, "scan,label\np1/ct.mhd,0\np0/ct.mhd,1\n"))
    assert swapped.name == first.name and swapped.digest != first.digest, "the cache would give the other's voxels"
    split_scans(read_scan_table(table(detached, "scan,label,split\np0/ct.mhd,1,train\np1/ct.mhd,0,validation\n")))
    before = table_fingerprint(detached / "scans.csv")
    (detached / "p0" / "ct.raw").write_bytes((detached / "p1" / "ct.raw").read_bytes())
    assert table_fingerprint(detached / "scans.csv") != before


def test_a_picture_beside_dicom_files_is_no_scan(tmp_path: Path, dicom_ct_path: Path) -> None:
    for file in sorted(dicom_ct_path.glob("*.dcm"))[:6]:
        (tmp_path / "ct").mkdir(exist_ok=True)
        (tmp_path / "ct" / file.name).symlink_to(file)
    (tmp_path / "slices").mkdir()
    for folder in ("ct", "slices"):
        Image.new("L", (64, 64), 90).save(tmp_path / folder / "keyimage.png")
    ct, slices = read_scan_table(table(tmp_path, "scan,label\nct,1\nslices,0\n"))
    assert not ct.picture and slices.picture


def test_one_file_of_a_dicom_series_is_refused(tmp_path: Path, dicom_ct_path: Path) -> None:
    """Its patient and the files beside it would be overlooked."""
    file = sorted(dicom_ct_path.glob("*.dcm"))[0]
    (tmp_path / "1.dcm").symlink_to(file)
    with pytest.raises(InputError, match=r"line 2: 1\.dcm is one file of a DICOM series: give the folder"):
        read_scan_table(table(tmp_path, "scan,label\n1.dcm,1\n"))


PATIENT_COLUMNS = """
Patient No|patient_name|MRN|PatID|Participant|Patient No.|Patient #|PatientNr|Patient Identifier|patients|patient_uid
SubjectNo|anonymized patient id|Patient's Name|Pseudonym
"""


@pytest.mark.parametrize("column", PATIENT_COLUMNS.strip().replace("\n", "|").split("|"))
def test_columns_that_say_who_a_scan_is_of_are_not_overlooked(empty_scans: Path, column: str) -> None:
    rows = f"scan,label,{column},split\nscan0.nii.gz,1,P0,train\nscan1.nii.gz,0,P0,test\n"
    with pytest.raises(InputError, match="stands in the splits train and test"):
        read_scan_table(table(empty_scans, rows))


@pytest.mark.parametrize("columns", ["PatientName,MRN", "PatientID,MRN", "patient,MRN", "MRN,Patient"])
def test_a_column_that_was_emptied_does_not_hide_the_one_that_says_who_it_is(empty_scans: Path, columns: str) -> None:
    cells = ["P0" if name == "MRN" else "" for name in columns.split(",")]
    rows = "".join(f"scan{n}.nii.gz,1,{','.join(cells)},{split}\n" for n, split in enumerate(("train", "test")))
    with pytest.raises(InputError, match="stands in the splits train and test"):
        read_scan_table(table(empty_scans, f"scan,label,{columns},split\n{rows}"))


def test_columns_that_differ_in_signs_are_others(empty_scans: Path) -> None:
    rows = "scan #,scan,label,label (%),Patient,Patient*\n7,scan0.nii.gz,1,5,P1,x\n"
    (scan,) = read_scan_table(table(empty_scans, rows))
    assert (scan.covid, scan.patient) == (1, "P1")


@pytest.mark.parametrize("column", ["inpatient", "patient_age", "Patient Sex", "patient weight", "patience"])
def test_a_column_that_says_something_else_of_a_patient_is_none(empty_scans: Path, column: str) -> None:
    rows = f"scan,label,{column},split\nscan0.nii.gz,1,60,train\nscan1.nii.gz,0,60,test\n"
    assert len({scan.patient for scan in read_scan_table(table(empty_scans, rows))}) == 2


@pytest.mark.parametrize("columns", ["patient,mrn", "MRN,Patient", "patient_id,patient name", "Patient Name,PatientID"])
def test_of_several_columns_that_say_who_it_is_the_usual_one_counts(empty_scans: Path, columns: str) -> None:
    names = columns.lower().split(",")
    usual = next(n for n in ("patient", "patient_id", "patientid") if n in names)
    cells = ["P7" if name == usual else "other" for name in names]
    (scan,) = read_scan_table(table(empty_scans, f"scan,label,{columns}\nscan0.nii.gz,1,{','.join(cells)}\n"))
    assert scan.patient == "P7"


@pytest.mark.parametrize("absolute", [False, True])
def test_the_files_of_a_pattern_belong_to_the_scan(tmp_path: Path, absolute: bool) -> None:
    for number in (1, 2, 10):
        (tmp_path / f"slice{number:03}.raw").write_bytes(b"voxels")
    (tmp_path / "other.raw").touch()
    pattern = f"{tmp_path}/slice%03d.raw" if absolute else "slice%03d.raw"
    header = tmp_path / "ct.nhdr"
    header.write_text(f"NRRD0004\ndimension: 3\ndata file: {pattern} 1 10 1\n")
    assert [path.name for path in files_of(header)] == ["ct.nhdr", "slice001.raw", "slice002.raw", "slice010.raw"]
    header.write_text("NRRD0004\ndata file: LIST\nslice002.raw\nslice001.raw\n")
    assert [path.name for path in files_of(header)] == ["ct.nhdr", "slice001.raw", "slice002.raw"]
    header.write_text("NRRD0004\nencoding: raw\n\nvoxels")
    assert files_of(header) == [header]
    header = header.rename(tmp_path / "ct.mha")
    header.write_text("ObjectType = Image\nElementDataFile = LIST\nslice002.raw\nslice010.raw\n")
    assert [path.name for path in files_of(header)] == ["ct.mha", "slice002.raw", "slice010.raw"]
    header.write_text("ObjectType = Image\nElementDataFile = slice001.raw")
    assert [path.name for path in files_of(header)] == ["ct.mha", "slice001.raw"]
