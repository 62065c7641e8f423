"""The shipped bundle on the two real sample CTs, through the command line as a user calls it."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from CovidCTDiagnosisLib.__main__ import main
from CovidCTDiagnosisLib.bundle import open_bundle
from CovidCTDiagnosisLib.ct import Volume, fetch_truth, read_image, read_scan, to_axial
from CovidCTDiagnosisLib.ct.slice_images import hu_to_grey
from CovidCTDiagnosisLib.pipeline.models import Models
from CovidCTDiagnosisLib.pipeline.slice_segmentation import SliceOptions, segment_images
from CovidCTDiagnosisLib.pipeline.slice_series import diagnose_images
from CovidCTDiagnosisLib.study import Study, read_study
from PIL import Image

Analyzed = tuple[Path, Study, Path]


@pytest.fixture(scope="module")
def analyze(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Analyzed]:
    def run(scan: Path) -> Analyzed:
        folder = tmp_path_factory.mktemp("real")
        study, picture = folder / "study", folder / "picture.png"
        command = [sys.executable, "-m", "CovidCTDiagnosisLib", "analyze", str(scan), "--output", str(study)]
        done = subprocess.run(
            [*command, "--picture", str(picture)], capture_output=True, encoding="utf-8", errors="replace", check=False
        )
        assert done.returncode == 0, done.stderr
        assert "COVID-19 probability" in done.stdout
        assert "For research, not for diagnosis." in done.stdout
        return scan, read_study(study), picture

    return run


@pytest.fixture(scope="module")
def nifti(analyze: Callable[[Path], Analyzed], nifti_ct_path: Path) -> Analyzed:
    return analyze(nifti_ct_path)


@pytest.fixture(scope="module")
def dicom(analyze: Callable[[Path], Analyzed], dicom_ct_path: Path) -> Analyzed:
    return analyze(dicom_ct_path)


@pytest.fixture(params=["nifti", "dicom"])
def analyzed(request: pytest.FixtureRequest) -> Analyzed:
    return request.getfixturevalue(request.param)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_lungs_agree_with_the_lobes(nifti: Analyzed) -> None:
    _, study, _ = nifti
    lobes = read_image(fetch_truth("chest-nifti")).voxels
    lungs = study.image("lungs").voxels
    assert overlap(lungs > 0, np.isin(lobes, (10, 11, 12, 13, 14))) >= 0.98
    assert overlap(lungs == 1, np.isin(lobes, (12, 13, 14))) >= 0.96
    assert overlap(lungs == 2, np.isin(lobes, (10, 11))) >= 0.96


def test_images_lie_on_the_ct_s_own_grid(analyzed: Analyzed) -> None:
    scan, study, _ = analyzed
    ct = read_scan(scan)
    images: list[Volume] = [study.image(n) for n in ("lungs", "lesions", "relevance_ct", "relevance_lesions")]
    assert all(image.on_same_grid(ct) for image in images)


def test_lung_volumes_are_those_of_an_adult(analyzed: Analyzed) -> None:
    measured = analyzed[1].analysis["measurements"]["lungs"]
    for side in ("right", "left"):
        assert 1000 < measured[side]["volume_ml"] < 4500
        assert -920 < measured[side]["mean_hu"] < -600


def test_lesions_and_relevance_lie_in_the_lungs_and_keep_their_mass(analyzed: Analyzed) -> None:
    study = analyzed[1]
    outside = study.image("lungs").voxels == 0
    assert not study.image("lesions").voxels[outside].any()
    for name, total in (("relevance_ct", "total_ct"), ("relevance_lesions", "total_lesions")):
        relevance = study.image(name).voxels.astype(np.float64)
        largest = np.abs(relevance).sum()
        assert np.abs(relevance[outside]).sum() <= 0.01 * largest
        assert relevance.sum() == pytest.approx(study.analysis["relevance"][total], abs=0.01 * largest + 1e-12)


def test_relevance_is_not_empty(nifti: Analyzed) -> None:
    assert np.abs(nifti[1].image("relevance_ct").voxels).sum() > 0
    assert nifti[1].analysis["relevance"]["slices"]


def test_memory_stays_within_four_gigabytes(nifti: Analyzed) -> None:
    assert nifti[1].analysis["peak_memory_mb"] <= 4096


def test_slice_pictures_of_a_ct_get_its_probability(dicom: Analyzed) -> None:
    """``diagnose-series`` segments each slice alone and knows no HU; it answers what ``analyze`` does all the same."""
    scan, study, _ = dicom
    axial = to_axial(read_scan(scan))
    found = diagnose_images(
        [hu_to_grey(hu) for hu in axial.voxels],
        Models(open_bundle(), torch.device("cpu")),
        SliceOptions(orientation="upright", pixel_mm=axial.spacing[0], slice_mm=axial.spacing[2]),
    )
    diagnosis = study.analysis["diagnosis"]
    assert abs(found.probability - diagnosis["probability"]) < 0.05
    assert found.label == diagnosis["label"] and not found.warnings


@pytest.mark.parametrize("told", [True, False], ids=["sizes given", "defaults"])
def test_slice_pictures_of_a_ct_get_its_masks(dicom: Analyzed, told: bool) -> None:
    """``segment-slices`` draws what ``analyze`` does, also where nobody says how large pixels and slices are."""
    scan, study, _ = dicom
    axial = to_axial(read_scan(scan))
    sizes = {"pixel_mm": axial.spacing[0], "slice_mm": axial.spacing[2]} if told else {}
    models = Models(open_bundle(), torch.device("cpu"))
    found = segment_images([hu_to_grey(hu) for hu in axial.voxels], models, SliceOptions(**sizes))
    for name, masks, least in (("lungs", found.lungs, 0.97), ("lesions", found.lesions, 0.9)):
        assert overlap(np.stack(masks) > 0, to_axial(study.image(name)).voxels > 0) >= least, name


def test_nothing_that_names_a_patient_is_written(
    dicom_ct_path: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scan").mkdir()
    for path in dicom_ct_path.glob("*.dcm"):
        image = sitk.ReadImage(str(path))
        for tag, value in (("0010|0010", "SECRET^NAME"), ("0010|0020", "SECRET-ID"), ("0010|0030", "19440101")):
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(tmp_path / "scan" / path.name))
        writer.Execute(image)
    study = tmp_path / "study"
    arguments = ["analyze", tmp_path / "scan", "--output", study, "--bundle", tiny_bundle, "--events", "jsonl"]
    assert main([str(a) for a in arguments]) == 0
    said = "".join(capsys.readouterr())
    written = b"".join(gzip.decompress(f.read_bytes()) for f in study.glob("*.gz"))
    text = said + (study / "analysis.json").read_text("utf-8") + written.decode("latin-1")
    assert "SECRET" not in text and "19440101" not in text
    assert str(tmp_path) not in (study / "analysis.json").read_text("utf-8")


def test_the_picture_shows_the_ct_with_colours_over_it(analyzed: Analyzed) -> None:
    with Image.open(analyzed[2]) as picture:
        pixels = np.asarray(picture.convert("RGB"), np.int16)
    assert min(pixels.shape[:2]) > 400
    coloured = np.ptp(pixels, axis=2) > 40
    assert 0.001 < coloured.mean() < 0.5
