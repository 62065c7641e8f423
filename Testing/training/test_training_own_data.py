"""A hospital's own data: what is refused and how it is named, what is held out, and a training on it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from CovidCTDiagnosisLib.__main__ import main
from CovidCTDiagnosisLib.bundle import NetworkRecord, open_bundle, revise_bundle
from CovidCTDiagnosisLib.ct import Volume, read_scan, write_image
from CovidCTDiagnosisLib.ct.dicom_header import patient_id
from CovidCTDiagnosisLib.ct.files import as_int16
from CovidCTDiagnosisLib.errors import InputError
from CovidCTDiagnosisLib.networks import UNet3D
from CovidCTDiagnosisLib.training.own_data import (
    Label,
    OwnCase,
    _list_cases,
    check_own_data,
    hold_out,
    is_own_data,
    prepare,
)
from CovidCTDiagnosisLib.training.sources import UNKNOWN_LESION, data_fingerprint, fingerprint
from hypothesis import given
from hypothesis import strategies as st

MakeCase = Callable[..., None]


@pytest.fixture(scope="module")
def chest(chest_phantom: Callable[..., Volume]) -> Volume:
    return chest_phantom(spacing=(3.0, 3.0, 5.0))


def lungs_of(chest: Volume) -> np.ndarray:
    return ((chest.voxels > -930) & (chest.voxels < -770)).astype(np.uint8)


def lesions_of(chest: Volume) -> np.ndarray:
    lesions = np.zeros(chest.shape, np.uint8)
    k, j, i = np.argwhere(lungs_of(chest))[len(np.argwhere(lungs_of(chest))) // 3]
    lesions[k - 2 : k + 3, j - 4 : j + 5, i - 4 : i + 5] = 2
    return np.where(lungs_of(chest), lesions, 0).astype(np.uint8)


@pytest.fixture
def make(chest: Volume, tmp_path: Path) -> MakeCase:
    """Writes one case; parts may be left out or changed."""
    lungs_of_chest, lesions_of_chest = chest.with_voxels(lungs_of(chest)), chest.with_voxels(lesions_of(chest))

    def write(
        name: str,
        image: Volume | None = chest,
        lungs: Volume | None = lungs_of_chest,
        lesions: Volume | None = lesions_of_chest,
        ending: str = ".nii.gz",
    ) -> None:
        for kind, volume in (("images", image), ("lungs", lungs), ("lesions", lesions)):
            (tmp_path / kind).mkdir(exist_ok=True)
            if volume is not None:
                write_image(volume, tmp_path / kind / f"{name}{ending}")

    return write


def test_good_cases_are_listed_by_name(make: MakeCase, tmp_path: Path) -> None:
    make("b", ending=".nrrd")
    make("a", lesions=None)
    assert is_own_data(tmp_path) and not is_own_data(tmp_path / "images")
    assert [case.name for case in check_own_data(tmp_path, "lungs")] == ["a", "b"]
    assert [case.name for case in check_own_data(tmp_path, "lesions")] == ["b"]


def test_an_image_may_be_a_folder_of_dicom_files(dicom_ct_path: Path, tmp_path: Path) -> None:
    for kind in ("images", "lungs"):
        (tmp_path / kind).mkdir()
    (tmp_path / "images" / "a").symlink_to(dicom_ct_path)
    ct = read_scan(dicom_ct_path)
    dark = ct.voxels < -500
    write_image(ct.with_voxels(dark.astype(np.uint8)), tmp_path / "lungs" / "a.nrrd")
    (case,) = prepare(check_own_data(tmp_path, "lungs"), tmp_path / "cache", "lungs")
    assert case.labels is not None and case.labels.any() and case.hu[case.labels > 0].max() < -500
    (tmp_path / "lungs" / "a.nrrd").unlink()
    (tmp_path / "lungs" / "a").mkdir()
    assert "a: lungs: the label map is a folder" in problems_of(tmp_path, "lungs")


def test_every_bad_case_is_named_with_what_is_wrong(make: MakeCase, chest: Volume, tmp_path: Path) -> None:
    empty = chest.with_voxels(np.zeros(chest.shape, np.uint8))
    make("good")
    make("empty-lungs", lungs=empty, lesions=None)
    make("strange-class", lesions=chest.with_voxels(np.full(chest.shape, 9, np.uint8)))
    make("outside", lesions=chest.with_voxels((chest.voxels > 0).astype(np.uint8)))
    make("moved", lungs=replace(chest.with_voxels(lungs_of(chest)), origin=(50.0, 0.0, 0.0)))
    make("lost-label", image=None)
    make("no-ct", image=chest.with_voxels(np.zeros(chest.shape, np.int16)))
    make("twice")
    make("twice", ending=".nrrd")
    make("broken")
    (tmp_path / "images" / "broken.nii.gz").write_bytes(b"not an image")
    (tmp_path / "cases.csv").write_text("name,patient,split\ngood,p,train\noutside,p,test\nnobody,q,\nmoved,r,half\n")
    with pytest.raises(InputError) as caught:
        check_own_data(tmp_path, "lungs")
    lines = caught.value.message.splitlines()
    for name, word in {
        "empty-lungs": "empty",
        "strange-class": "unknown label 9",
        "outside": "outside the lungs",
        "moved": "grid",
        "lost-label": "no image",
        "no-ct": "image",
        "twice": "several files",
        "broken": "image",
        "good, outside": "two splits",
        "nobody": "no image named",
        "half": "not train or test",
    }.items():
        assert any(name in line and word in line for line in lines), (name, lines)
    assert not any(line.strip().startswith("good:") for line in lines)


def problems_of(data: Path, network: str) -> str:
    with pytest.raises(InputError) as caught:
        check_own_data(data, network)
    return caught.value.message


@pytest.mark.parametrize("change", ["negative", "probabilities", "the CT"])
def test_what_is_no_lung_label_map_is_refused(change: str, make: MakeCase, chest: Volume, tmp_path: Path) -> None:
    lungs = lungs_of(chest).astype(np.int16)
    voxels: dict[str, np.ndarray] = {
        "negative": -lungs,
        "probabilities": (0.4 * lungs).astype(np.float32),
        "the CT": chest.voxels,
    }
    make("a", lungs=chest.with_voxels(voxels[change]))
    assert "a: lungs: unknown label" in problems_of(tmp_path, "lungs")


def test_of_many_unknown_labels_a_few_are_named(make: MakeCase, chest: Volume, tmp_path: Path) -> None:
    make("a", lesions=chest)
    lines = problems_of(tmp_path, "lesions").splitlines()
    assert "more" in lines[1] and len(lines[1]) < 120


def test_an_image_without_any_label_map_is_named(make: MakeCase, tmp_path: Path) -> None:
    make("good")
    make("bare", lungs=None, lesions=None)
    assert "images/bare" in problems_of(tmp_path, "lungs")


def test_cases_for_testing_alone_are_refused(make: MakeCase, tmp_path: Path) -> None:
    make("a")
    (tmp_path / "cases.csv").write_text("name,patient,split\na,p,test\n")
    assert "split test" in problems_of(tmp_path, "lungs")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_in_another_encoding_is_named(encoding: str, make: MakeCase, tmp_path: Path) -> None:
    make("a")
    (tmp_path / "cases.csv").write_text("name,patient,split\na,Müller,train\n", encoding=encoding)
    found = problems_of(tmp_path, "lungs")
    assert "cases.csv" in found and "ller" not in found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Name;PatientID;Split\na;p;train\n", []),  # as spreadsheets write it, and as DICOM calls it
        ("name,split\na,train\n", ["cases.csv has no column patient"]),
        ("name,patient,split\na,p,train\na,p,train\n", ["cases.csv, line 3: a stands there twice"]),
    ],
)
def test_the_table_is_read_as_other_tables_are(text: str, found: list[str], make: MakeCase, tmp_path: Path) -> None:
    make("a")
    (tmp_path / "cases.csv").write_text(text)
    if not found:
        assert [case.patient for case in check_own_data(tmp_path, "lungs")] == ["p"]
    for sentence in found:
        assert sentence in problems_of(tmp_path, "lungs")


def test_empty_rows_and_hidden_files_do_not_matter(make: MakeCase, tmp_path: Path) -> None:
    make("a")
    (tmp_path / "images" / "._a.nii.gz").write_bytes(b"what some systems leave")
    (tmp_path / "cases.csv").write_text("name,patient,split\na,p,train\n,,\n\n")
    assert [(case.name, case.patient) for case in check_own_data(tmp_path, "lungs")] == [("a", "p")]


def test_a_folder_without_the_label_that_is_needed_says_so(make: MakeCase, tmp_path: Path) -> None:
    make("a", lesions=None)
    with pytest.raises(InputError, match="lesions/"):
        check_own_data(tmp_path, "involvement")


def owned(patients: list[tuple[str, bool, bool]]) -> list[OwnCase]:
    """A case for each patient, split and whether it has a lesion."""
    return [
        OwnCase(f"{n}", Path(), None, None, patient, "test" if test else "train", frozenset({1} if lesion else ()))
        for n, (patient, test, lesion) in enumerate(patients)
    ]


PATIENTS = st.tuples(st.sampled_from("abcdefghijklmnopq"), st.booleans(), st.booleans())


@given(patients=st.lists(PATIENTS, min_size=1, max_size=40), kind=st.sampled_from(["lungs", "lesions"]))
def test_no_patient_is_learned_from_and_held_out(patients: list[tuple[str, bool, bool]], kind: Label) -> None:
    cases = owned(patients)
    learn, check = hold_out(cases, kind)
    assert {c.patient for c in learn}.isdisjoint(c.patient for c in check)
    assert {c.name for c in [*learn, *check]} == {c.name for c in cases if c.split != "test"}
    count = len({c.patient for c in cases if c.split != "test"})
    wanted = max(count // 8, 1) if count >= 4 else 0
    assert len({c.patient for c in check}) == wanted if kind == "lungs" else len({c.patient for c in check}) <= wanted


@given(patients=st.lists(PATIENTS, min_size=4, max_size=40), named=st.integers(0, 3))
def test_the_last_with_lesions_of_a_known_class_are_learned_from(
    patients: list[tuple[str, bool, bool]], named: int
) -> None:
    cases = [
        replace(case, found=frozenset({UNKNOWN_LESION} | ({2} if n < named else set()))) if case.found else case
        for n, case in enumerate(owned(patients))
    ]
    known = [case for case in cases if 2 in case.found and case.split != "test"]
    learn, _ = hold_out(cases, "lesions")
    assert not known or any(2 in case.found for case in learn)


@given(patients=st.lists(PATIENTS, min_size=1, max_size=40))
def test_who_is_kept_has_lesions_and_so_has_someone_who_is_learned_from(patients: list[tuple[str, bool, bool]]) -> None:
    cases = owned(patients)
    learn, check = hold_out(cases, "lesions")
    sick = {c.patient for c in cases if c.found and c.split != "test"}
    assert {c.patient for c in check} <= sick
    assert not sick or any(c.found for c in learn)
    if len(sick) >= 2 and len({c.patient for c in cases if c.split != "test"}) >= 4:
        assert check


def test_lesions_of_unknown_class_alone_teach_no_classes(
    make: MakeCase,
    chest: Volume,
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    unknown = chest.with_voxels(np.where(lesions_of(chest), UNKNOWN_LESION, 0).astype(np.uint8))
    make("a", lesions=unknown)
    for network in ("involvement", "lesions"):
        call = ["train", network, "--data", str(tmp_path), "--steps", "1", "--output"]
        assert main([*call, str(tmp_path / "anew")]) == 3
        assert "of a known class" in (said := capsys.readouterr().err) and "--fine-tune" in said
        mine = tmp_path / f"mine-{network}"
        shutil.copytree(tiny_bundle, mine)
        assert main([*call, str(mine), "--fine-tune"]) == 0
    make("b")
    assert main(["train", "lesions", "--data", str(tmp_path), "--steps", "1", "--output", str(tmp_path / "anew")]) == 0


def test_a_patient_is_the_same_in_any_case_of_letters(make: MakeCase, tmp_path: Path) -> None:
    make("a")
    make("b")
    (tmp_path / "cases.csv").write_text("name,patient,split\na,P1,train\nb,p1,test\n")
    assert "a, b: one patient stands in two splits" in problems_of(tmp_path, "lungs")
    (tmp_path / "cases.csv").write_text("name,patient,split\na,P1,\nb,p1,\n")
    assert {case.patient for case in check_own_data(tmp_path, "lungs")} == {"P1"}


def test_prepared_cases_are_axial_stay_on_disk_and_are_read_once(make: MakeCase, chest: Volume, tmp_path: Path) -> None:
    make("a")
    cases = check_own_data(tmp_path, "lesions")
    (case,) = prepare(cases, tmp_path / "cache", "lesions")
    assert isinstance(case.hu, np.memmap) and case.spacing == pytest.approx(chest.spacing[::-1])
    np.testing.assert_array_equal(case.hu, chest.voxels)
    np.testing.assert_array_equal(case.labels, lesions_of(chest))
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    prepare(cases, tmp_path / "cache", "lesions")
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}


@pytest.mark.parametrize("network", ["lungs", "involvement", "lesions"])
def test_training_on_own_data_makes_a_bundle(
    network: str, make: MakeCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for name in "abcd":
        make(name)
    output = tmp_path / "out" / "mine"
    assert main(["train", network, "--data", str(tmp_path), "--output", str(output), "--steps", "1"]) == 0
    facts = open_bundle(output).networks[network]["training"]
    assert facts["sources"].startswith("own data") and ("ImageNet" in facts["sources"]) == (network == "involvement")
    assert facts["steps"] == [0, 1]  # one stage
    assert "who says here who may use them" in open_bundle(output).license_text


def test_fine_tuning_keeps_the_architecture_of_the_bundle(
    make: MakeCase, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny bundle's 2DS is plain and says nothing of density: not the network that is trained anew today."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    make("a")
    output = tmp_path / "out" / "mine"
    shutil.copytree(tiny_bundle, output)
    options = ["--data", tmp_path, "--output", output, "--steps", 2, "--fine-tune"]
    assert main(["train", "involvement", *map(str, options)]) == 0
    before, after = open_bundle(tiny_bundle), open_bundle(output)
    record = after.networks["involvement"]
    assert record["architecture"] == before.networks["involvement"]["architecture"]
    assert record["training"]["sources"] == "unknown; then own data" and record["training"]["fine_tuned"]
    assert after.license_text == before.license_text  # what it learned before keeps its terms
    assert after.weights("involvement").keys() == before.weights("involvement").keys()


def test_fine_tuning_keeps_an_architecture_of_which_the_bundle_says_nothing(
    make: MakeCase, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The U-Net of earlier bundles has the widths that are usual for the class, not those trained anew today."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    make("a")
    usual = NetworkRecord({}, open_bundle(tiny_bundle).networks["lesions"]["preprocessing"], UNet3D().state_dict(), {})
    output = tmp_path / "out" / "mine"
    output.parent.mkdir()
    revise_bundle(tiny_bundle, output, networks={"lesions": usual})
    options = ["--data", tmp_path, "--output", output, "--steps", 1, "--fine-tune"]
    assert main(["train", "lesions", *map(str, options)]) == 0
    assert open_bundle(output).networks["lesions"]["architecture"] == {}
    shapes = {name: weights.shape for name, weights in open_bundle(output).weights("lesions").items()}
    assert shapes == {name: weights.shape for name, weights in UNet3D().state_dict().items()}


def test_the_seed_matters_and_so_does_a_case_that_is_added(
    make: MakeCase, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    output = tmp_path_factory.mktemp("bundles")
    for name in "abcd":
        make(name)

    def train(bundle: str, seed: int) -> str:
        options = ["--data", tmp_path, "--output", output / bundle, "--steps", 1, "--seed", seed]
        assert main(["train", "involvement", *map(str, options)]) == 0
        opened = open_bundle(output / bundle)
        return opened.sha256[opened.networks["involvement"]["file"]]

    first = train("one", 0)
    assert train("one", 0) == first != train("two", 1)
    runs = output / "one-runs"
    before = set(runs.glob("involvement-*"))
    make("e")
    train("one", 0)
    assert before < set(runs.glob("involvement-*"))  # learned anew, not read from the run that is finished


def test_a_bad_folder_ends_with_exit_code_3_before_training(
    make: MakeCase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make("a", lungs=None)
    assert main(["train", "lungs", "--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 3
    assert "lungs/" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_lesions_without_a_lesion_teach_nothing(make: MakeCase, chest: Volume, tmp_path: Path) -> None:
    nothing = chest.with_voxels(np.zeros(chest.shape, np.uint8))
    make("healthy", lesions=nothing)
    assert "no label map in lesions/ holds a lesion" in problems_of(tmp_path, "involvement")
    make("sick")
    assert len(check_own_data(tmp_path, "involvement")) == 2


def test_a_label_map_stored_along_other_axes_is_named(make: MakeCase, chest: Volume, tmp_path: Path) -> None:
    """Columns first and a direction that says so: in the patient it lies right, voxel by voxel it does not."""
    side = min(chest.shape[1:])
    square = Volume(chest.voxels[:, :side, :side], chest.spacing, chest.origin, chest.direction)
    lungs = lungs_of(chest)[:, :side, :side]
    axes = np.asarray(chest.direction)[:, [1, 0, 2]]
    swapped = Volume(np.ascontiguousarray(lungs.transpose(0, 2, 1)), chest.spacing, chest.origin, axes)
    make("swapped", image=square, lungs=swapped, lesions=None)
    assert "swapped: lungs: the label map does not lie on the image's grid" in problems_of(tmp_path, "lungs")


def test_scans_of_one_patient_are_known_by_their_dicom_tag(make: MakeCase, tmp_path: Path, dicom_ct_path: Path) -> None:
    for name in ("a", "b"):
        make(name)
        (tmp_path / "images" / f"{name}.nii.gz").unlink()
        (tmp_path / "images" / name).symlink_to(dicom_ct_path)
    patient = patient_id(dicom_ct_path)
    assert patient
    cases, problems = _list_cases(tmp_path)
    assert [case.patient for case in cases] == [patient, patient] and not problems
    (tmp_path / "cases.csv").write_text("name,patient,split\na,,train\nb,,test\n")
    _, (problem,) = _list_cases(tmp_path)
    assert "one patient stands in two splits by the PatientID" in problem and patient not in problem
    (tmp_path / "cases.csv").write_text("name,patient,split\na,anna,train\nb,bob,test\n")
    cases, problems = _list_cases(tmp_path)
    assert [case.patient for case in cases] == ["anna", "bob"] and not problems


def test_patients_are_named_for_all_cases_or_for_none(make: MakeCase, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make(name)
    (tmp_path / "cases.csv").write_text("name,patient,split\na,anna,train\n")
    with pytest.raises(InputError, match="names the patient of some cases only"):
        check_own_data(tmp_path, "lungs")


def test_a_label_map_is_known_by_its_voxels_also_where_they_lie_beside_its_header(
    make: MakeCase, tmp_path: Path, chest: Volume
) -> None:
    make("a", lesions=None, ending=".mhd")
    header, data = tmp_path / "lungs" / "a.mhd", tmp_path / "lungs" / "a.raw"
    sitk.WriteImage(sitk.ReadImage(str(header)), str(header))
    assert data.exists(), "the voxels lie in a file of their own"
    before = prepare(check_own_data(tmp_path, "lungs"), tmp_path / "cache", "lungs")[0].labels
    assert before is not None
    corrected = np.where(np.arange(chest.shape[0])[:, None, None] < 20, lungs_of(chest), 0).astype(np.uint8)
    image = sitk.ReadImage(str(header))
    drawn = sitk.GetImageFromArray(corrected)
    drawn.CopyInformation(image)
    time.sleep(0.02)
    data.write_bytes(corrected.astype(sitk.GetArrayFromImage(image).dtype).tobytes())
    after = prepare(check_own_data(tmp_path, "lungs"), tmp_path / "cache", "lungs")[0].labels
    assert after is not None and 0 < after.sum() < before.sum()


def test_hu_beyond_int16_do_not_turn_over() -> None:
    np.testing.assert_array_equal(as_int16(np.array([-1e5, -1000.6, 0.5, 4e4])), [-32768, -1001, 0, 32767])


def test_what_file_managers_leave_changes_no_fingerprint(make: MakeCase, tmp_path: Path) -> None:
    make("a")
    before = data_fingerprint(tmp_path), fingerprint(tmp_path)
    for folder in (tmp_path, tmp_path / "images"):
        (folder / ".DS_Store").write_bytes(b"seen")
        (folder / "Thumbs.db").write_bytes(b"seen")
    assert (data_fingerprint(tmp_path), fingerprint(tmp_path)) == before
    (tmp_path / "images" / "more.txt").write_bytes(b"seen")
    assert data_fingerprint(tmp_path) != before[0]
