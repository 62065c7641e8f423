"""The real training data: counts, orientation, labels. Skipped where the data folder is absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from CovidCTDiagnosisLib.errors import InputError
from CovidCTDiagnosisLib.training.folds import FOLDS, held_out
from CovidCTDiagnosisLib.training.lung_labels import aerated_lungs, lesions_of_lungs
from CovidCTDiagnosisLib.training.sources import (
    UNKNOWN_LESION,
    Case,
    data_fingerprint,
    fingerprint,
    read_covid_slices,
    read_lesion_slices,
    read_lung_volumes,
    read_series,
)
from PIL import Image


@pytest.fixture(scope="module")
def expert(training_data: Path) -> list[Case]:
    return read_lesion_slices(training_data)


@pytest.fixture(scope="module")
def machine(training_data: Path) -> list[Case]:
    return read_covid_slices(training_data)


def spine_is_at_the_bottom(hu: np.ndarray) -> bool:
    """The brightest tenth of the middle lies in the lower half: a supine patient's spine."""
    width = hu.shape[2]
    middle = hu[0, :, round(0.36 * width) : round(0.64 * width)]
    rows, _ = np.nonzero(middle >= np.quantile(middle, 0.9))
    return float(rows.mean()) > middle.shape[0] / 2


def test_expert_slices(expert: list[Case]) -> None:
    assert len(expert) == len({case.name for case in expert}) == 50
    numbers = [int(case.name.split("/")[1]) for case in expert]
    assert numbers == sorted(numbers)
    found = np.unique(np.concatenate([np.unique(case.labels) for case in expert]))
    assert {0, 1, 2} <= {*found.tolist()} <= {0, 1, 2, UNKNOWN_LESION}
    for case in expert:
        assert case.labels is not None and case.labels.shape == case.hu.shape and case.hu.shape[0] == 1
        assert case.hu.min() >= -1000 and case.hu.max() <= 400


def test_folds_hold_out_every_expert_slice_once_and_neighbours_together(expert: list[Case]) -> None:
    folds = [[case.name for case in held_out(expert, fold)] for fold in range(FOLDS)]
    assert [name for fold in folds for name in fold] == [case.name for case in expert]
    assert {len(fold) for fold in folds} == {10}


def test_machine_masks_lie_in_lungs_once_the_rest_is_dropped(machine: list[Case]) -> None:
    """Some pieces lie on ribs or at the picture's edge; what is kept is darker than bone."""
    kept, dropped = [], []
    for case in machine[::25]:
        assert case.labels is not None
        mask = case.labels[0] > 0
        lesions = lesions_of_lungs(mask, aerated_lungs(case.hu[0]))
        assert not (lesions & ~mask).any()
        kept.append(case.hu[0][lesions])
        dropped.append(case.hu[0][mask & ~lesions])
    inside, outside = np.concatenate(kept), np.concatenate(dropped)
    assert len(inside) > 4 * len(outside) > 0
    assert np.median(outside) > np.median(inside) + 200


def test_expert_consolidation_is_brighter_than_ground_glass_and_both_than_lung(expert: list[Case]) -> None:
    """Labels lie where the image has lesions: a transposition of one of the two would be seen."""
    hu = np.concatenate([case.hu.ravel() for case in expert])
    labels = np.concatenate([case.labels.ravel() for case in expert if case.labels is not None])
    glass, solid = (np.median(hu[labels == n]) for n in (1, 2))
    assert -800 < glass < -200 and solid > glass + 150


def test_machine_slices(machine: list[Case]) -> None:
    assert len(machine) == 1181
    assert len({case.name for case in machine}) == 14
    for case in machine[::20]:
        assert case.labels is not None and case.labels.shape == case.hu.shape
        assert {*np.unique(case.labels).tolist()} <= {0, UNKNOWN_LESION}


def test_the_spine_is_at_the_bottom_of_almost_every_slice(expert: list[Case], machine: list[Case]) -> None:
    """Almost: near the apex and the diaphragm the middle says little."""
    assert np.mean([spine_is_at_the_bottom(case.hu) for case in expert]) > 0.9
    for volume in {case.name for case in machine}:
        slices = [case for case in machine if case.name == volume]
        assert np.mean([spine_is_at_the_bottom(case.hu) for case in slices[::3]]) > 0.9


def test_series(training_data: Path) -> None:
    series = read_series(training_data)
    assert len(series) == len({s.name for s in series}) == 103
    assert sum(s.covid for s in series) == 40
    assert sum(len(s.slices) for s in series) == 1765
    assert all(s.slices for s in series)
    middle = [s.slices[len(s.slices) // 2] for s in series]
    assert all(image.shape[0] == 1 and min(image.shape[1:]) >= 64 for image in middle)
    assert np.mean([spine_is_at_the_bottom(image) for image in middle]) > 0.9


def test_lung_volumes(training_data: Path) -> None:
    cases = {case.name: case for case in read_lung_volumes(training_data)}
    assert set(cases) == {"lungs/ct-64", "lungs/TestInput"}
    assert cases["lungs/TestInput"].labels is None
    chest = cases["lungs/ct-64"]
    assert chest.labels is not None
    lungs = chest.labels == 1
    # On the lungs, not on their mirror image.
    for axis, apart in ((0, 150), (1, 100), (2, 60)):
        assert chest.hu[np.flip(lungs, axis)].mean() > chest.hu[lungs].mean() + apart
    litres = lungs.sum() * np.prod(chest.spacing) / 1e6
    assert 1.5 < litres < 8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("series,covid\na,2\n", "line 2: covid is 2"),
        ("series,covid\nnone,1\n", "line 2: there are no PNG files in series/none"),
        ("name,covid\na,1\n", "no column series"),
    ],
)
def test_a_table_of_series_says_what_is_wrong(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "series" / "a").mkdir(parents=True)
    Image.new("L", (8, 8), 9).save(tmp_path / "series" / "a" / "0.png")
    (tmp_path / "series.csv").write_text(text)
    with pytest.raises(InputError, match=says):
        read_series(tmp_path)
    (tmp_path / "series.csv").write_text("\ufeffSeries;covid\na;1\n", encoding="utf-8")  # as spreadsheets write it
    (series,) = read_series(tmp_path)
    assert (series.name, series.covid, len(series.slices)) == ("a", 1, 1)


def test_a_folder_without_the_data_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lesion_slices") as caught:
        read_lesion_slices(tmp_path)
    assert "--data" in caught.value.remedy


def test_data_is_known_by_its_content_not_by_where_or_when_it_was_laid(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "lungs").mkdir(parents=True)
        (tmp_path / name / "lungs" / "a.nii").write_bytes(bytes(3_000_000))
    known = data_fingerprint(tmp_path / "one")
    assert known == data_fingerprint(tmp_path / "two")
    (tmp_path / "one" / "bundle-runs").mkdir()
    (tmp_path / "one" / "bundle-runs" / "last.ckpt").write_bytes(b"x")
    assert known == data_fingerprint(tmp_path / "one") != fingerprint(tmp_path / "one")
    # A label map's ends are mostly empty slices.
    (tmp_path / "two" / "lungs" / "a.nii").write_bytes(bytes(1_500_000) + b"y" + bytes(1_499_999))
    assert known != data_fingerprint(tmp_path / "two")
    (tmp_path / "one" / "lungs" / "a.nii").rename(tmp_path / "one" / "lungs" / "b.nii")
    assert len({known, data_fingerprint(tmp_path / "one"), fingerprint(tmp_path / "one" / "lungs" / "b.nii")}) == 3
