"""``covid-ct evaluate ablation``: what each part of the classifier is worth (paper, Table 3), beside baselines.

Grouped cross-validation: five folds of blocks of neighbouring series. In each fold every method learns from three
blocks, is calibrated on a fourth and answers on the fifth; the paper's recipe also stops by the fourth. Areas compare
answers within a fold only: those of different folds come from different networks, each calibrated on few series.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Table
from scipy.special import expit

from ..bundle import open_bundle
from ..errors import InputError, UsageError
from ..folders import require_parent, write_text
from ..pipeline.compute import choose_device
from ..pipeline.memory import tune_allocator
from ..pipeline.models import Models
from ..tables import write_rows
from ..training.baselines import (
    Subject,
    common_curve,
    learn_histogram,
    learn_lung_fractions,
    learn_slice_cnn,
    matched,
    score_involvement,
)
from ..training.calibration import fit_platt, score_differences
from ..training.diagnosis import (
    CVAE_SIZE,
    SCHEMES,
    SHORT,
    SLICES_A_STEP,
    VOLUMES_A_STEP,
    classifier_recipe,
    cvae_recipe,
    encoder_weights,
)
from ..training.examples import LONGEST_SIDE, SEGMENTING, inputs_kind, prepare_examples
from ..training.loop import Hardware, fit
from ..training.plans import DIAGNOSIS_RECIPE
from ..training.sources import Series, data_fingerprint, read_series
from ..training.splits import BLOCKS, split_by_blocks
from .confusion import Confusion
from .markdown import write_markdown
from .metrics import Interval, interval_text
from .roc import Difference, compare_areas, delong
from .terminal import table_console

TABLE, MARKDOWN = "ablation.csv", "ablation.md"
COLUMNS = ("Grey levels", "Method", "AUC", "Sensitivity", "Specificity", "F1", "Proposed better by (p)")
STEPS = 300
PROPOSED = "proposed model"


class Parts(NamedTuple):
    """Of the proposed model: the lesion branch, and the CVAE that pre-trains the encoder."""

    side_information: bool
    pretrained: bool


NETWORKS = {
    "one branch, random weights": Parts(False, False),
    "one branch, pre-trained": Parts(False, True),
    "two branches, random weights": Parts(True, False),
    PROPOSED: Parts(True, True),
}
HISTOGRAM, FRACTIONS, SLICE_CNN = "grey-level histogram", "lung fractions, random forest", "slice CNN, mean pooling"
INVOLVEMENT = "percentage of involvement"
BASELINES = HISTOGRAM, FRACTIONS, SLICE_CNN, INVOLVEMENT
METHODS = (*NETWORKS, *BASELINES)
TARGET_AUC, SURE = 0.97, 0.05
LEAST_LESION = 1.0
"""Percentage of involvement from which on a series is said to show COVID-19."""
GREYS = {"as they are": False, "matched": True}
"""Grey levels of the series: as they are, or with one common histogram of lung outside lesions."""


class Answer(NamedTuple):
    """A method's calibrated answer on a series that it has not learned from.

    Attributes:
        greys: of ``GREYS``.
        method: of ``METHODS``.
        fold: 0 to 4.
        series: name.
        covid: truth.
        probability: of COVID-19; called from 0.5 on.
    """

    greys: str
    method: str
    fold: int
    series: str
    covid: int
    probability: float


@dataclass(frozen=True)
class Ablation:
    """Where and how long to train.

    Attributes:
        folder: of the results; runs go on from what lies in its ``runs``.
        key: tells runs on other data or masks apart.
        steps: optimiser steps of every network.
        seed: of everything random.
        folds: which to run.
        precision: Lightning's name, or None for the usual one.
        cvae_steps: of pre-training, or None for as many as ``steps``.
        scheme: of ``SCHEMES``, how CVAE and classifier learn; one that has epochs does not heed the steps.
    """

    folder: Path
    key: str
    steps: int = STEPS
    seed: int = 0
    folds: tuple[int, ...] = tuple(range(BLOCKS))
    precision: str | None = None
    cvae_steps: int | None = None
    scheme: str = SHORT

    def answers(self, subjects: Sequence[Subject], told: Callable[[str], None] = print) -> list[Answer]:
        """Every method's answers on every fold; what is on disk is not computed again."""
        found: list[Answer] = []
        for greys, match in GREYS.items():
            for fold in self.folds:
                split = split_by_blocks(subjects, fold)
                parts = [split.train, split.validation, split.test]
                if match:
                    common = common_curve(split.train)
                    parts = [[matched(s, common) for s in part] for part in parts]
                for method in METHODS:
                    found += self._answer(greys, method, fold, parts)
                told(f"Grey levels {greys}, fold {fold + 1} of {BLOCKS}: done.")
        return found

    @property
    def _hardware(self) -> Hardware:
        return Hardware(precision=self.precision)

    def _answer(self, greys: str, method: str, fold: int, parts: list[list[Subject]]) -> list[Answer]:
        settings = "-".join(map(str, filter(None, (self.key, self.steps, f"seed{self.seed}", self.precision))))
        run = self.folder / "runs" / settings / _plain(greys) / f"fold-{fold}" / (_plain(method) + self._scheme(method))
        learn, calibrate, test = parts
        file = run / "answers.json"
        if not file.exists():
            run.mkdir(parents=True, exist_ok=True)
            score = self._learned(method, learn, calibrate, run)
            slope, offset = fit_platt(score(calibrate), np.array([s.covid for s in calibrate]), balanced=True)
            probability = expit(slope * score(test) + offset)
            write_text(file, json.dumps(dict(zip([s.series.name for s in test], probability.tolist(), strict=True))))
        known = json.loads(file.read_text())
        return [Answer(greys, method, fold, s.series.name, s.covid, known[s.series.name]) for s in test]

    def _scheme(self, method: str) -> str:
        """Tells runs apart that do not learn in the usual scheme, or whose pre-training is not of the usual length."""
        if method not in NETWORKS:
            return ""
        if self.scheme != SHORT:
            return f"-{self.scheme}"
        longer = NETWORKS[method].pretrained and self._cvae_steps != self.steps
        return f"-cvae{self._cvae_steps}" if longer else ""

    @property
    def _cvae_steps(self) -> int:
        return self.cvae_steps or self.steps

    def _learned(
        self, method: str, learn: list[Subject], calibrate: list[Subject], run: Path
    ) -> Callable[[Sequence[Subject]], np.ndarray]:
        if method == INVOLVEMENT:
            return score_involvement
        if method == HISTOGRAM:
            return learn_histogram(learn)
        if method == FRACTIONS:
            return learn_lung_fractions(learn, self.seed)
        if method == SLICE_CNN:
            network = learn_slice_cnn(learn, run, self.steps, self.seed, self._hardware)
        else:
            parts, scheme = NETWORKS[method], SCHEMES[self.scheme]
            examples, validation = ([s.example for s in part] for part in (learn, calibrate))
            encoder = None
            if parts.pretrained:
                recipe = cvae_recipe(examples, self._cvae_steps, self.seed, parts.side_information, scheme)
                encoder = encoder_weights(fit(recipe, run / "cvae", self._hardware).state_dict())
            recipe = classifier_recipe(
                examples,
                encoder,
                self.steps,
                self.seed,
                parts.side_information,
                scheme,
                validation,
            )
            network = fit(recipe, run / "classifier", self._hardware)
        return lambda subjects: score_differences(network, [s.example for s in subjects])


def evaluate_ablation(
    data: Path,
    output: Path,
    bundle: Path | None,
    device: str,
    *,
    steps: int,
    precision: str | None = None,
    folds: int = BLOCKS,
    cvae_steps: int | None = None,
    scheme: str = SHORT,
    seed: int = 0,
) -> None:
    """Train, answer, write ``ablation.csv`` and print the table.

    Args:
        data: data folder with slice series.
        output: folder for results; its parent must exist.
        bundle: segments the series.
        device: where to segment.
        steps: optimiser steps of every network.
        precision: of the training, Lightning's name.
        folds: how many of them, from the first.
        cvae_steps: of pre-training, or None for as many as ``steps``.
        scheme: see ``Ablation``.
        seed: of everything random; each has runs of its own.

    Raises:
        InputError: the data folder lacks a part.
        UsageError: ``output`` cannot be used, or the scheme has its own length of pre-training.
    """
    if cvae_steps is not None and SCHEMES[scheme].epochs is not None:
        raise UsageError(f"The recipe {scheme} has its own length.", "Leave out --cvae-steps or --recipe.")
    require_parent(output)
    tune_allocator()
    series = read_series(data)
    _check_counts(series)
    output.mkdir(exist_ok=True)
    models = Models(open_bundle(bundle), choose_device(device))
    examples = prepare_examples(series, models, output / "series", print)
    subjects = [Subject(s, e) for s, e in zip(series, examples, strict=True)]
    print(f"Trains {len(METHODS)} methods on {folds} folds twice: hours. Stopped, it goes on later.", flush=True)
    key = f"{data_fingerprint(data)}-{models.bundle.fingerprint(SEGMENTING)}-{inputs_kind()}-{DIAGNOSIS_RECIPE}"
    answers = Ablation(output, key, steps, seed, tuple(range(folds)), precision, cvae_steps, scheme).answers(subjects)
    write_answers(output / TABLE, answers)
    write_markdown(output / MARKDOWN, COLUMNS, ablation_rows(answers))
    print_ablation(answers)
    print_with_lesions(answers, {e.name: e.involvement_percent for e in examples})
    print(_told_lengths(steps, cvae_steps or steps, scheme))
    print(f"Answers: {output / TABLE}")


def _told_lengths(steps: int, cvae_steps: int, scheme: str) -> str:
    epochs = SCHEMES[scheme].epochs
    networks, cvae, more = f"{steps} steps", f"{cvae_steps} steps", ""
    if epochs is not None:
        networks, cvae = f"up to {epochs} epochs, in steps", f"{epochs} epochs, in steps"
        more = f" Recipe {scheme}: stopped by the block that also calibrates; the slice CNN: {steps} steps."
    return (
        f"Networks: {networks} of {VOLUMES_A_STEP} volumes, lungs at most {LONGEST_SIDE} pixels long; CVAE {cvae} of "
        f"{SLICES_A_STEP} slices of {CVAE_SIZE[0]} x {CVAE_SIZE[1]} pixels. Calls at probability 0.5.{more}"
    )


def _check_counts(series: Sequence[Series]) -> None:
    """Areas within folds need two series of either kind in each."""
    for covid, kind in enumerate(("other", "COVID-19")):
        count = sum(s.covid == covid for s in series)
        if count < 2 * BLOCKS:
            raise InputError(
                f"There are {count} {kind} series, too few to compare.", f"Give at least {2 * BLOCKS} of either kind."
            )


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """One row per answer, as CSV."""
    write_rows(path, Answer._fields, answers)


def print_ablation(answers: Sequence[Answer]) -> None:
    """The table: each method by itself, and the proposed model against it."""
    console, frame = table_console()
    rows = Table(*COLUMNS, box=frame)
    for cells in ablation_rows(answers):
        rows.add_row(*cells)
    console.print(rows)
    print("AUC within folds with DeLong's interval, the rest with Wilson's; p by DeLong's paired test. 95 % intervals.")
    for greys in GREYS:
        print(_verdict(greys, answers))


def print_with_lesions(answers: Sequence[Answer], involvement_percent: Mapping[str, float]) -> None:
    """Areas where COVID-19 shows: without its series of hardly any lesion, which nothing honest can tell apart.

    Choosing by involvement favours involvement and what looks at lesions; the areas tell what the others lack.

    Args:
        answers: of all methods.
        involvement_percent: of each series.
    """
    shown = [a for a in answers if not a.covid or involvement_percent[a.series] >= LEAST_LESION]
    print(f"AUC with only those COVID-19 series that have {LEAST_LESION:g} % of lesion or more:")
    for method in METHODS:
        areas = [_area_text(_of(shown, greys, method)) for greys in GREYS]
        print(f"  {method:32}" + "".join(f"{area:26}" for area in areas).rstrip())


def _area_text(answers: Sequence[Answer]) -> str:
    try:
        return interval_text(_area(answers))
    except ValueError:
        return "too few"


def _verdict(greys: str, answers: Sequence[Answer]) -> str:
    """Whether the proposed model reaches the target and beats every baseline."""
    best = _of(answers, greys, PROPOSED)
    area = _area(best).value
    others = [_of(answers, greys, baseline) for baseline in BASELINES]
    beaten = [_compared(best, other) for other in others if other]
    better = sum(result.interval.value > 0 and result.p < SURE for result in beaten)
    folds = len({a.fold for a in best})
    part = "" if folds == BLOCKS else f" ({folds} of {BLOCKS} folds)"
    reached = "met" if area >= TARGET_AUC else "missed"
    return (
        f"Grey levels {greys}{part}: AUC {area:.3f}, target {TARGET_AUC} {reached}; better than {better} of "
        f"{len(beaten)} baselines (p < {SURE})."
    )


def ablation_rows(answers: Sequence[Answer]) -> list[tuple[str, ...]]:
    """Cells of the table as text."""
    found = []
    for greys in GREYS:
        best = _of(answers, greys, PROPOSED)
        for method in METHODS:
            mine = _of(answers, greys, method)
            if not mine:
                continue
            calls = Confusion.of(_probabilities(mine) >= 0.5, _truth(mine))
            found.append(
                (
                    greys,
                    method,
                    interval_text(_area(mine)),
                    *(interval_text(value) for value in (calls.sensitivity, calls.specificity, calls.f1)),
                    "" if method == PROPOSED else _comparison(best, mine),
                )
            )
    return found


def _of(answers: Sequence[Answer], greys: str, method: str) -> list[Answer]:
    return sorted((a for a in answers if a.greys == greys and a.method == method), key=lambda a: a.series)


def _comparison(best: Sequence[Answer], other: Sequence[Answer]) -> str:
    """Answers on the same series in the same order."""
    result = _compared(best, other)
    p = "-" if math.isnan(result.p) else f"{result.p:.3f}"
    return f"{result.interval.value:+.3f} ({p})"


def _compared(best: Sequence[Answer], other: Sequence[Answer]) -> Difference:
    return compare_areas(_probabilities(best), _probabilities(other), _truth(best), _folds(best))


def _area(answers: Sequence[Answer]) -> Interval:
    return delong(_probabilities(answers), _truth(answers), _folds(answers))


def _probabilities(answers: Sequence[Answer]) -> np.ndarray:
    return np.array([a.probability for a in answers])


def _truth(answers: Sequence[Answer]) -> np.ndarray:
    return np.array([a.covid for a in answers])


def _folds(answers: Sequence[Answer]) -> np.ndarray:
    return np.array([a.fold for a in answers])


def _plain(name: str) -> str:
    """As a folder's name."""
    return name.replace(",", "").replace(" ", "-")
