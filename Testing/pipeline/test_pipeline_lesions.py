"""Lesions inside the lungs and those that reach out of them: consolidated lung is still lung."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.bundle import Bundle, NetworkRecord, revise_bundle
from CovidCTDiagnosisLib.ct import Volume
from CovidCTDiagnosisLib.ct.regrid import WorkingGrid, to_grid
from CovidCTDiagnosisLib.networks import UNet2D, UNet3D
from CovidCTDiagnosisLib.pipeline import Analysis, partial_volume
from CovidCTDiagnosisLib.pipeline.lesion_mask import share_out, two_classes
from CovidCTDiagnosisLib.pipeline.lesion_reach import (
    LOBES_OUTSIDE,
    MOST_OUTSIDE,
    SMALL_OUTSIDE,
    reach_out,
    widened_lungs,
)
from CovidCTDiagnosisLib.pipeline.lesions import Lesions, _labels_at, segment_lesions, usual_source
from CovidCTDiagnosisLib.pipeline.models import Models
from CovidCTDiagnosisLib.pipeline.slices import SLICES_AT_ONCE, SliceProbabilities, slice_lesions, slice_probabilities
from hypothesis import given, settings
from hypothesis import strategies as st

SHAPE = (6, 30, 40)
GROUND_GLASS, CONSOLIDATION, CRAZY_PAVING, COMBINED = 1, 2, 3, 4


@pytest.fixture(scope="module")
def models(bundle: Bundle) -> Models:
    return Models(bundle, torch.device("cpu"))


def box(*ranges: tuple[int, int], shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


LUNG = box((0, 6), (5, 25), (5, 20))


# reach_out


def test_a_thick_piece_that_touches_the_lungs_is_kept_whole() -> None:
    piece = box((1, 5), (10, 18), (18, 28))
    assert np.array_equal(reach_out(LUNG, piece), piece & ~LUNG)


def test_a_piece_apart_and_a_thin_rim_are_not() -> None:
    apart, rim = box((1, 5), (10, 18), (23, 33)), box((0, 6), (5, 25), (20, 22))
    assert not reach_out(LUNG, apart).any()
    assert not reach_out(LUNG, rim).any()


def test_a_thick_piece_takes_its_own_thin_part_along_and_no_other() -> None:
    piece, tail = box((1, 5), (10, 18), (18, 28)), box((3, 4), (14, 15), (28, 34))
    rim_elsewhere = box((0, 6), (5, 25), (4, 5))
    assert np.array_equal(reach_out(LUNG, piece | tail | rim_elsewhere), (piece | tail) & ~LUNG)


@pytest.mark.parametrize(("side", "length", "kept"), [(10, 3, True), (4, 8, False)], ids=["flat", "upright"])
def test_a_small_piece_must_lie_broadly_on_the_lungs(side: int, length: int, kept: bool) -> None:
    """A knob of rib cartilage, or what blurs above an apex, touches them with its foot alone; a wide one does not."""
    lung = np.zeros((100, 40, 60), bool)
    lung[:, :, :40] = True
    piece = np.zeros_like(lung)
    piece[18 : 18 + side, 18 : 18 + side, 40 : 40 + length] = True
    assert piece.sum() < SMALL_OUTSIDE * lung.sum()
    assert reach_out(lung, piece).any() == kept
    large = np.zeros_like(lung)
    large[5:35, 5:35, 40:58] = True  # a consolidated lobe, of whose surface as little may touch
    assert (reach_out(lung, large) == large).all()


def test_tissue_as_large_as_the_lungs_is_a_network_gone_wrong() -> None:
    fits = box((0, 6), (5, 25), (20, 20 + int(MOST_OUTSIDE * 15)))
    assert reach_out(LUNG, fits).any()
    assert not reach_out(LUNG, box((0, 6), (0, 30), (20, 40))).any()


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.0])
def test_lobes_may_fill_more_than_the_lungs_and_a_body_may_not(scale: float) -> None:
    """Two lungs of which the lower parts are consolidated, in an oval body; the picture shows all of it."""
    j, i = np.ogrid[: round(120 * scale), : round(180 * scale)]
    j, i = j / scale - 60, i / scale - 90
    lungs = (((np.abs(i) - 42) / 32) ** 2 + (j / 46) ** 2 < 1)[None].repeat(3, 0)
    body = ((i / 90) ** 2 + (j / 60) ** 4 < 1)[None].repeat(3, 0)
    aerated = lungs & (j < -2)
    assert MOST_OUTSIDE < (lungs & ~aerated).sum() / aerated.sum() < LOBES_OUTSIDE
    assert np.array_equal(reach_out(aerated, lungs), lungs & ~aerated)
    assert MOST_OUTSIDE < (body & ~lungs).sum() / lungs.sum() < LOBES_OUTSIDE
    assert not reach_out(lungs, body).any()
    rim = (((np.abs(i) - 42) / 35) ** 2 + (j / 49) ** 2 < 1) & (np.abs(j) > 5)  # blurred: no lesion but in some rows
    assert (body & ~rim & ~lungs).sum() > MOST_OUTSIDE * lungs.sum()
    assert not reach_out(lungs, body & ~rim).any()


@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0, 0.6))
@settings(max_examples=30, deadline=None)
def test_what_reaches_out_is_pathological_outside_and_hangs_on(seed: int, share: float) -> None:
    pathological = np.random.default_rng(seed).random(SHAPE) < share
    found = reach_out(LUNG, pathological)
    assert not (found & LUNG).any() and not (found & ~pathological).any()
    again = reach_out(LUNG, LUNG | found)
    assert np.array_equal(again, found)


# segment_lesions


class Chest:
    """Two lungs as they were given, and dense pieces that a lung network cut through or left out.

    The tissue around is dark, so that the handmade networks see nothing but the pieces.
    """

    shape = (20, 44, 72)

    def __init__(self) -> None:
        right, left = self.box((3, 17), (8, 36), (6, 28)), self.box((3, 17), (8, 36), (46, 66))
        self.lungs = (right * 1 + left * 2).astype(np.uint8)
        self.right, self.left = self.box((6, 14), (14, 26), (22, 34)), self.box((6, 14), (14, 26), (40, 50))
        self.apart = self.box((6, 14), (39, 43), (34, 40))
        hu = np.where(self.lungs > 0, -850.0, -640.0)
        hu[self.right | self.left | self.apart] = 60
        hu += np.random.default_rng(0).normal(0, 8, hu.shape)
        self.ct = Volume(np.rint(hu).astype(np.int16), (3.0, 3.0, 4.0))

    def box(self, *ranges: tuple[int, int]) -> np.ndarray:
        return box(*ranges, shape=self.shape)


@pytest.fixture(scope="module")
def chest() -> Chest:
    return Chest()


def segment(chest: Chest, models: Models, **options: Any) -> Lesions:
    return segment_lesions(chest.ct, chest.lungs, models, lambda fraction: None, **options)


@pytest.fixture(scope="module")
def found(chest: Chest, models: Models) -> Lesions:
    return segment(chest, models)


@pytest.fixture(scope="module")
def rarer_models(tiny_bundle: Path, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Where the handmade U-Net says ground glass and consolidation, this one says crazy paving and combined."""
    network, weights = bundle.networks["lesions"], dict(bundle.weights("lesions"))
    order = [0, 3, 4, 1, 2]
    for name in ("classify.weight", "classify.bias"):
        weights[name] = weights[name][order].clone()
    record = NetworkRecord(network["architecture"], network["preprocessing"], weights)
    folder = tmp_path_factory.mktemp("rarer") / "rarer"
    return Models(revise_bundle(tiny_bundle, folder, networks={"lesions": record}), torch.device("cpu"))


def test_lesions_that_reach_out_of_the_lungs_make_lung_of_their_side(chest: Chest, found: Lesions) -> None:
    for piece, side in ((chest.right, 1), (chest.left, 2)):
        outside = piece & (chest.lungs == 0)
        assert outside.sum() > 500
        assert (found.lungs[outside] == side).all() and (found.labels[piece] == CONSOLIDATION).all()


def test_nothing_but_lesion_is_added_to_the_lungs(chest: Chest, found: Lesions) -> None:
    assert not found.labels[found.lungs == 0].any()
    np.testing.assert_array_equal(found.lungs[chest.lungs > 0], chest.lungs[chest.lungs > 0])
    added = (found.lungs > 0) & (chest.lungs == 0)
    assert added.any() and (found.labels[added] > 0).all()
    assert (added & ~chest.right & ~chest.left).sum() < 0.2 * added.sum()  # voxels of the working grid are larger


def test_dense_tissue_apart_from_the_lungs_is_none(chest: Chest, found: Lesions) -> None:
    assert not found.lungs[chest.apart].any() and not found.labels[chest.apart].any()


def test_the_lungs_given_are_not_written_to(chest: Chest, models: Models) -> None:
    before = chest.lungs.copy()
    segment(chest, models)
    np.testing.assert_array_equal(chest.lungs, before)


def test_lungs_that_the_user_drew_stay_as_they_are(chest: Chest, models: Models) -> None:
    drawn = segment(chest, models, widen=False)
    np.testing.assert_array_equal(drawn.lungs, chest.lungs)
    assert (drawn.labels[chest.right & (chest.lungs > 0)] > 0).all() and not drawn.labels[chest.lungs == 0].any()


def test_a_network_that_takes_the_whole_body_for_lesion_adds_no_lung(sick, models: Models) -> None:
    """The phantom's body is soft tissue: brighter than what the handmade 2DS takes for lesion."""
    aerated = (sick.ct.voxels > -930) & (sick.ct.voxels < -770)
    lungs = np.where(aerated, np.where(np.arange(sick.ct.shape[2]) < sick.ct.shape[2] // 2, 1, 2), 0).astype(np.uint8)
    found = segment_lesions(sick.ct, lungs, models, lambda fraction: None)
    np.testing.assert_array_equal(found.lungs, lungs)


def test_probabilities_lie_on_the_working_grid(chest: Chest, found: Lesions) -> None:
    assert found.classes.shape == (4, *found.grid.count) and found.classes.dtype == np.float16
    assert found.mask.shape == found.grid.count and found.mask.dtype == np.float32
    assert found.mask.min() >= 0 and found.mask.max() <= 1
    centre = np.array([10, 20, 26]) * chest.ct.spacing[::-1]  # in the right piece
    k, j, i = ((centre - found.grid.start) / found.grid.step).astype(int)
    assert found.mask[k, j, i] > 0.9 and found.classes[CONSOLIDATION - 1, k, j, i] > 0.9


def test_the_source_says_which_network_draws_the_mask(
    chest: Chest, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_volume, "THIN_MM", 0.0)  # no skin is so thin: the masks are the networks' own
    found, unet, involvement = (segment(chest, models, source=name) for name in ("both", "lesions", "involvement"))
    expected = np.minimum(unet.classes.sum(0, dtype=np.float32), 1)
    np.testing.assert_array_equal(unet.mask, expected)
    np.testing.assert_allclose(found.mask, (unet.mask + involvement.mask) / 2, atol=1e-6)
    assert np.abs(unet.mask - involvement.mask).max() > 0.5
    for one in (unet, involvement):
        asked = one.classes.any(0)
        np.testing.assert_allclose(one.classes.sum(0, dtype=np.float32)[asked], one.mask[asked], atol=2e-3)
        assert (one.labels[chest.right] == CONSOLIDATION).all()


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.4), st.floats(0, 0.4))
def test_the_probability_of_lesion_is_shared_out_among_its_classes(
    lesion: float, denser: float, ground_glass: float, dense: float
) -> None:
    said = np.array([ground_glass, dense, 0.01, 0.02], np.float32)[:, None]
    classes, of_lesion = said.copy(), np.array([lesion], np.float32)
    share_out(of_lesion, classes, np.array([[0.7]]))  # a 2DS that does not tell
    np.testing.assert_allclose(classes, lesion * said / said.sum(), atol=1e-6)
    told = said.copy()
    share_out(of_lesion, told, np.array([[0.7], [denser]]))
    np.testing.assert_allclose(told.sum(), lesion, atol=1e-6)
    np.testing.assert_allclose(told[2:], classes[2:], atol=1e-6)
    np.testing.assert_allclose(told[1], denser * classes[:2].sum(), atol=1e-6)
    unasked = np.zeros_like(said)
    share_out(of_lesion, unasked, np.array([[0.7], [denser]]))
    np.testing.assert_allclose(unasked[:, 0], [lesion * (1 - denser), lesion * denser, 0, 0], atol=1e-6)


@pytest.fixture(scope="module")
def telling(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A 2DS that tells the classes, and calls everything ground glass."""
    weights = dict(models.bundle.weights("involvement"))
    facts = models.bundle.networks["involvement"]
    weights["classify.weight"] = torch.cat([weights["classify.weight"], 0 * weights["classify.weight"]])
    weights["classify.bias"] = torch.cat([weights["classify.bias"], weights["classify.bias"] * 0 - 9])
    record = NetworkRecord({**facts["architecture"], "outputs": 2}, facts["preprocessing"], weights, facts["training"])
    folder = tmp_path_factory.mktemp("telling") / "telling"
    return Models(revise_bundle(models.bundle.folder, folder, networks={"involvement": record}), models.device)


def lone_lesions(ct: Volume, chest: Chest, models: Models) -> list[np.ndarray]:
    """Lesion classes of each slice of a CT by itself."""
    return slice_lesions(list(ct.voxels), list(chest.lungs > 0), ct.spacing, models, lambda fraction: None)[1]


def test_the_class_follows_2ds_on_cts_and_slices_alike(chest: Chest, models: Models, telling: Models) -> None:
    """What the U-Net names consolidation no longer is."""
    for found, told in (
        [segment(chest, m).labels for m in (models, telling)],
        [np.stack(lone_lesions(chest.ct, chest, m)) for m in (models, telling)],
    ):
        assert (found == CONSOLIDATION).any() and set(np.unique(told)) == {0, GROUND_GLASS}


def test_a_2ds_that_tells_the_classes_draws_the_mask_alone(chest: Chest, models: Models, telling: Models) -> None:
    """On CTs and on slices; one of a single output draws together with the U-Net."""
    for usual, source in ((models, "both"), (telling, "involvement")):
        assert usual_source(usual) == source
        found = segment(chest, usual)
        np.testing.assert_array_equal(found.labels, segment(chest, usual, source=source).labels)
        had, wanted = (
            next(slice_probabilities(list(chest.ct.voxels), chest.ct.spacing, usual, source=name))
            for name in (None, source)
        )
        inside = chest.lungs[0] > 0
        for one, other in zip(had.lesions(inside, 0.4), wanted.lesions(inside, 0.4), strict=True):
            np.testing.assert_array_equal(one, other)
    assert (segment(chest, telling).mask != segment(chest, telling, source="both").mask).any()


def test_the_unet_runs_only_where_2ds_has_found_lesions(
    chest: Chest, telling: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = UNet3D.forward

    def counted(self: UNet3D, x: torch.Tensor) -> torch.Tensor:
        seen.append(x.numel())
        return forward(self, x)

    monkeypatch.setattr(UNet3D, "forward", counted)
    segment(chest, telling, source="both")
    everywhere = sum(seen)
    seen.clear()
    found = segment(chest, telling)
    assert 0 < sum(seen) < everywhere
    lesion = found.mask > 0.5
    np.testing.assert_allclose(found.classes.sum(0, dtype=np.float32)[lesion], found.mask[lesion], atol=2e-3)
    seen.clear()
    healthy = chest.ct.with_voxels(np.where(chest.lungs > 0, np.int16(-850), np.int16(-1000)))
    assert not segment_lesions(healthy, chest.lungs, telling, lambda fraction: None).labels.any()
    assert not np.any(lone_lesions(healthy, chest, telling))
    assert not seen


@pytest.mark.parametrize(("thin_mm", "stays"), [(8.0, False), (7.9, True)], ids=["skin", "thicker than a skin"])
def test_a_skin_at_the_base_of_a_lung_is_no_lesion_and_a_thicker_one_is(
    thin_mm: float, stays: bool, chest: Chest, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice of this CT reaches into two of its working slices, 8 mm together, whatever their pixels' 3 mm."""
    monkeypatch.setattr(partial_volume, "THIN_MM", thin_mm)
    skin, thick = chest.box((3, 4), (16, 26), (10, 20)), chest.box((3, 7), (16, 26), (50, 60))
    hu = np.where(skin | thick, np.int16(60), chest.ct.voxels)
    labels = segment_lesions(chest.ct.with_voxels(hu), chest.lungs, models, lambda fraction: None).labels
    assert labels[skin].any() == stays and (labels[thick] == CONSOLIDATION).mean() > 0.9


@pytest.fixture(scope="module")
def strict_models(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The handmade networks, of which the mask wants more."""
    facts, weights = models.bundle.networks["lesions"], models.bundle.weights("lesions")
    record = NetworkRecord(facts["architecture"], {**facts["preprocessing"], "threshold": 0.9}, weights)
    folder = tmp_path_factory.mktemp("strict") / "strict"
    return Models(revise_bundle(models.bundle.folder, folder, networks={"lesions": record}), models.device)


def test_the_bundle_s_threshold_draws_the_mask(
    sick, sick_analysis: Analysis, models: Models, strict_models: Models
) -> None:
    """On CTs and on slices."""
    ct, lungs, some = sick.ct, sick_analysis.images["lungs"].voxels, slice(30, 34)
    counts = []
    for one in (models, strict_models):
        whole = segment_lesions(ct, lungs, one, lambda fraction: None).labels
        _, slices = slice_lesions(list(ct.voxels[some]), list(lungs[some] > 0), ct.spacing, one, lambda fraction: None)
        counts.append((np.count_nonzero(whole), np.count_nonzero(slices)))
    usual, strict = counts
    assert 0 < strict[0] < usual[0] and 0 < strict[1] < usual[1]


def test_merging_leaves_the_two_classes_of_experts_where_the_lesions_are(chest: Chest, rarer_models: Models) -> None:
    four, two = (segment(chest, rarer_models, merge=merge) for merge in (False, True))
    assert (four.labels[chest.right] == COMBINED).all()
    assert set(np.unique(two.labels)) <= {0, 1, 2}
    np.testing.assert_array_equal(two.labels > 0, four.labels > 0)


def test_progress_never_goes_back_and_ends(chest: Chest, models: Models) -> None:
    seen: list[float] = []
    segment_lesions(chest.ct, chest.lungs, models, seen.append)
    assert seen == sorted(seen) and 0.85 < seen[-1] <= 1


# Lone slices


def test_a_lone_slice_s_lesions_reach_out_as_the_volume_s_do(chest: Chest, found: Lesions, models: Models) -> None:
    k = chest.shape[0] // 2
    [lungs], [labels] = slice_lesions(
        [chest.ct.voxels[k]], [chest.lungs[k] > 0], chest.ct.spacing, models, lambda fraction: None
    )
    assert (labels[(chest.right | chest.left)[k]] == CONSOLIDATION).all()
    assert not labels[~lungs].any() and not lungs[chest.apart[k]].any()
    assert (lungs & (chest.lungs[k] == 0)).sum() > 100
    assert ((labels > 0) != (found.labels[k] > 0)).sum() < 0.2 * (labels > 0).sum()


def test_a_slice_s_probabilities_lie_on_its_working_grid(chest: Chest, models: Models) -> None:
    pair = list(chest.ct.voxels[9:11])
    slices = list(slice_probabilities(pair, chest.ct.spacing, models))
    assert len(slices) == 2
    for hu, one in zip(pair, slices, strict=True):
        np.testing.assert_array_equal(one.slice.voxels[0], hu)
        assert one.unet.shape == (4, *one.grid.count) and one.tissue.shape == (1, *one.grid.count)
        assert one.grid.count[0] == 1
        for values in (one.unet.sum(0), one.tissue[0]):
            assert values.min() >= 0 and values.max() <= 1 + 1e-5 and np.ptp(values) > 0.9


def test_equal_slices_go_through_2ds_together_and_keep_their_order(
    chest: Chest, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [chest.ct.voxels[k % chest.shape[0]] for k in range(SLICES_AT_ONCE + 2)]
    slices = [*whole, whole[0][:-2], whole[0]]
    alone = [one for hu in slices for one in slice_probabilities([hu], chest.ct.spacing, models)]
    together, forward = list[int](), UNet2D.forward

    def counted(self: UNet2D, x: torch.Tensor) -> torch.Tensor:
        together.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(UNet2D, "forward", counted)
    found = list(slice_probabilities(slices, chest.ct.spacing, models))
    assert together == [SLICES_AT_ONCE, 2, 1, 1]
    together.clear()
    large = [np.kron(whole[0], np.ones((8, 8), np.int16))] * 3  # so large that memory would not do for all
    assert len(list(slice_probabilities(large, chest.ct.spacing, models))) == 3 and together == [1, 1, 1]
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_array_equal(one.slice.voxels, other.slice.voxels)
        np.testing.assert_allclose(one.tissue, other.tissue, atol=1e-5)


def by_hand(kinds: dict[int, np.ndarray], pathological: np.ndarray) -> SliceProbabilities:
    """A slice on its own pixels whose networks are sure: numbers of classes, each with its pixels (J, I)."""
    classes = np.zeros((4, 1, *pathological.shape), np.float32)
    for number, where in kinds.items():
        classes[number - 1, 0][where] = 0.9
    ct = Volume(np.zeros((1, *pathological.shape), np.int16), (1.0, 1.0, 1.0))
    grid = WorkingGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), ct.shape)
    return SliceProbabilities(ct, grid, classes, pathological[None, None].astype(np.float32), "both")


def test_rules_of_a_lone_slice() -> None:
    lungs, piece, apart = LUNG[0], box((0, 1), (10, 18), (16, 26))[0], box((0, 1), (10, 18), (30, 36))[0]
    paving, combined = piece & (np.arange(SHAPE[2]) < 20), piece & (np.arange(SHAPE[2]) >= 20)
    one = by_hand({CRAZY_PAVING: paving, COMBINED: combined | apart}, piece | apart)
    reached, labels = one.lesions(lungs, 0.5)
    np.testing.assert_array_equal(reached, lungs | piece)
    np.testing.assert_array_equal(labels, paving * CRAZY_PAVING + combined * COMBINED)
    _, merged = one.lesions(lungs, 0.5, merge=True)
    np.testing.assert_array_equal(merged, piece)  # neither is denser: ground-glass opacity


@pytest.mark.parametrize("edge", range(40, 46))
def test_no_seam_parts_the_lungs_from_what_reaches_out(edge: int) -> None:
    """Wherever the lungs' fine edge lies in a pixel of the working grid, on lone slices and CTs alike."""
    shape, spacing, step = (6, 80, 120), (2.0, 0.7, 0.7), (3.0, 1.75, 1.75)
    lungs, piece = np.zeros(shape, bool), np.zeros(shape, bool)
    lungs[:, 10:70, 10:edge] = True
    piece[:, 25:55, edge - 15 : edge + 25] = True

    flat = Volume(np.zeros((1, *shape[1:]), np.int16), (0.7, 0.7, 2.0))
    plane = WorkingGrid.covering((0, 0, 0), (2.0, 56.0, 84.0), (2.0, *step[1:]))
    tissue = to_grid(piece[:1].astype(np.float32), flat.spacing[::-1], plane)[None]
    one = SliceProbabilities(flat, plane, np.zeros((4, *plane.count), np.float32), tissue, "involvement")
    reached, labels = one.lesions(lungs[0], 0.4)
    assert reached[30:50, 20 : edge + 22].all() and labels[30:50, edge - 12 : edge + 22].all()

    grid = WorkingGrid.covering((0, 0, 0), (12.0, 56.0, 84.0), step)
    inside, whole = (_labels_at(mask.astype(np.uint8), spacing, grid) for mask in (lungs, piece))
    widened = widened_lungs(lungs.astype(np.uint8), inside, (whole > 0) & (inside == 0), grid, spacing)
    assert widened[:, 30:50, 20 : edge + 22].all()
    assert not widened[:, :20, edge:].any()


@pytest.mark.parametrize(("threshold", "seen"), [(0.4, True), (0.5, False)])
def test_a_lone_slice_s_mask_is_where_the_mean_of_both_networks_passes(threshold: float, seen: bool) -> None:
    piece = box((0, 1), (10, 18), (8, 16))[0]
    one = by_hand({CONSOLIDATION: piece}, np.zeros(piece.shape))  # the mean is 0.45
    reached, labels = one.lesions(LUNG[0], threshold)
    np.testing.assert_array_equal(labels, piece * CONSOLIDATION if seen else np.zeros_like(labels))
    np.testing.assert_array_equal(reached, LUNG[0])


def test_the_two_classes_of_experts() -> None:
    labels = np.array([0, 1, 1, 2, 2, 3, 3, 4, 4], np.uint8)
    denser = np.array([True, True, False, True, False, True, False, True, False])
    np.testing.assert_array_equal(two_classes(labels, denser), [0, 2, 1, 2, 1, 2, 1, 2, 1])


def test_little_memory_changes_no_finding(chest: Chest, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many parts the U-Net sees; 2DS needs a slice at a time."""
    whole = segment(chest, models, source="lesions")
    monkeypatch.setattr("CovidCTDiagnosisLib.pipeline.tiles.free_memory", lambda device: 5 * 10**6)
    in_parts = segment(chest, models, source="lesions")
    assert whole.labels.any()
    np.testing.assert_allclose(in_parts.mask, whole.mask, atol=2e-3)  # half precision
    np.testing.assert_allclose(in_parts.classes, whole.classes, atol=2e-3)
