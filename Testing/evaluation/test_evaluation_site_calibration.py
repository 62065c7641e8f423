"""`covid-ct calibrate`: a bundle that was calibrated elsewhere, adapted to a site's own scans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from CovidCTDiagnosisLib.__main__ import main
from CovidCTDiagnosisLib.bundle import open_bundle
from CovidCTDiagnosisLib.errors import InputError
from CovidCTDiagnosisLib.evaluation import site_calibration
from CovidCTDiagnosisLib.evaluation.predictions import Prediction, Predictions, read_predictions
from CovidCTDiagnosisLib.evaluation.site_calibration import fit_site
from CovidCTDiagnosisLib.pipeline.diagnosis import calibrated
from CovidCTDiagnosisLib.training.calibration import fit_platt
from hypothesis import given, settings
from hypothesis import strategies as st

SETTINGS = {"slope": 0.5, "offset": 1.5, "threshold": 0.5}
"""Of a bundle that is unsure and calls too many."""


@pytest.fixture(autouse=True)
def _same_signals_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)


def site(scans: int, seed: int = 0, spread: float = 1.0) -> tuple[Predictions, np.ndarray]:
    """Predictions of that bundle on scans whose true log odds are three times the score, less one; the scores."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, spread, scans)
    covid = (rng.random(scans) < 1 / (1 + np.exp(-(3 * scores - 1)))).astype(int)
    found = [calibrated((0.0, s), SETTINGS).probability for s in scores]
    named = [Prediction(f"{n}", round(p, 4), int(c)) for n, (p, c) in enumerate(zip(found, covid, strict=True))]
    return Predictions(named, []), scores


def test_many_scans_give_the_true_slope_and_offset_and_better_probabilities() -> None:
    predictions, _ = site(4000)
    fitted = fit_site(predictions, SETTINGS, 0.9, replicates=20)
    assert fitted.slope == pytest.approx(3, rel=0.1) and fitted.offset == pytest.approx(-1, abs=0.15)
    assert fitted.brier_after < fitted.brier_before - 0.05


@pytest.mark.parametrize("sensitivity", [0.8, 0.9, 0.95])
def test_the_threshold_reaches_the_sensitivity_also_on_other_scans(sensitivity: float) -> None:
    fitted = fit_site(site(400)[0], SETTINGS, sensitivity, replicates=100)
    others, scores = site(20_000, seed=1)
    found = {"slope": fitted.slope, "offset": fitted.offset, "threshold": fitted.threshold}
    called = np.array([calibrated((0.0, s), found).label == "COVID-19" for s in scores])
    truly = called[others.covid == 1].mean()
    assert truly == pytest.approx(sensitivity, abs=0.04)
    assert fitted.sensitivity.low <= truly <= fitted.sensitivity.high
    specificity = (~called[others.covid == 0]).mean()
    assert fitted.specificity.low - 0.02 <= specificity <= fitted.specificity.high + 0.02


@given(seed=st.integers(0, 2**20), sensitivity=st.sampled_from([0.6, 0.8, 0.9, 1.0]))
@settings(max_examples=40, deadline=None)
def test_in_use_the_same_scans_reach_the_sensitivity(seed: int, sensitivity: float) -> None:
    """Although the table's probabilities were rounded."""
    predictions, scores = site(60, seed, spread=3.0)
    fitted = fit_site(predictions, SETTINGS, sensitivity, replicates=2)
    found = {"slope": fitted.slope, "offset": fitted.offset, "threshold": fitted.threshold}
    called = np.array([calibrated((0.0, s), found).label == "COVID-19" for s in scores])
    assert called[predictions.covid == 1].mean() >= sensitivity - 1e-9


def test_few_scans_are_less_sure() -> None:
    widths = []
    for scans in (50, 400):
        fitted = fit_site(site(scans)[0], SETTINGS, 0.9, replicates=100)
        widths.append(fitted.sensitivity.high - fitted.sensitivity.low)
    assert widths[0] > 1.5 * widths[1]


def test_what_few_scans_tell_is_on_average_what_is_true_and_never_certain() -> None:
    """Sites of ten COVID-19 and 40 other scans, aiming at 0.9; the truth by many scans more."""
    many, many_scores = site(20_000, seed=1)
    told, true = [], []
    for seed in range(12):
        pool, _ = site(400, seed + 2)
        chosen = [s for kind, n in ((1, 10), (0, 40)) for s in [s for s in pool.scans if s.covid == kind][:n]]
        fitted = fit_site(Predictions(chosen, []), SETTINGS, 0.9, replicates=100)
        found = {"slope": fitted.slope, "offset": fitted.offset, "threshold": fitted.threshold}
        called = np.array([calibrated((0.0, s), found).label == "COVID-19" for s in many_scores])
        told.append(fitted.sensitivity.value)
        true.append(called[many.covid == 1].mean())
        for interval in (fitted.sensitivity, fitted.specificity):
            assert interval.high - interval.low > 0.05
    assert np.mean(told) == pytest.approx(np.mean(true), abs=0.05)


def test_scans_of_one_patient_are_never_both_fitted_to_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four scans of each patient, all of one score."""
    once = site(40, seed=3)[0].scans
    scans = [replace(s, name=f"{s.name}-{n}", patient=s.name) for s in once for n in range(4)]
    assert len({s.probability for s in once}) == len(once)
    drawn: list[np.ndarray] = []

    def fit(scores: np.ndarray, *others: Any, **named: Any) -> tuple[float, float]:
        drawn.append(np.unique(scores, return_counts=True)[1])
        return fit_platt(scores, *others, **named)

    monkeypatch.setattr(site_calibration, "fit_platt", fit)
    by_patient = fit_site(Predictions(scans, []), SETTINGS, 0.9, replicates=50)
    assert all((counts % 4 == 0).all() for counts in drawn)
    drawn.clear()
    by_scan = fit_site(Predictions([replace(s, patient="") for s in scans], []), SETTINGS, 0.9, replicates=50)
    assert not all((counts % 4 == 0).all() for counts in drawn)
    assert by_scan.brier_after < by_patient.brier_after


def test_each_replicate_is_judged_on_what_it_leaves_out_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []
    judged: list[np.ndarray] = []

    def fit(scores: np.ndarray, *others: Any, **named: Any) -> tuple[float, float]:
        drawn.append(scores)
        return 1.0, 0.0

    def expit(logit: np.ndarray) -> np.ndarray:
        judged.append(logit)
        return np.asarray(1 / (1 + np.exp(-logit)))

    monkeypatch.setattr(site_calibration, "fit_platt", fit)
    monkeypatch.setattr(site_calibration, "expit", expit)
    fit_site(site(40, seed=3)[0], SETTINGS, 0.9, replicates=20)
    everything = drawn[0]
    for fitted, left_out in zip(drawn[1:], judged[:-1], strict=True):  # the last are all scans, on the final fit
        np.testing.assert_array_equal(np.sort(left_out), np.setdiff1d(everything, fitted))


def test_patients_count_where_they_are_named() -> None:
    """One patient with all COVID-19 scans, or one who has all the others: neither tells how sure a threshold is."""
    scans = [replace(s, patient=f"p{n}") for n, s in enumerate(site(60)[0].scans)]
    for kind, said in ((1, "are 1 COVID-19 and .* patients, too few"), (0, "and 1 other patients, too few")):
        of_one = [replace(s, patient="anna") if s.covid == kind else s for s in scans]
        with pytest.raises(InputError, match=said):
            fit_site(Predictions(of_one, []), SETTINGS, 0.9, replicates=5)
    ill = [s for s in scans if s.covid][:10]
    shared = [replace(s, patient=ill[n % 5].patient) for n, s in enumerate(s for s in scans if not s.covid)]
    fitted = fit_site(Predictions([*ill, *shared], []), SETTINGS, 0.9, replicates=50)
    assert np.isfinite([*fitted.sensitivity, *fitted.specificity, fitted.brier_after]).all()


def test_too_few_scans_are_refused() -> None:
    scans = [Prediction(f"{n}", 0.5, int(n < 4)) for n in range(40)]
    with pytest.raises(InputError, match="4 COVID-19 and 36 other scans"):
        fit_site(Predictions(scans, []), SETTINGS, 0.9)


def test_the_command_writes_a_bundle_with_the_settings_and_leaves_the_old_one(
    tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = open_bundle(tiny_bundle)
    predictions, _ = site(40)
    table = tmp_path / "t.csv"
    lines = [f"{s.name},{s.probability},{s.covid}" for s in predictions.scans]
    table.write_text("\n".join(["series,probability,covid", *lines]) + "\n")
    output = tmp_path / "site"
    arguments = ["calibrate", str(table), "--bundle", str(tiny_bundle), "--output", str(output)]
    assert main([*arguments, "--sensitivity", "0.8"]) == 0
    out = capsys.readouterr().out
    assert "40 scans" in out and "first guess" in out and "sensitivity" in out and "replaces" not in out
    after = open_bundle(output)
    expected = fit_site(predictions, before.settings["diagnosis"], 0.8)
    found = after.settings["diagnosis"]
    assert (found["slope"], found["offset"], found["threshold"]) == pytest.approx(
        (expected.slope, expected.offset, expected.threshold)
    )
    assert found["calibrated_on"] == {"scans": 40, "covid": int(predictions.covid.sum()), "aimed_sensitivity": 0.8}
    assert after.networks == before.networks and open_bundle(tiny_bundle).settings == before.settings
    assert main(arguments) == 0 and "site (replaces an older one)" in capsys.readouterr().out
    assert main([*arguments[:-1], str(tiny_bundle)]) == 2
    assert main([*arguments, "--sensitivity", "0"]) == 2


def _calibrate(rows: list[str], tiny_bundle: Path, tmp_path: Path, header: str = "series,probability,covid") -> int:
    table = tmp_path / "t.csv"
    table.write_text("\n".join([header, *rows]) + "\n")
    return main(["calibrate", str(table), "--bundle", str(tiny_bundle), "--output", str(tmp_path / "site")])


def test_the_card_says_what_was_fitted_once(tiny_bundle: Path, tmp_path: Path) -> None:
    rows = [f"{s.name},{s.probability},{s.covid}" for s in site(40)[0].scans]
    assert _calibrate(rows, tiny_bundle, tmp_path) == 0
    first = open_bundle(tmp_path / "site").model_card
    assert first.startswith(open_bundle(tiny_bundle).model_card) and "40 scans of a site" in first
    table = tmp_path / "t.csv"
    again = ["calibrate", str(table), "--bundle", str(tmp_path / "site"), "--output", str(tmp_path / "next")]
    assert main(again) == 0
    assert open_bundle(tmp_path / "next").model_card.count("scans of a site") == 1
    assert open_bundle(tmp_path / "next").version == f"{open_bundle(tiny_bundle).version}+calibrated"


def test_predictions_of_another_bundle_are_refused(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threshold = open_bundle(tiny_bundle).settings["diagnosis"]["threshold"]
    header = "series,probability,covid,label"
    for shift, code in ((0.0, 0), (0.2, 3), (0.4, 3)):
        rows = [
            f"{s.name},{s.probability},{s.covid},{'' if s.probability >= threshold + shift else 'not '}COVID-19"
            for s in site(60)[0].scans
        ]
        assert _calibrate(rows, tiny_bundle, tmp_path, header) == code
    assert "of another bundle" in capsys.readouterr().err


def test_a_table_that_names_its_bundle_is_held_to_it(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, scans = "series,probability,covid,bundle", site(60)[0].scans
    own, other = open_bundle(tiny_bundle).identity, "covid-ct 9.9.9 0123456789ab"
    renamed = f"covid-ct 9.9.9 {own.split()[-1]}"  # another card, the same weights
    for maker, code in ((own, 0), (renamed, 0), (other, 3)):
        rows = [f"{s.name},{s.probability},{s.covid},{maker}" for s in scans]
        assert _calibrate(rows, tiny_bundle, tmp_path, header) == code
    said = capsys.readouterr().err
    assert other in said and own in said
    # What is calibrated makes other predictions, so that it has another identity.
    assert open_bundle(tmp_path / "site").identity.split()[2] != own.split()[2]


def test_the_published_predictions_are_those_of_the_shipped_bundle() -> None:
    published = Path(__file__).parents[2] / "Resources" / "results" / "predictions.csv"
    assert read_predictions(published).made_by(open_bundle())


def test_predictions_that_tell_nothing_are_refused_and_weak_ones_are_called_so(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = site(60)[0].scans
    assert _calibrate([f"{s.name},{s.probability},{1 - s.covid}" for s in scans], tiny_bundle, tmp_path) == 3
    assert _calibrate([f"{s.name},0.5,{s.covid}" for s in scans], tiny_bundle, tmp_path) == 3
    assert "do not tell COVID-19 from other scans" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()
    weak = [f"{n},{0.5 + 0.01 * (n % 7 == 0)},{n % 2}" for n in range(40)] + ["a,0.9,1", "b,0.1,0"]
    assert _calibrate(weak, tiny_bundle, tmp_path) == 0
    assert "Chance alone" in capsys.readouterr().out


def test_a_threshold_below_all_scans_is_told_and_stands_in_the_card(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{n},{0.6 + 0.01 * n},1" for n in range(7)] + [f"n{n},{0.3 + 0.01 * n},0" for n in range(12)]
    assert _calibrate([*rows, "odd,0.05,1"], tiny_bundle, tmp_path) == 0
    said, card = capsys.readouterr().out, open_bundle(tmp_path / "site").model_card
    for text in ("calls every other scan COVID-19", "Fewer than 50 scans", "does not name the patient of each"):
        assert text in said and text in card
    assert "On the scans fitted to, sensitivity 1.000 and specificity 0.000." in said
    assert _calibrate(rows, tiny_bundle, tmp_path) == 0
    assert "calls every other scan" not in capsys.readouterr().out


def test_what_was_fitted_to_is_said(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scans for validation where there are any; else all but those for training, which are then no test any more."""
    scans = site(80)[0].scans
    header = "series,probability,covid,split"
    for name, said in (("validation", False), ("test", True)):
        rows = [f"{s.name},{s.probability},{s.covid},{name if n < 50 else 'train'}" for n, s in enumerate(scans)]
        assert _calibrate(rows, tiny_bundle, tmp_path, header) == 0
        out = capsys.readouterr().out
        assert "30 scans of other splits are left aside" in out and "Calibrated on 50 scans" in out
        assert ("judge the new bundle on others" in out) is said
