"""The ablation and its baselines, on series in which a bright spot means COVID-19 and brightness the scanner."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.__main__ import main
from CovidCTDiagnosisLib.ct import Volume
from CovidCTDiagnosisLib.ct.windows import LUNG_WINDOW, scale
from CovidCTDiagnosisLib.evaluation import ablation
from CovidCTDiagnosisLib.evaluation.ablation import (
    GREYS,
    HISTOGRAM,
    METHODS,
    NETWORKS,
    PROPOSED,
    TABLE,
    Ablation,
    Answer,
    ablation_rows,
    print_ablation,
    print_with_lesions,
    write_answers,
)
from CovidCTDiagnosisLib.training import loop
from CovidCTDiagnosisLib.training.baselines import (
    Subject,
    common_curve,
    learn_histogram,
    learn_lung_fractions,
    matched,
    score_involvement,
)
from CovidCTDiagnosisLib.training.diagnosis import PAPER, SLICES_A_STEP, VOLUMES_A_STEP, classifier_recipe
from CovidCTDiagnosisLib.training.examples import Example
from CovidCTDiagnosisLib.training.loop import Hardware, Recipe
from CovidCTDiagnosisLib.training.sources import Series
from CovidCTDiagnosisLib.training.splits import split_by_blocks
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import nn

SHAPE = (48, 64)


def subject(number: int, covid: int, brightness: float = 0.0, spots: int = 0) -> Subject:
    """Two slices of dark lungs in a grey body, some lung brighter where there is a lesion."""
    rng = np.random.default_rng(number)
    lungs = np.zeros((2, *SHAPE), bool)
    lungs[:, 8:40, 6:28] = lungs[:, 8:40, 36:58] = True
    grey = np.where(lungs, 0.15, 0.75) + brightness + rng.normal(0, 0.02, lungs.shape)
    lesions = np.zeros(lungs.shape, bool)
    for _ in range(spots):
        j, i = rng.integers(9, 30), rng.choice([8, 40])
        lesions[:, j : j + 8, i : i + 12] = True
    grey = np.clip(np.where(lesions, grey + 0.3, grey), 0.01, 1)
    name = f"{'pos' if covid else 'neg'}_{number:04}"
    slices = [np.rint(-1000 + 1400 * s).astype(np.int16)[None] for s in grey]
    ct, mask = (torch.from_numpy(x.astype(np.float32))[:, None] for x in (grey * lungs, lesions))
    involvement = 100 * float(lesions.sum() / lungs.sum())
    return Subject(Series(name, slices, covid), Example(name, ct, mask, covid, involvement_percent=involvement))


@pytest.fixture(scope="module")
def subjects() -> list[Subject]:
    """COVID-19 has spots; its pictures are also a little brighter."""
    healthy = [subject(n, 0) for n in range(15)]
    return [*healthy, *(subject(100 + n, 1, brightness=0.05, spots=3) for n in range(10))]


# Folds


def test_every_series_is_tested_once_and_neighbours_stay_together(subjects: list[Subject]) -> None:
    tested = []
    for fold in range(5):
        split = split_by_blocks(subjects, fold)
        parts = [split.train, split.validation, split.test]
        names = [s.series.name for part in parts for s in part]
        assert sorted(names) == sorted(s.series.name for s in subjects)
        assert all({s.covid for s in part} == {0, 1} for part in parts)
        tested += [s.series.name for s in split.test]
        numbers = [s.series.name for s in split.test if s.covid == 0]
        assert numbers == [f"neg_{n:04}" for n in range(3 * fold, 3 * fold + 3)]
    assert sorted(tested) == sorted(s.series.name for s in subjects)


# Baselines


def test_baselines_find_what_they_look_at(subjects: list[Subject]) -> None:
    split = split_by_blocks(subjects, 2)
    covid = np.array([s.covid for s in split.test])
    for score in (learn_histogram(split.train), learn_lung_fractions(split.train), score_involvement):
        scores = score(split.test)
        assert scores.shape == covid.shape and roc_auc_score(covid, scores) == 1


def test_the_histogram_sees_the_scanner_and_matching_takes_it_away() -> None:
    """Without spots nothing but brightness tells the classes apart."""
    subjects = [subject(n, 0) for n in range(15)] + [subject(50 + n, 1, brightness=0.08) for n in range(15)]
    split = split_by_blocks(subjects, 1)
    covid = np.array([s.covid for s in split.test])
    assert roc_auc_score(covid, learn_histogram(split.train)(split.test)) == 1
    common = common_curve(split.train)
    learn, test = ([matched(s, common) for s in part] for part in (split.train, split.test))
    for baseline in (learn_histogram, learn_lung_fractions):
        assert roc_auc_score(covid, baseline(learn)(test)) < 0.95
    means = np.array([s.example.ct[s.example.ct > 0].mean() for s in test])
    assert np.ptp(means) < 0.005


def test_matching_keeps_lesions_apart_from_lung_and_all_else_in_place(subjects: list[Subject]) -> None:
    common = common_curve(subjects[:15])
    before = subjects[-1]
    after = matched(before, common)
    assert after.example.involvement_percent == before.example.involvement_percent > 0
    ct, lesions = after.example.ct, after.example.lesions > 0.5
    assert torch.equal(ct > 0, before.example.ct > 0) and torch.equal(after.example.lesions, before.example.lesions)
    assert ct.min() >= 0 and ct.max() <= 1
    lung = (ct > 0) & ~lesions
    assert abs(float(ct[lung].mean()) - common.mean()) < 0.005
    # Spots stand out by 0.3 before, and the curve goes on with slope 1 beyond what lung has.
    assert float(ct[lesions].mean() - ct[lung].mean()) == pytest.approx(0.3, abs=0.03)
    assert [s.shape for s in after.series.slices] == [s.shape for s in before.series.slices]
    body = np.concatenate([s[s > 0] for s in before.series.slices]).mean()
    shifted = np.concatenate([s[s > 0] for s in after.series.slices]).mean()
    assert shifted == pytest.approx(body - 0.05 * 1400, abs=15)


# The ablation


@pytest.fixture(scope="module")
def answers(subjects: list[Subject], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Answer], Ablation]:
    folder = tmp_path_factory.mktemp("ablation")
    short = Ablation(folder, "masks", steps=1, folds=(0,), precision="bf16-mixed")
    return short.answers(subjects, told=lambda text: None), short


def test_every_method_answers_on_every_series_of_the_fold(
    answers: tuple[list[Answer], Ablation], subjects: list[Subject]
) -> None:
    test = {s.series.name: s.covid for s in split_by_blocks(subjects, 0).test}
    for greys in GREYS:
        for method in METHODS:
            mine = [a for a in answers[0] if (a.greys, a.method) == (greys, method)]
            assert {a.series: a.covid for a in mine} == test and {a.fold for a in mine} == {0}
            assert all(0 < a.probability < 1 for a in mine)


def test_each_part_of_a_fold_serves_one_purpose(
    subjects: list[Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learned from, calibrated on and answered for are three blocks; the common histogram is of the first alone."""
    learned: list[list[str]] = []
    scored: list[list[str]] = []
    curves: list[list[str]] = []
    seen: list[float] = []

    def names(part: Sequence[Subject]) -> list[str]:
        return [s.series.name for s in part]

    def learn(
        self: Ablation, method: str, part: list[Subject], kept: list[Subject], run: Path
    ) -> Callable[[Sequence[Subject]], np.ndarray]:
        learned.append(names(part))

        def score(others: Sequence[Subject]) -> np.ndarray:
            scored.append(names(others))
            seen.append(float(others[0].example.ct.mean()))
            return np.arange(len(others), dtype=float)

        return score

    def curve(part: list[Subject]) -> np.ndarray:
        curves.append(names(part))
        return common_curve(part)

    monkeypatch.setattr(Ablation, "_learned", learn)
    monkeypatch.setattr(ablation, "common_curve", curve)
    Ablation(tmp_path, "key", folds=(2,)).answers(subjects, told=lambda text: None)
    split = split_by_blocks(subjects, 2)
    runs = len(GREYS) * len(METHODS)
    assert learned == [names(split.train)] * runs and curves == [names(split.train)]
    assert scored == [names(split.validation), names(split.test)] * runs
    as_they_are, with_common = seen[: 2 * len(METHODS)], seen[2 * len(METHODS) :]
    assert all(abs(a - b) > 1e-4 for a, b in zip(as_they_are, with_common, strict=True))


def test_a_pre_trained_classifier_begins_with_its_cvae_s_encoder(
    subjects: list[Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained: list[dict[str, torch.Tensor]] = []
    begun: list[dict[str, torch.Tensor]] = []

    def fit(recipe: Recipe, run: Path, hardware: Hardware) -> nn.Module:
        if run.name == "classifier":
            begun.append({k: v.clone() for k, v in recipe.network.encoder.state_dict().items()})
            return recipe.network.eval()
        network = loop.fit(recipe, run, hardware)
        pretrained.append({k: v.clone() for k, v in network.encoder.state_dict().items()})
        return network

    monkeypatch.setattr(ablation, "fit", fit)
    monkeypatch.setattr(ablation, "METHODS", [method for method, parts in NETWORKS.items() if parts.pretrained])
    Ablation(tmp_path, "key", steps=1, folds=(0,)).answers(subjects, told=lambda text: None)
    assert len(begun) == len(pretrained) == 2 * len(GREYS)
    for before, after in zip(pretrained, begun, strict=True):
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_a_second_call_reads_what_is_there(
    answers: tuple[list[Answer], Ablation], subjects: list[Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("learned again")

    monkeypatch.setattr(Ablation, "_learned", never)
    assert answers[1].answers(subjects, told=lambda text: None) == answers[0]


def test_longer_pre_training_learns_only_what_is_pre_trained_again(
    answers: tuple[list[Answer], Ablation], subjects: list[Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, int]] = []

    def fit(recipe: Recipe, run: Path, hardware: Hardware) -> nn.Module:
        steps.append((f"{run.parent.name}/{run.name}", recipe.steps))
        return loop.fit(recipe, run, hardware)

    monkeypatch.setattr(ablation, "fit", fit)
    longer = replace(answers[1], cvae_steps=2)
    found = longer.answers(subjects, told=lambda text: None)
    pretrained = ("one-branch-pre-trained-cvae2", "proposed-model-cvae2")
    assert steps == [(f"{m}/{n}", s) for _ in GREYS for m in pretrained for n, s in (("cvae", 2), ("classifier", 1))]
    changed = {a.method for a, b in zip(found, answers[0], strict=True) if a != b}
    assert changed <= {name for name, parts in NETWORKS.items() if parts.pretrained}


def test_the_paper_s_recipe_trains_networks_alone_and_stops_by_the_block_for_calibration(
    answers: tuple[list[Answer], Ablation], subjects: list[Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes: dict[str, Recipe] = {}

    def fit(recipe: Recipe, run: Path, hardware: Hardware) -> nn.Module:
        recipes[f"{run.parent.name}/{run.name}"] = recipe
        return recipe.network.eval()

    stopped_by: list[list[str]] = []

    def classifier(*given: Any) -> Recipe:
        stopped_by.append([e.name for e in given[6]])
        return classifier_recipe(*given)

    monkeypatch.setattr(ablation, "fit", fit)
    monkeypatch.setattr(ablation, "classifier_recipe", classifier)
    found = replace(answers[1], scheme=PAPER).answers(subjects, told=lambda text: None)
    assert {*recipes} == {
        "one-branch-random-weights-paper/classifier",
        "one-branch-pre-trained-paper/classifier",
        "one-branch-pre-trained-paper/cvae",
        "two-branches-random-weights-paper/classifier",
        "proposed-model-paper/classifier",
        "proposed-model-paper/cvae",
    }
    split = split_by_blocks(subjects, 0)
    for name, recipe in recipes.items():
        if name.endswith("cvae"):
            slices = sum(len(s.example.ct) for s in split.train)
            assert (recipe.steps, recipe.learning_rate) == (200 * math.ceil(slices / SLICES_A_STEP), 5e-3)
        else:
            assert (recipe.steps, recipe.learning_rate) == (200 * math.ceil(len(split.train) / VOLUMES_A_STEP), 1e-5)
            assert recipe.constant_rate and recipe.validation is not None
    assert stopped_by == [[s.series.name for s in split.validation]] * len(GREYS) * len(NETWORKS)
    same = [a.method for a, b in zip(found, answers[0], strict=True) if a == b]
    assert {*METHODS} - {*NETWORKS} <= {*same}


def test_the_command_runs_on_pictures(
    chest_phantom: Callable[..., Volume],
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A small version of the very command: one fold, one step, twenty series of two slices."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    data = tmp_path / "data"
    lines = ["series,covid"]
    chest = chest_phantom(spacing=(1.4, 1.4, 8.0))
    for number in range(20):
        name = f"{'neg' if number < 10 else 'pos'}_{number:04}"
        lines.append(f"{name},{int(number >= 10)}")
        (data / "series" / name).mkdir(parents=True)
        for n, grey in enumerate(255 * scale(chest.voxels[12 + number % 8 :][:2], LUNG_WINDOW)):
            Image.fromarray(np.rint(grey).astype(np.uint8)).save(data / "series" / name / f"{n:03}.png")
    (data / "series.csv").write_text("\n".join(lines) + "\n")
    call = ["evaluate", "ablation", "--data", str(data), "--output", str(tmp_path / "out"), "--bundle"]
    assert main([*call, str(tiny_bundle), "--steps", "1", "--folds", "1", "--seed", "7"]) == 0
    assert all("-seed7" in run.name for run in (tmp_path / "out" / "runs").iterdir())
    assert (tmp_path / "out" / TABLE).read_text().count("\n") == 1 + len(GREYS) * len(METHODS) * 4
    said = capsys.readouterr().out
    assert "on 1 folds twice" in said and "Grey levels matched (1 of 5 folds): AUC" in said
    assert main([*call, str(tiny_bundle), "--folds", "6"]) == 2
    assert main([*call, str(tiny_bundle), "--cvae-steps", "0"]) == 2
    assert main([*call, str(tiny_bundle), "--cvae-steps", "9", "--recipe", "paper"]) == 2
    (data / "series.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert main([*call, str(tiny_bundle)]) == 3
    assert "9 COVID-19 series, too few" in capsys.readouterr().err


def test_a_baseline_that_is_as_good_is_not_beaten(capsys: pytest.CaptureFixture[str]) -> None:
    scores = (0.2, 0.4, 0.6, 0.5, 0.7, 0.9)
    print_ablation(
        [
            Answer(greys, method, 0, f"s{n}", n // 3, score)
            for greys in GREYS
            for method in (PROPOSED, HISTOGRAM)
            for n, score in enumerate(scores)
        ]
    )
    last = capsys.readouterr().out.splitlines()[-1]
    assert "AUC 0.889, target 0.97 missed; better than 0 of 1" in last


def test_series_without_lesions_are_left_out_where_only_shown_ones_count(capsys: pytest.CaptureFixture[str]) -> None:
    """The COVID-19 series that scores lowest has no lesion: without it the order is perfect."""
    scores = {"n0": 0.2, "n1": 0.4, "n2": 0.3, "p0": 0.1, "p1": 0.7, "p2": 0.9}
    answers = [Answer(greys, PROPOSED, 0, s, int(s[0] == "p"), p) for greys in GREYS for s, p in scores.items()]
    print_with_lesions(answers, dict.fromkeys(scores, 5.0) | {"p0": 0.2})
    lines = {line[2:34].strip(): line[34:] for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines[PROPOSED].startswith("1.000 [") and lines[HISTOGRAM].split("  ")[0] == "too few"


def test_the_table_compares_with_the_proposed_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made_up = [
        Answer(greys, method, n % 5, f"s{n:02}", n % 2, float(np.clip(p, 0.01, 0.99)))
        for greys in GREYS
        for method, noise in ((PROPOSED, 0.05), (HISTOGRAM, 0.6))
        for n, p in enumerate(0.25 + 0.5 * (np.arange(40) % 2) + rng.normal(0, noise, 40))
    ]
    rows = ablation_rows(made_up)
    assert [row[:2] for row in rows] == [(g, m) for g in GREYS for m in (PROPOSED, HISTOGRAM)]
    assert rows[0][2].startswith("1.000") and rows[0][3].startswith("1.000") and rows[0][-1] == ""
    difference, p = rows[1][-1].split(" ")
    assert float(difference) == pytest.approx(1 - float(rows[1][2][:5]), abs=0.002) and float(p.strip("()")) < 0.01
    print_ablation(made_up)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[-1] == "Grey levels matched: AUC 1.000, target 0.97 met; better than 1 of 1 baselines (p < 0.05)."
    write_answers(tmp_path / TABLE, made_up)
    assert len((tmp_path / TABLE).read_text().splitlines()) == 1 + len(made_up)
