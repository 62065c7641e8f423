"""A whole analysis of a chest phantom with known lesions, by networks whose weights are written by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.bundle import Bundle, NetworkRecord, revise_bundle, write_bundle
from CovidCTDiagnosisLib.ct import Volume, check_chest_ct, to_axial
from CovidCTDiagnosisLib.errors import BundleError, Cancelled, ResourceError
from CovidCTDiagnosisLib.networks import Novelty
from CovidCTDiagnosisLib.pipeline import Analysis, Event, Monitor, analyze
from CovidCTDiagnosisLib.pipeline.diagnosis import classifier_input
from CovidCTDiagnosisLib.pipeline.explanation import Target
from CovidCTDiagnosisLib.pipeline.lesions import Lesions
from CovidCTDiagnosisLib.pipeline.measurements import measure
from CovidCTDiagnosisLib.pipeline.models import Models
from CovidCTDiagnosisLib.relevance import explain
from CovidCTDiagnosisLib.study import read_study, write_study
from scipy import ndimage

CONSOLIDATION, GROUND_GLASS = 2, 1


def rotation(degrees: float) -> np.ndarray:
    """About the left-right axis, as a patient tilts; then a little about the long axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def as_rows(direction: np.ndarray) -> tuple[tuple[float, float, float], ...]:
    return tuple((float(r[0]), float(r[1]), float(r[2])) for r in direction)


def lesion_row(analysis: Analysis, name: str, side: str) -> dict:
    rows = analysis.document["measurements"]["lesions"]
    return next(row for row in rows if row["class"] == name and row["side"] == side)


def check_findings(analysis: Analysis, solid: np.ndarray, glass: np.ndarray) -> None:
    """Both planted lesions are found, in the right lung and of the right class, and nothing lies outside the lungs."""
    lungs, lesions = (analysis.images[n].voxels for n in ("lungs", "lesions"))
    assert lungs.dtype == lesions.dtype == np.uint8
    assert not lesions[lungs == 0].any()
    for ball, side, kind in ((solid, 1, CONSOLIDATION), (glass, 2, GROUND_GLASS)):
        assert (lungs[ball] == side).mean() > 0.95
        assert (lesions[ball] == kind).mean() > 0.7 and (lesions[ball] > 0).mean() > 0.85
    elsewhere = (lungs > 0) & ~solid & ~glass
    assert (lesions[elsewhere] > 0).mean() < 0.05


def test_probabilities_of_the_classes_lie_where_the_lesions_do(sick_analysis: Analysis, sick) -> None:
    found = sick_analysis.probabilities
    classes = ["ground-glass opacity", "consolidation", "crazy paving", "combined pattern"]
    assert [*found] == ["lung", "lesion", *classes]
    for ball, name, other in ((sick.solid, classes[1], classes[0]), (sick.glass, *classes[:2])):
        middle = sick.ct.affine @ [*np.argwhere(ball).mean(0)[::-1], 1]
        at = {}
        for kind, volume in found.items():
            i, j, k = np.rint(np.linalg.solve(volume.affine, middle)[:3]).astype(int)
            at[kind] = float(volume.voxels[k, j, i])
        assert at["lesion"] > 0.5 and at[name] > 2 * at[other]
        assert 0 <= min(at.values()) <= max(at.values()) <= 1


def test_planted_lesions_are_found_in_their_lungs(sick_analysis: Analysis, sick) -> None:
    check_findings(sick_analysis, sick.solid, sick.glass)
    right = lesion_row(sick_analysis, "consolidation", "right")
    assert right["volume_ml"] == pytest.approx(sick.solid.sum() * sick.ct.voxel_ml, rel=0.4)
    assert lesion_row(sick_analysis, "consolidation", "left")["volume_ml"] < 0.5 * right["volume_ml"]  # vessels
    assert sick_analysis.document["measurements"]["lungs"]["both"]["volume_ml"] > 2500


def test_measurements_are_those_of_the_masks_that_are_written(
    sick, sick_analysis: Analysis, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where lesions have made lung of their own."""
    module = sys.modules[Analysis.__module__]  # the package has a function of that name
    segment = module.segment_lesions

    def widened(*given: Any, **named: Any) -> Lesions:
        found = segment(*given, **named)
        more = ndimage.binary_dilation(found.lungs == 1, iterations=2) & (found.lungs == 0)
        return replace(found, lungs=np.where(more, 1, found.lungs).astype(np.uint8))

    monkeypatch.setattr(module, "segment_lesions", widened)
    analysis = analyze(sick.ct, bundle, name="sick", device="cpu")
    lungs, lesions = (analysis.images[name].voxels for name in ("lungs", "lesions"))
    assert (lungs != sick_analysis.images["lungs"].voxels).any()
    assert analysis.document["measurements"] == measure(sick.ct.voxels, lungs, lesions, sick.ct.voxel_ml)


def test_an_oblique_flipped_volume_gets_findings_on_its_own_grid(
    sick_phantom: Callable, sick_analysis: Analysis, bundle: Bundle
) -> None:
    # i runs up, j to the right, k to the back, all of it tilted.
    direction = rotation(9) @ np.array([[0.0, -1, 0], [0, 0, 1], [1, 0, 0]])
    oblique = sick_phantom(size_mm=(320.0, 360.0, 260.0), spacing=(4.0, 3.5, 4.5), direction=as_rows(direction), seed=3)
    # The phantom scales with its grid; here the grid's axes are others, so the anatomy is not quite the same.
    analysis = analyze(oblique.ct, bundle, name="oblique", device="cpu")
    for image in analysis.images.values():
        assert image.on_same_grid(oblique.ct, tolerance_mm=1e-9)
    lungs, lesions = (analysis.images[n].voxels for n in ("lungs", "lesions"))
    assert not lesions[lungs == 0].any()
    assert (lesions[oblique.solid] == CONSOLIDATION).mean() > 0.6 and (lungs[oblique.solid] == 1).mean() > 0.9
    assert (lesions[oblique.glass] > 0).mean() > 0.6 and (lungs[oblique.glass] == 2).mean() > 0.9


@pytest.mark.parametrize(("axes", "flipped"), [((0, 1, 2), (0, 2)), ((2, 0, 1), (1,)), ((1, 2, 0), (0, 1, 2))], ids=str)
def test_the_same_voxels_in_another_order_get_the_same_findings(
    axes: tuple[int, ...], flipped: tuple[int, ...], sick, sick_analysis: Analysis, bundle: Bundle
) -> None:
    def reorder(voxels: np.ndarray) -> np.ndarray:
        return np.flip(voxels, flipped).transpose(axes)

    ct = sick.ct
    corner = np.array([ct.shape[2 - n] - 1 if 2 - n in flipped else 0 for n in range(3)], float)
    direction = np.array(ct.direction) * [-1.0 if 2 - n in flipped else 1.0 for n in range(3)]
    order = [2 - a for a in axes][::-1]  # of i, j, k
    stored = Volume(
        np.ascontiguousarray(reorder(ct.voxels)),
        tuple(ct.spacing[n] for n in order),
        tuple(ct.affine[:3] @ [*corner, 1.0]),
        as_rows(direction[:, order]),
    )
    assert to_axial(stored).on_same_grid(ct, 1e-9)
    analysis = analyze(stored, bundle, name="sick", device="cpu")
    for name, image in analysis.images.items():
        assert image.on_same_grid(stored, 1e-9)
        np.testing.assert_array_equal(image.voxels, reorder(sick_analysis.images[name].voxels))
    for part in ("measurements", "diagnosis"):
        assert analysis.document[part] == sick_analysis.document[part]
    for total in ("total_ct", "total_lesions", "score"):
        assert analysis.document["relevance"][total] == pytest.approx(sick_analysis.document["relevance"][total])


def test_relevance_files_sum_to_the_documents_totals_and_close_with_the_ledger(sick_analysis: Analysis) -> None:
    relevance = sick_analysis.document["relevance"]
    totals = []
    for name in ("ct", "lesions"):
        voxels = sick_analysis.images[f"relevance_{name}"].voxels
        assert voxels.dtype == np.float32 and voxels.any()
        totals.append(float(voxels.sum(dtype=np.float64)))
        assert totals[-1] == pytest.approx(relevance[f"total_{name}"], rel=0.01)
    ledger = relevance["ledger"]
    lost = sum(e["bias"] + e["stabiliser"] - e["created"] for e in ledger)
    largest = max(abs(e[n]) for e in ledger for n in ("in", "out", "bias", "stabiliser", "created"))
    assert relevance["score"] == pytest.approx(sum(totals) + lost, abs=1e-3 * largest)
    assert relevance["score"] == pytest.approx(sick_analysis.document["diagnosis"]["score"], rel=1e-4)
    for upper, lower in pairwise(ledger[:3]):  # the scores, NetVLAD, the slice network
        assert lower["in"] == pytest.approx(upper["out"], rel=1e-4)


@pytest.mark.parametrize("target", ["not-covid", "difference"])
def test_the_score_that_was_asked_for_is_explained(
    target: Target, sick, sick_analysis: Analysis, bundle: Bundle
) -> None:
    document = analyze(sick.ct, bundle, name="sick", device="cpu", explain=target).document
    other, covid = document["diagnosis"]["scores"]
    wanted = {"not-covid": other, "difference": covid - other}[target]
    assert document["relevance"]["target"] == target
    assert document["relevance"]["score"] == pytest.approx(wanted, rel=1e-4)
    assert document["relevance"]["total_ct"] != pytest.approx(sick_analysis.document["relevance"]["total_ct"], rel=1e-3)


def test_relevance_is_shared_back_without_loss(sick_analysis: Analysis, sick, bundle: Bundle) -> None:
    """The files hold what an explanation of the very same input gives, summed over pixels."""
    lungs, lesions = (sick_analysis.images[n].voxels for n in ("lungs", "lesions"))
    settings = bundle.networks["classifier"]["preprocessing"]
    inputs = classifier_input(sick.ct, lungs, lesions, **settings)
    network = Models(bundle, torch.device("cpu")).network("classifier")
    explanation = explain(network, inputs.ct, inputs.lesions, inputs.inside, target="covid")
    for name, expected in (("ct", explanation.ct), ("lesions", explanation.lesions)):
        voxels = sick_analysis.images[f"relevance_{name}"].voxels
        scale = expected.abs().sum().item()
        assert scale > 0
        assert voxels.sum(dtype=np.float64) == pytest.approx(expected.sum().item(), abs=1e-4 * scale)
        # It stays where it belongs, to half a voxel along each axis.
        size, spacing = np.abs(voxels.astype(np.float64)), sick.ct.spacing[::-1]
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            centres = (np.arange(voxels.shape[axis]) + 0.5) * spacing[axis]
            here = (size.sum(others) @ centres) / size.sum()
            working = inputs.grid.start[axis] + inputs.grid.step[axis] * (np.arange(inputs.grid.count[axis]) + 0.5)
            weight = expected[:, 0].abs().double().numpy()
            there = (weight.sum(others) @ working) / weight.sum()
            assert here == pytest.approx(there, abs=0.5 * spacing[axis])


def test_relevance_lies_in_the_lungs(sick_analysis: Analysis) -> None:
    lungs = sick_analysis.images["lungs"].voxels > 0
    for name in ("relevance_ct", "relevance_lesions"):
        size = np.abs(sick_analysis.images[name].voxels)
        assert size[lungs].sum() > 0.999 * size.sum()


def test_slices_are_listed_in_order_of_positive_relevance(sick_analysis: Analysis) -> None:
    slices = sick_analysis.document["relevance"]["slices"]
    summed = [s["relevance_ct"] + s["relevance_lesions"] for s in slices]
    assert summed == sorted(summed, reverse=True) and len(summed) > 10
    for name in ("relevance_ct", "relevance_lesions"):
        voxels = sick_analysis.images[name].voxels[slices[0]["index"]]
        assert np.maximum(voxels, 0).sum(dtype=float) == pytest.approx(slices[0][name], rel=1e-4, abs=1e-12)


def test_slices_are_counted_along_the_patient_whatever_axis_that_is(sick, bundle: Bundle) -> None:
    i, j, k = sick.ct.spacing
    stored = Volume(
        np.ascontiguousarray(sick.ct.voxels.transpose(1, 0, 2)),
        (i, k, j),
        sick.ct.origin,
        as_rows(np.array(sick.ct.direction)[:, [0, 2, 1]]),
    )
    assert stored.long_axis == 1
    analysis = analyze(stored, bundle, name="sick", device="cpu")
    first = analysis.document["relevance"]["slices"][0]
    for name in ("relevance_ct", "relevance_lesions"):
        plane = np.take(analysis.images[name].voxels, first["index"], 1)
        assert np.maximum(plane, 0).sum(dtype=float) == pytest.approx(first[name], rel=1e-4, abs=1e-12)


def test_the_analysis_makes_a_valid_study(sick_analysis: Analysis, tmp_path: Path) -> None:
    write_study(tmp_path / "study", sick_analysis.document, sick_analysis.images)
    study = read_study(tmp_path / "study")
    assert study.analysis == json.loads(json.dumps(sick_analysis.document))
    for name, image in sick_analysis.images.items():
        np.testing.assert_array_equal(study.image(name).voxels, image.voxels)
    assert study.analysis["warnings"] == [] and study.analysis["input"]["name"] == "sick"
    assert list(study.analysis["timings_s"]) == ["lungs", "lesions", "diagnosis", "relevance"]


@pytest.mark.parametrize("source", ["lesions", "involvement"])
def test_either_lesion_network_may_draw_the_mask_alone(
    source: str, sick, sick_analysis: Analysis, bundle: Bundle
) -> None:
    analysis = analyze(sick.ct, bundle, name="sick", device="cpu", lesion_source=source)  # type: ignore[arg-type]
    assert analysis.document["settings"]["lesion_source"] == source
    mask, both = (a.images["lesions"].voxels > 0 for a in (analysis, sick_analysis))
    assert mask[sick.solid].mean() > 0.8 and not np.array_equal(mask, both)
    np.testing.assert_array_equal(analysis.images["lungs"].voxels, sick_analysis.images["lungs"].voxels)


@pytest.mark.parametrize("stage", ["lungs", "lesions", "diagnosis", "relevance"])
def test_cancel_stops_in_any_stage(stage: str, sick, bundle: Bundle) -> None:
    events: list[Event] = []
    monitor = Monitor(emit=events.append, cancelled=lambda: bool(events) and events[-1]["stage"] == stage)
    with pytest.raises(Cancelled):
        analyze(sick.ct, bundle, name="sick", device="cpu", monitor=monitor)
    assert events[-1]["stage"] == stage
    assert stage not in monitor.timings_s


def test_what_the_scan_lacks_is_told_in_the_study(sick, bundle: Bundle) -> None:
    unknown = replace(sick.ct, orientation_known=False)
    warnings = analyze(unknown, bundle, name="sick", device="cpu").document["warnings"]
    assert warnings == check_chest_ct(unknown) and "right and left may be exchanged" in warnings[0]


def test_a_scan_unlike_the_training_data_gets_a_warning(sick, bundle: Bundle, tmp_path: Path) -> None:
    far = Novelty()
    far.whiten.mul_(100)
    record = NetworkRecord({}, {}, far.state_dict())
    knowing = revise_bundle(bundle.folder, tmp_path / "knowing", networks={"novelty": record})
    study = analyze(sick.ct, knowing, name="sick", device="cpu")
    assert sum("unlike those" in text for text in study.document["warnings"]) == 1


@pytest.mark.parametrize("stage", ["lungs", "lesions", "diagnosis", "relevance"])
def test_running_out_of_memory_in_any_stage_is_told_in_one_sentence(stage: str, sick, bundle: Bundle) -> None:
    def use_up(event: Event) -> None:
        if event.get("stage") == stage:
            torch.empty(1 << 50)

    with pytest.raises(ResourceError, match="not enough memory") as caught:
        analyze(sick.ct, bundle, name="sick", device="cpu", monitor=Monitor(emit=use_up))
    assert caught.value.code == 5 and caught.value.remedy


@pytest.fixture(params=["lesions", "involvement", "classifier"])
def bundle_without(request: pytest.FixtureRequest, bundle: Bundle, tmp_path: Path) -> Iterator[tuple[str, Bundle]]:
    """As `covid-ct train` leaves a bundle before its last step."""
    networks = {
        name: NetworkRecord(network["architecture"], network["preprocessing"], bundle.weights(name))
        for name, network in bundle.networks.items()
        if name != request.param
    }
    yield (
        request.param,
        write_bundle(
            tmp_path / "part",
            name="part",
            version="0.0.1",
            networks=networks,
            settings=bundle.settings,
            model_card="",
            license_text="",
        ),
    )


def test_a_bundle_that_lacks_a_network_is_refused(bundle_without: tuple[str, Bundle], sick) -> None:
    name, part = bundle_without
    with pytest.raises(BundleError, match=name):
        analyze(sick.ct, part, name="sick", device="cpu")
