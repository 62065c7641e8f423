"""``covid-ct analyze --lungs`` and ``--lung-engine``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from CovidCTDiagnosisLib.__main__ import main
from CovidCTDiagnosisLib.ct import read_image, write_image
from CovidCTDiagnosisLib.study import read_study


@pytest.fixture(autouse=True)
def _same_signals_afterwards() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(scan: Path, bundle: Path, study: Path, *options: object) -> int:
    return main([str(a) for a in ("analyze", scan, "--output", study, "--bundle", bundle, *options)])


def test_a_ready_mask_becomes_the_studys_lungs(scan: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    ct = read_image(scan)
    lung = ((ct.voxels > -930) & (ct.voxels < -770)).astype(np.uint8)
    write_image(ct.with_voxels(lung), tmp_path / "drawn.nrrd")
    assert run(scan, tiny_bundle, tmp_path / "study", "--lungs", tmp_path / "drawn.nrrd") == 0
    study = read_study(tmp_path / "study")
    np.testing.assert_array_equal(study.image("lungs").voxels > 0, lung > 0)
    assert study.analysis["settings"]["lungs"]["source"] == "mask"


def test_an_empty_or_missing_mask_is_refused(
    scan: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ct = read_image(scan)
    write_image(ct.with_voxels(np.zeros(ct.shape, np.uint8)), tmp_path / "empty.nrrd")
    for mask, text in (("empty.nrrd", "empty"), ("none.nrrd", "none.nrrd")):
        assert run(scan, tiny_bundle, tmp_path / "study", "--lungs", tmp_path / mask) == 3
        assert text in capsys.readouterr().err
        assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    "options", [("--lungs", "x.nrrd", "--lung-engine", "lungmask"), ("--lungmask-weights", "x.pth")], ids=" ".join
)
def test_options_that_contradict_each_other(
    options: tuple[str, ...], scan: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    assert run(scan, tiny_bundle, tmp_path / "study", *options) == 2


def test_lungmask_that_is_not_installed(
    scan: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lungmask", None)
    assert run(scan, tiny_bundle, tmp_path / "study", "--lung-engine", "lungmask") == 2
    assert "pip install lungmask" in capsys.readouterr().err
