"""`covid-ct evaluate segmentation`: scores, table, files and page, by real networks on images of small size."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.__main__ import main
from CovidCTDiagnosisLib.bundle import Bundle, open_bundle
from CovidCTDiagnosisLib.ct import Volume
from CovidCTDiagnosisLib.errors import Cancelled
from CovidCTDiagnosisLib.evaluation import segmentation_scores as scores_module
from CovidCTDiagnosisLib.evaluation.drawing import svg
from CovidCTDiagnosisLib.evaluation.grid_ceiling import GridCeiling, lung_ceiling, slice_ceiling
from CovidCTDiagnosisLib.evaluation.metrics import BoundaryErrors, Overlap
from CovidCTDiagnosisLib.evaluation.sample_ct import read_sample_ct
from CovidCTDiagnosisLib.evaluation.segmentation_figures import fold_boxes, share_above
from CovidCTDiagnosisLib.evaluation.segmentation_page import WORST, worst_slices, write_page
from CovidCTDiagnosisLib.evaluation.segmentation_scores import (
    CONSOLIDATION,
    GROUND_GLASS,
    LESION,
    LUNGS,
    CtScore,
    Results,
    SliceScore,
    mask_path,
    mean_dice_at,
    precision_key,
    read_scores,
    run_slices,
    score_ct,
    score_folds,
    score_slice,
)
from CovidCTDiagnosisLib.evaluation.segmentation_targets import MET, MISSED, NOT_MEASURED, table
from CovidCTDiagnosisLib.pipeline.lung_sides import LEFT, RIGHT
from CovidCTDiagnosisLib.pipeline.models import Models
from CovidCTDiagnosisLib.training.folds import MASKING_NETWORKS, Folds, held_out, recipe_fingerprint
from CovidCTDiagnosisLib.training.sources import Case, data_fingerprint, read_lesion_slices
from monai.metrics import compute_dice
from PIL import Image
from scipy import ndimage

CURVES = 4
"""Figures before the worst slices."""


@pytest.fixture(autouse=True)
def _same_signals_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)


RIM = 2
"""Pixels of the small slices, 1.4 mm each, that are narrower than a working voxel."""


@pytest.fixture(scope="module")
def models(tiny_bundle: Path) -> Models:
    return Models(open_bundle(tiny_bundle), torch.device("cpu"))


@pytest.fixture(scope="module")
def cases(small_data: Path) -> list[Case]:
    return read_lesion_slices(small_data)


class Scored:
    """The small expert slices, scored by the tiny bundle in every fold."""

    def __init__(self, cases: list[Case], models: Models, masks: Path) -> None:
        self.asked: list[int] = []
        self.masks = masks
        both = [score_folds(cases, self.models_of(models), kind, masks, "both") for kind in (True, False)]
        self.scores = [score for scores, _ in both for score in scores]
        self.curves = [curve for _, curve in both]

    def models_of(self, models: Models) -> Callable[[int], Models]:
        def answer(fold: int) -> Models:
            self.asked.append(fold)
            return models

        return answer


@pytest.fixture(scope="module")
def scored(cases: list[Case], models: Models, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return Scored(cases, models, tmp_path_factory.mktemp("scored"))


# Scores


def test_every_slice_is_scored_once_by_its_folds_networks_of_either_kind(scored: Scored, cases: list[Case]) -> None:
    assert scored.asked == [*range(5), *range(5)]
    for masks in (True, False):
        chosen = [s for s in scored.scores if s.machine_masks is masks]
        assert [s.name for s in chosen] == [case.name for case in cases]
        assert [s.fold for s in chosen] == sorted(s.fold for s in chosen) and {s.fold for s in chosen} == {*range(5)}


def test_a_folds_threshold_is_the_best_of_the_other_folds(cases: list[Case], models: Models, tmp_path: Path) -> None:
    _, curve = score_folds(cases, lambda fold: models, True, tmp_path)
    slices = [s for fold in range(5) for s in run_slices(held_out(cases, fold), models, fold)]
    for fold, chosen in enumerate(curve.chosen):
        others = mean_dice_at([s for s in slices if s.fold != fold])
        assert others[chosen] == max(others.values())
    assert dict(zip(curve.thresholds, curve.mean_dice, strict=True)) == mean_dice_at(slices)


def test_counts_are_those_of_the_masks_left_on_disk(scored: Scored, small_data: Path) -> None:
    for score in scored.scores:
        number = Path(score.name).name
        found = np.asarray(Image.open(mask_path(scored.masks, score)))
        folder = small_data / "lesion_slices"
        infection, classes = (np.asarray(Image.open(folder / n / f"{number}.png")).T for n in ("infection", "classes"))
        assert score.overlaps[LESION] == (
            np.count_nonzero(found),
            np.count_nonzero(infection),
            np.count_nonzero(found[infection > 0]),
        )
        for value, name in ((1, GROUND_GLASS), (2, CONSOLIDATION)):
            theirs = compute_dice(
                torch.from_numpy(found == value)[None, None],
                torch.from_numpy(classes == value)[None, None],
                ignore_empty=False,
            )
            assert score.overlaps[name].dice == pytest.approx(theirs.item())
        # What the handmade networks are made for: the bright squares lie within lungs and lesions.
        # Of the working grid's voxels, 3 mm wide, those on a square's rim may hold too little of it.
        assert score.overlaps[LUNGS].sensitivity == 1 and score.overlaps[LESION].sensitivity > 0.85
        assert found[ndimage.binary_erosion(infection > 0, iterations=RIM)].all()


def test_unnamed_lesions_count_for_the_lesion_mask_only(cases: list[Case], models: Models) -> None:
    case = cases[-1]
    assert case.labels is not None
    unnamed = Case(case.name, case.hu, case.spacing, np.where(case.labels == 1, 255, case.labels).astype(np.uint8))
    before, after = (
        score_slice(run_slices([c], models, 0)[0], 0.5, machine_masks=True)[0].overlaps for c in (case, unnamed)
    )
    assert after[LESION] == before[LESION] and after[LUNGS] == before[LUNGS]
    assert after[GROUND_GLASS].expert == after[GROUND_GLASS].shared == 0
    assert after[CONSOLIDATION].shared == before[CONSOLIDATION].shared
    assert after[CONSOLIDATION].found < before[CONSOLIDATION].found


def test_ct_scores(small_sample: tuple[Volume, np.ndarray], models: Models) -> None:
    chest, expert = small_sample
    for found, written in zip(read_sample_ct(), small_sample, strict=True):
        np.testing.assert_array_equal(getattr(found, "voxels", found), getattr(written, "voxels", written))
    score = score_ct(chest, expert, models)
    assert {side: o.expert for side, o in score.lungs.items()} == {
        "both": np.count_nonzero(expert),
        "right": np.count_nonzero(expert == RIGHT),
        "left": np.count_nonzero(expert == LEFT),
    }
    assert score.lungs["both"].dice > 0.85 and score.lungs["right"].dice > 0.85
    # Every voxel on which the lungs differ is in the histogram, and few of them lie far from the boundary.
    found, expert, shared = score.lungs["both"]
    assert sum(score.boundary.wrong) == found + expert - 2 * shared
    assert sum(score.boundary.wrong[:15]) + sum(score.boundary.wrong[25:]) < 0.02 * sum(score.boundary.wrong)
    assert 0.8 < score.agreement["lungs"] <= 1 and 0 <= score.agreement["lesions"] <= 1
    assert score.seconds["lungs"] > 0 and score.seconds["lesions"] > 0


def test_distances_from_the_lungs_boundary_are_along_the_ct_s_own_axes(
    chest_phantom: Callable[..., Volume], models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[float, ...]] = []

    def noted(found: np.ndarray, expert: np.ndarray, spacing: tuple[float, ...], reach_mm: float) -> BoundaryErrors:
        told.append(spacing)
        return BoundaryErrors([], [], [])

    monkeypatch.setattr(scores_module, "boundary_errors", noted)
    chest = chest_phantom(spacing=(4.0, 4.5, 6.0))
    expert = np.where((chest.voxels > -930) & (chest.voxels < -700), RIGHT, 0).astype(np.uint8)
    score_ct(chest, expert, models)
    assert told == [chest.spacing[::-1]]


# Working grids


def test_the_ceiling_is_one_on_the_masks_own_grid_and_falls_with_coarser_voxels(models: Models) -> None:
    labels = np.zeros((1, 60, 80), np.uint8)
    labels[0, 10:33, 20:51] = 1
    labels[0, 40:47, 60:75] = 2
    own = [Case("own", labels.astype(np.int16), (3.0, 1.5, 1.5), labels)]
    found = slice_ceiling(own, models)
    dices = {c.step_mm: c.dice for c in found}
    assert dices[1.5] == 1
    assert 0.9 < dices[3.0] < 1
    price = {c.step_mm: c.gmac for c in found}
    assert price[1.0] / price[2.0] == pytest.approx(4) and price[1.5] / price[3.0] == pytest.approx(4)


def test_the_price_of_lungs_is_that_of_counting_a_convolutions_weights(models: Models) -> None:
    mask = np.zeros((30, 30, 30), bool)
    mask[8:22, 8:22, 8:22] = True
    found = {c.step_mm: c for c in lung_ceiling(mask, (2.0, 2.0, 2.0), models)}
    assert found[2.0].dice == 1 and found[3.0].dice < 1
    # The handmade lung network has one pathway at full resolution: each weight works once a voxel.
    network = models.network("lungs")
    weights = sum(m.weight.numel() for m in network.modules() if isinstance(m, torch.nn.Conv3d))
    assert found[2.0].gmac == pytest.approx(weights * 1e6 / 8 / 1e9, rel=1e-6)


def test_the_ceiling_of_the_real_expert_slices(training_data: Path, models: Models) -> None:
    found = {c.step_mm: c.dice for c in slice_ceiling(read_lesion_slices(training_data), models)}
    assert found[1.5] == pytest.approx(0.994, abs=5e-4)
    assert found[1.75] == pytest.approx(0.990, abs=6e-4)
    assert found[2.0] == pytest.approx(0.987, abs=5e-4)
    assert list(found.values()) == sorted(found.values(), reverse=True)


# Table


def overlap(dice: float, size: int = 1000) -> Overlap:
    """Masks of one size with this Dice, which is the sensitivity, too."""
    return Overlap(size, size, round(dice * size))


def slice_score(number: int, fold: int, machine_masks: bool, **dices: float) -> SliceScore:
    names = {"lungs": LUNGS, "lesion": LESION, "glass": GROUND_GLASS, "solid": CONSOLIDATION}
    overlaps = {name: overlap(dices[key]) if key in dices else Overlap(5, 0, 0) for key, name in names.items()}
    return SliceScore(f"lesion_slices/{number}", fold, machine_masks, overlaps)


def made_up(folds: list[SliceScore], lungs: float = 0.99, seconds: float = 10.0, agreement: float = 0.98) -> Results:
    ct = CtScore(
        {side: overlap(lungs) for side in ("both", "right", "left")},
        BoundaryErrors([-2.0, -1.0, 0.0, 1.0, 2.0], [50, 20, 20, 60], [0, 2, 4, 1]),
        {"lungs": seconds / 2, "lesions": seconds / 2},
        {"type": "cpu", "name": "a <fine> processor", "threads": 2},
        {"lungs": agreement, "lesions": agreement - 0.07},
        [GridCeiling(1.5, 0.994, 30.0)],
    )
    bundle = {"name": "tiny & small", "version": "0.0.1", "sha256": {}, "training": {"lungs": {"sources": "phantoms"}}}
    return Results(bundle, ct, folds, ceiling=[GridCeiling(1.75, 0.990, 0.6)])


def several(**dices: float) -> list[SliceScore]:
    """50 slices of one Dice, and as many without machine masks that do a little worse."""
    worse = {name: value - 0.05 for name, value in dices.items()}
    return [slice_score(n, n // 10, m, **(dices if m else worse)) for m in (True, False) for n in range(50)]


def test_a_table_with_every_target_met_and_one_with_every_target_missed() -> None:
    good = several(lungs=0.96, lesion=0.79, glass=0.67, solid=0.56)
    bad = several(lungs=0.94, lesion=0.77, glass=0.65, solid=0.54)
    met = table(made_up(good, lungs=0.986, seconds=11.9, agreement=0.971))
    assert [row.verdict for row in met] == [MET] * 8
    missed = table(made_up(bad, lungs=0.984, seconds=12.1, agreement=0.969))
    assert [row.verdict for row in missed] == [MISSED] * 8
    assert [row.target for row in met] == ["0.985", "0.95", "0.78", "0.66", "0.55", "12 s", "0.97", "0.90"]
    lesion = met[2]
    assert lesion.measured.startswith("0.790 [0.790, 0.790]") and "(50)" in lesion.measured
    assert lesion.without.startswith("0.740 ")
    assert "0.702" in lesion.anchors


def test_the_mean_is_over_slices_that_have_the_class_and_the_pooled_value_stands_beside() -> None:
    scores = [slice_score(0, 0, True, lungs=1, lesion=1, glass=0.9), slice_score(1, 0, True, lungs=1, lesion=0)]
    scores[1].overlaps[LESION] = Overlap(3000, 3000, 0)
    lesion, glass, solid = table(made_up(scores))[2:5]
    assert lesion.measured.startswith("0.500 ") and lesion.beside.startswith("0.250 ")
    assert glass.measured.startswith("0.900 ") and "(1)" in glass.measured
    assert table(made_up(several(lungs=0.9)))[1].without.startswith("0.850 ")
    assert (solid.measured, solid.verdict, solid.without) == (NOT_MEASURED, NOT_MEASURED, NOT_MEASURED)


# Page


class Page(HTMLParser):
    """Text, pictures and any address of a page; complains about tags that do not match."""

    VOID = ("meta", "img", "br")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.feed(path.read_text("utf-8"))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [str(values[key]) for key in ("src", "href") if key in values]
        if tag == "img":
            self.images.append(values)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def picture(self, number: int) -> bytes:
        return base64.b64decode(str(self.images[number]["src"]).split(",", 1)[1])


@pytest.fixture(scope="module")
def page(scored: Scored, cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("page") / "page.html"
    results = made_up(scored.scores)
    results.curves = scored.curves
    write_page(results, table(results), cases, scored.masks, path)
    return Page(path)


def test_the_page_holds_all_that_it_shows(page: Page) -> None:
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert all(image["alt"] for image in page.images)
    for number, image in enumerate(page.images):
        if str(image["src"]).startswith("data:image/svg"):
            assert ElementTree.fromstring(page.picture(number)).tag.endswith("svg")
        else:
            assert Image.open(io.BytesIO(page.picture(number))).size[0] > 600
    kinds = [str(image["src"])[11:14] for image in page.images]
    assert kinds == ["svg"] * CURVES + ["png"] * WORST + ["svg"]


def test_the_page_says_what_the_table_says(page: Page, scored: Scored) -> None:
    for row in table(made_up(scored.scores)):
        for text in row:
            assert text in page.text
    assert "tiny & small" in page.text and "a <fine> processor" in page.text  # escaped, so read back as written
    assert "phantoms" in page.text and "planted" in page.text
    # Of 7 wrong voxels all lie within 2 mm.
    assert "100% of all wrong voxels" in page.text


def test_the_worst_slices_are_shown_worst_first(page: Page, scored: Scored) -> None:
    dices = {s.name: s.overlaps[LESION].dice for s in scored.scores if s.machine_masks}
    worst = sorted(dices, key=lambda name: dices[name])[:WORST]
    assert [s.name for s in worst_slices(scored.scores)] == worst
    assert [str(image["alt"]).split(",")[0] for image in page.images[CURVES : CURVES + WORST]] == worst


def test_contours_of_the_worst_slices_lie_where_masks_are(page: Page, scored: Scored, cases: list[Case]) -> None:
    """Yellow pixels: none in the left third, some in the others, and no grey picture has any."""
    pixels = np.asarray(Image.open(io.BytesIO(page.picture(CURVES))).convert("RGB")).astype(int)
    yellow = (pixels[..., 0] > 180) & (pixels[..., 1] > 180) & (pixels[..., 2] < 120)
    left, middle, right = np.array_split(yellow, 3, axis=1)
    assert not left.any() and middle.any() and right.any()
    score = worst_slices(scored.scores)[0]
    case = next(c for c in cases if c.name == score.name)
    assert case.labels is not None
    rows, columns = np.nonzero(middle)
    height = middle.shape[0] / case.hu.shape[1]
    expected = np.argwhere(case.labels[0] > 0).mean(0) * height
    assert rows.mean() == pytest.approx(expected[0], abs=0.12 * middle.shape[0])
    assert columns.mean() == pytest.approx(expected[1], abs=0.12 * middle.shape[1])


def test_without_scores_of_networks_with_machine_masks_the_others_are_shown(
    scored: Scored, cases: list[Case], tmp_path: Path
) -> None:
    others = [s for s in scored.scores if not s.machine_masks]
    results = made_up(others)
    results.curves = [c for c in scored.curves if not c.machine_masks]
    write_page(results, table(results), cases, scored.masks, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert len(page.images) == CURVES + WORST + 1
    assert ", without machine masks." in page.text and ", with machine masks." not in page.text
    assert {s.name for s in worst_slices(others)} < {s.name for s in others}
    (axes,) = share_above(others).axes
    assert len(axes.lines) == 3 and all(len(line.get_xdata()) > 5 for line in axes.lines)


def test_a_page_without_folds_says_so(tmp_path: Path) -> None:
    results = made_up([])
    write_page(results, table(results), [], tmp_path / "masks", tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert "no folds have been trained" in page.text and len(page.images) == 1


def test_a_figure_has_a_point_for_every_slice_and_is_the_same_every_time(scored: Scored) -> None:
    drawn = svg(fold_boxes(scored.scores))
    assert drawn == svg(fold_boxes(scored.scores))
    figure = fold_boxes(scored.scores)
    for axes, name in zip(figure.axes, (LESION, GROUND_GLASS, CONSOLIDATION), strict=True):
        points = np.concatenate([c.get_offsets() for c in axes.collections])[:, 1]
        expected = [s.overlaps[name].dice for s in scored.scores if s.overlaps[name].expert]
        np.testing.assert_allclose(np.sort(points), np.sort(expected))


# The command


@pytest.fixture
def evaluated(
    small_sample: tuple[Volume, np.ndarray], small_data: Path, tiny_bundle: Path, tmp_path: Path
) -> Iterator[tuple[list[str], Path]]:
    """Arguments of an evaluation that need no training, and its output folder."""
    output = tmp_path / "results"
    arguments = ["evaluate", "segmentation", "--bundle", tiny_bundle, "--data", small_data, "--output", output]
    yield [str(a) for a in arguments], output


def document(output: Path) -> dict[str, Any]:
    return json.loads((output / "segmentation.json").read_text("utf-8"))


def test_without_data_the_command_measures_the_ct(
    small_sample: tuple[Volume, np.ndarray], tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "segmentation", "--bundle", str(tiny_bundle)]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    text = re.sub(r"[\s|]+", " ", out)
    for word in ("0.985", "Semi-Inf-Net", "not measured", "12 s", "1.50 mm", "--folds --data DATA --output FOLDER"):
        assert word in text
    chest, expert = small_sample
    lungs = score_ct(chest, expert, Models(open_bundle(tiny_bundle), torch.device("cpu"))).lungs
    assert all(f"{overlap.dice:.3f}" in text for overlap in lungs.values())


def test_the_command_writes_results_that_it_reads_again(
    evaluated: tuple[list[str], Path], scored: Scored, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, output = evaluated
    assert main(arguments) == 0
    first = document(output)
    assert first["bundle"]["sha256"] == open_bundle(tiny_bundle).sha256 and first["folds"] == []
    assert "Folds" not in (output / "segmentation.csv").read_text() and len(first["ceiling"]) == 7
    # As left by an evaluation with folds, which takes hours.
    known = Results(first["bundle"], made_up([]).ct, scored.scores, scored.curves).document()
    first["folds"], first["curves"] = known["folds"], known["curves"]
    assert read_scores(first["folds"]) == scored.scores
    (output / "segmentation.json").write_text(json.dumps(first), "utf-8")
    capsys.readouterr()
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert read_scores(document(output)["folds"]) == scored.scores
    assert document(output)["curves"] == known["curves"]
    lesion = table(made_up(scored.scores))[2]
    assert lesion.measured[:5] in out and "(10)" in out and "add --folds" not in out
    with (output / "segmentation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * len(scored.scores)
    for row in rows:
        counted = Overlap(int(row["found"]), int(row["expert"]), int(row["shared"]))
        assert float(row["dice"]) == pytest.approx(counted.dice, abs=5e-5)
    assert lesion.measured in Page(output / "segmentation.html").text


def test_earlier_scores_stay_until_all_folds_have_new_ones(
    evaluated: tuple[list[str], Path], scored: Scored, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, output = evaluated
    assert main([*arguments, "--lesion-source", "both"]) == 0
    known = document(output)
    known["folds_made"] |= {precision_key(kind): "32-true" for kind in (True, False)}
    earlier = Results(known["bundle"], made_up([]).ct, scored.scores, scored.curves).document()
    known["folds"], known["curves"], known["lesion_source"] = earlier["folds"], earlier["curves"], "both"
    (output / "segmentation.json").write_text(json.dumps(known), "utf-8")

    def trained(self: Folds, fold: int) -> Bundle:
        if fold == 3 and not self.machine_masks:
            raise Cancelled
        return open_bundle(tiny_bundle)

    monkeypatch.setattr(Folds, "trained", trained)
    assert main([*arguments, "--folds", "both", "--lesion-source", "both"]) != 0
    after = document(output)
    assert sorted(map(str, after["folds"])) == sorted(map(str, earlier["folds"]))  # the same networks: the same scores
    assert len(after["curves"]) == 2


def test_the_ct_alone_comes_first_and_folds_join_it_whatever_data_it_was_given(
    evaluated: tuple[list[str], Path], tiny_bundle: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, output = evaluated
    without_data = [a for a in arguments if a not in ("--data", str(small_data))]
    assert main(without_data) == 0
    stale = document(output)
    assert not stale["folds"]
    stale["folds_made"] |= {"data": "another", "recipe": "another"}
    (output / "segmentation.json").write_text(json.dumps(stale), "utf-8")
    monkeypatch.setattr(Folds, "trained", lambda self, fold: open_bundle(tiny_bundle))
    assert main([*arguments, "--folds", "with"]) == 0
    assert document(output)["folds"]


def test_folds_of_other_data_or_made_otherwise_are_not_shown_as_these(
    evaluated: tuple[list[str], Path],
    tiny_bundle: Path,
    small_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, output = evaluated
    monkeypatch.setattr(Folds, "trained", lambda self, fold: open_bundle(tiny_bundle))
    assert main([*arguments, "--folds", "with"]) == 0
    made = document(output)["folds_made"]
    assert made == {
        "data": data_fingerprint(small_data),
        "recipe": recipe_fingerprint(MASKING_NETWORKS),
        precision_key(True): "32-true",
    }
    assert "Trained with machine masks in 32-true (3-D networks" in Page(output / "segmentation.html").text
    assert main(arguments) == 0 and document(output)["folds_made"] == made  # nothing of it is lost
    without_data = [a for a in arguments if a not in ("--data", str(small_data))]
    assert main(without_data) == 0 and document(output)["folds_made"] == made
    assert main([*arguments, "--folds", "with", "--precision", "bf16-mixed"]) == 2
    assert "trained otherwise" in capsys.readouterr().err
    # The other kind may be trained in another precision, which the page tells.
    assert main([*arguments, "--folds", "without", "--precision", "bf16-mixed"]) == 0
    assert document(output)["folds_made"] == {**made, precision_key(False): "bf16-mixed"}
    told = "Trained with machine masks in 32-true, without machine masks in bf16-mixed ("
    assert told in Page(output / "segmentation.html").text
    assert main([*arguments, "--folds", "without"]) == 2 and "trained otherwise" in capsys.readouterr().err
    made = document(output)["folds_made"]
    known = document(output)
    for key in ("data", "recipe"):
        changed = {**known, "folds_made": {**made, key: "another"}}
        (output / "segmentation.json").write_text(json.dumps(changed), "utf-8")
        assert main(arguments) == 2 and "of other data" in capsys.readouterr().err
    older = {key: value for key, value in made.items() if not key.startswith("precision")}  # as written until 0.13
    for precision, code in (("", 0), ("bf16-mixed", 2)):
        folds = [score for score in known["folds"] if score["machine_masks"]]
        written = {**known, "folds": folds, "folds_made": {**older, "precision": precision}}
        (output / "segmentation.json").write_text(json.dumps(written), "utf-8")
        assert main([*arguments, "--folds", "with"]) == code
    capsys.readouterr()
    del known["folds_made"]  # as written until 0.9.0
    (output / "segmentation.json").write_text(json.dumps(known), "utf-8")
    assert main(arguments) == 2 and "by an older version" in capsys.readouterr().err


def test_who_draws_says_which_networks_are_trained_and_is_kept_apart(
    evaluated: tuple[list[str], Path],
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, output = evaluated
    trained: list[tuple[str, ...]] = []

    def train(self: Folds, fold: int) -> Bundle:
        trained.append(self.networks)
        return open_bundle(tiny_bundle)

    monkeypatch.setattr(Folds, "trained", train)
    assert main([*arguments, "--folds", "with"]) == 0
    assert trained == [("lungs", "involvement")] * 5 and "drawn by 2DS" in capsys.readouterr().out
    after = document(output)
    assert after["lesion_source"] == "involvement"
    assert all({LUNGS, LESION} <= s["overlaps"].keys() for s in after["folds"])
    assert main([*arguments, "--lesion-source", "both"]) == 2
    assert "another lesion source" in capsys.readouterr().err
    trained.clear()
    (output / "segmentation.json").unlink()
    assert main([*arguments, "--folds", "with", "--lesion-source", "both"]) == 0
    assert trained == [("lungs", "involvement", "lesions")] * 5 and "both lesion networks" in capsys.readouterr().out


def test_results_hold_no_path_of_this_machine(evaluated: tuple[list[str], Path], tmp_path: Path) -> None:
    arguments, output = evaluated
    assert main(arguments) == 0
    for path in output.iterdir():
        assert str(tmp_path) not in path.read_text("utf-8")


@pytest.mark.parametrize(
    "arguments",
    [
        ("segmentation", "--folds"),
        ("segmentation", "--folds", "--data", "somewhere"),
        ("segmentation", "--output", "none/results"),
        ("segmentation", "--folds", "without", "--data", "somewhere"),
    ],
    ids=" ".join,
)
def test_a_wrong_call_is_answered_with_code_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "Traceback" not in err


def test_too_few_slices_for_folds(small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("images", "infection", "classes"):
        folder = tmp_path / "lesion_slices" / kind
        folder.mkdir(parents=True)
        for number in (0, 1, 2, 4):
            shutil.copy(small_data / "lesion_slices" / kind / f"{number}.png", folder)
    output = tmp_path / "results"
    assert main(["evaluate", "segmentation", "--folds", "--data", str(tmp_path), "--output", str(output)]) == 3
    assert "4 expert slices" in capsys.readouterr().err and not output.exists()


def test_results_of_something_else_are_left_alone(
    evaluated: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, output = evaluated
    output.mkdir()
    (output / "segmentation.json").write_text('{"mine": 1}')
    assert main(arguments) == 2
    assert "segmentation.json is not from covid-ct evaluate" in capsys.readouterr().err
    assert {path.name for path in output.iterdir()} == {"segmentation.json"}
    assert (output / "segmentation.json").read_text() == '{"mine": 1}'
