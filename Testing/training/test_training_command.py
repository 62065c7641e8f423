"""`covid-ct train` from a data folder to a bundle; the folder is made up, in the form of the real one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.__main__ import main
from CovidCTDiagnosisLib.bundle import Bundle, NetworkRecord, open_bundle, revise_bundle, write_bundle
from CovidCTDiagnosisLib.ct import Volume, write_image
from CovidCTDiagnosisLib.ct.windows import LUNG_WINDOW, scale
from CovidCTDiagnosisLib.evaluation.checklist_facts import _begun, _chosen, _length
from CovidCTDiagnosisLib.networks import make_2ds
from CovidCTDiagnosisLib.pipeline.models import Models
from CovidCTDiagnosisLib.training import plans
from CovidCTDiagnosisLib.training import train as train_module
from CovidCTDiagnosisLib.training.diagnosis import SCHEMES, SHORT
from CovidCTDiagnosisLib.training.lesions import INVOLVEMENT
from CovidCTDiagnosisLib.training.loop import Hardware, Steps
from CovidCTDiagnosisLib.training.lung_labels import label_lungs
from CovidCTDiagnosisLib.training.plans import Job
from CovidCTDiagnosisLib.training.record import PAPER
from PIL import Image


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8).T).save(path)  # the real files lie on their side


@pytest.fixture
def data(chest_phantom: Callable[..., Volume], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A few slices of the phantom with a square lesion, and the phantom in the places of the whole CTs."""
    chest = chest_phantom(spacing=(3.0, 3.0, 5.0))
    folder = tmp_path / "data"
    for number in range(1, 5):
        grey = 255 * scale(chest.voxels[28 + number], LUNG_WINDOW)
        lesion = np.zeros(grey.shape, bool)
        lesion[35:50, 25:40] = True
        grey[lesion] = 180
        save(folder / "lesion_slices" / "images" / f"{number}.png", grey)
        save(folder / "lesion_slices" / "infection" / f"{number}.png", 255 * lesion)
        save(folder / "lesion_slices" / "classes" / f"{number}.png", 2 * lesion)
        save(folder / "covid_volumes" / "radiopaedia_1" / f"{number:03}.jpg", grey)
        save(folder / "covid_volumes" / "radiopaedia_1" / f"{number:03}_machine_mask.png", 255 * lesion)
    write_image(chest, tmp_path / "chest.nii.gz")
    (folder / "lungs").mkdir()
    lungs = label_lungs(chest.voxels, chest.spacing[::-1]).astype(np.uint8)
    for name, volume in (("ct-64", chest), ("TestInput", chest), ("wholeLung-64", chest.with_voxels(lungs))):
        write_image(volume, folder / "lungs" / f"{name}.nrrd")
    monkeypatch.setattr(plans, "fetch_sample", lambda name: tmp_path / "chest.nii.gz")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    yield folder


def test_training_makes_a_bundle_that_opens_and_runs(data: Path, tmp_path: Path) -> None:
    bundle_folder = tmp_path / "bundles" / "mine"
    arguments = ["train", "involvement", "--data", data, "--output", bundle_folder, "--steps", "2", "--seed", "5"]
    assert main([str(a) for a in arguments]) == 0
    bundle = open_bundle(bundle_folder)
    assert set(bundle.networks) == {"involvement"}
    facts = bundle.networks["involvement"]["training"]
    assert (facts["steps"], facts["seed"]) == ([2, 2], 5) and "planted" in facts["sources"]
    network = Models(bundle, torch.device("cpu")).network("involvement")
    assert len(network.members) == 2
    with torch.inference_mode():
        assert network(torch.rand(1, 1, 40, 40)).isfinite().all()
    text = json.dumps(bundle.networks["involvement"])
    assert str(tmp_path) not in text  # nothing of this machine is written into the bundle


def test_a_network_trained_again_is_named_in_version_and_model_card(data: Path, tmp_path: Path) -> None:
    folder, versions = tmp_path / "mine", []
    for seed in (1, 2, 3):
        arguments = ["train", "involvement", "--data", data, "--output", folder, "--steps", "1", "--seed", seed]
        assert main([str(a) for a in arguments]) == 0
        versions.append(open_bundle(folder).version)
    assert versions == ["0.1.0", "0.1.0+retrained", "0.1.0+retrained"]
    card = open_bundle(folder).model_card
    assert card.count("- `involvement`, on: expert lesion slices") == 1 and "## Trained again" in card


def test_what_was_replaced_while_a_training_ran_is_told_and_nothing_gets_lost(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two trainings begin one bundle: the first to end puts lungs alone into it, the second builds on others."""
    base = open_bundle(tiny_bundle)
    output = tmp_path / "begun"
    job = Job("classifier", tmp_path, base, tmp_path, tmp_path, Steps(0, 1), 0, False, Hardware(), SHORT)
    lungs = train_module._record(base, "lungs")
    other = replace(lungs, weights={key: value + 1 for key, value in lungs.weights.items()})
    write_bundle(
        output,
        name="begun",
        version="0.1.0",
        networks={"lungs": other},
        settings={},
        model_card="# New",
        license_text="Own",
    )
    train_module._put(output, job, {"classifier": train_module._record(base, "classifier")}, None)
    cvae = NetworkRecord({}, {}, {"weight": torch.zeros(1)})  # to build on
    job = replace(job, base=revise_bundle(tiny_bundle, tmp_path / "base", networks={"cvae": cvae}))
    revise_bundle(output, output, networks={"cvae": cvae})
    train_module._tell_what_was_replaced_meanwhile(output, job)
    assert "Replaced in the bundle while this ran: lungs. Train classifier again." in capsys.readouterr().out
    found = open_bundle(output)
    assert found.networks.keys() == {*base.networks, "cvae"}
    assert found.fingerprint(("lungs",)) != base.fingerprint(("lungs",))
    assert found.fingerprint(("involvement",)) == base.fingerprint(("involvement",))


def test_what_learned_beside_another_u_net_is_stale_only_if_that_draws(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_module._tell_what_is_stale(tiny_bundle, "lesions")
    assert "classifier learned beside another lesions" in capsys.readouterr().out
    draws = NetworkRecord(INVOLVEMENT, {"step_mm": [3, 2, 2]}, make_2ds(**INVOLVEMENT).state_dict(), {})
    bundle = revise_bundle(tiny_bundle, tmp_path / "other", networks={"involvement": draws}).folder
    train_module._tell_what_is_stale(bundle, "lesions")
    assert not capsys.readouterr().out  # 2DS draws the masks alone
    train_module._tell_what_is_stale(bundle, "involvement")
    assert "classifier learned beside another involvement" in capsys.readouterr().out


@pytest.mark.parametrize(("network", "first"), [("cvae", "lungs"), ("classifier", "lungs")])
def test_a_network_that_builds_on_others_names_what_to_train_first(
    network: str, first: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / "begun"
    write_bundle(
        begun, name="begun", version="0.1.0", networks={}, settings={}, model_card="# begun\n", license_text="None.\n"
    )
    for base in (["--output", str(begun)], ["--output", str(tmp_path / "none"), "--bundle", str(begun)]):
        assert main(["train", network, "--data", str(data), *base]) == 2
        told = capsys.readouterr().err
        assert f"covid-ct train {first}" in told and f"The bundle {begun} has no {first}" in told


def test_without_a_bundle_the_shipped_one_gives_what_is_built_on(tmp_path: Path) -> None:
    shipped = open_bundle()
    for wanted in (plans.built_on("classifier", False), plans.built_on("lungs", True)):
        base = train_module._base(tmp_path / "none", None, wanted)
        assert base is not None and base.folder == shipped.folder
    assert train_module._base(tmp_path / "none", None, plans.built_on("lungs", False)) is None


def test_a_missing_data_folder_is_an_input_error(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "lungs", "--data", str(tmp_path / "none"), "--output", str(tmp_path / "b")]) == 3
    err = capsys.readouterr().err
    assert "--data" in err and "Traceback" not in err


def test_a_folder_that_is_there_may_become_a_bundle_unless_it_holds_something_else(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    call = ["train", "involvement", "--data", str(data), "--steps", "1", "--output"]
    assert main([*call, str(folder)]) == 0 and set(open_bundle(folder).networks) == {"involvement"}
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text.txt").touch()
    (tmp_path / "file").touch()
    for name, says in (("notes", "is not empty and is not a bundle"), ("file", "is a file, not a folder")):
        assert main([*call, str(tmp_path / name)]) == 2 and says in capsys.readouterr().err
        assert not (tmp_path / f"{name}-runs").exists()  # told before anything is trained


@pytest.mark.parametrize(
    ("option", "value"),
    [("steps", "0"), ("steps", "-5"), ("devices", "0"), ("nodes", "0"), ("seed", "-1")],
)
def test_numbers_that_train_nothing_are_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    call = ["train", "lungs", "--data", str(tmp_path / "none"), "--output", str(tmp_path / "mine"), f"--{option}"]
    assert main([*call, value]) == 2
    assert f"--{option} must be at least" in capsys.readouterr().err and not (tmp_path / "mine").exists()


@pytest.mark.parametrize("scheme", [SHORT, PAPER])
def test_a_cvae_keeps_its_prior_where_it_is_fine_tuned(tmp_path: Path, scheme: str) -> None:
    tuned = job(tmp_path, open_bundle(), scheme, "cvae")
    assert tuned.learning_scheme.prior == tuned.architecture["prior"] == "label"
    assert replace(tuned, fine_tune=False).architecture["prior"] == SCHEMES[scheme].prior


def test_how_long_a_network_was_fine_tuned_is_recorded(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    call = ["train", "involvement", "--data", str(data), "--output", str(folder), "--steps"]
    assert main([*call, "2"]) == 0
    first = open_bundle(folder).networks["involvement"]["training"]
    assert main([*call, "1", "--fine-tune"]) == 0
    facts = open_bundle(folder).networks["involvement"]["training"]
    assert (facts["steps"], facts["fine_tuned"], facts["early_stopping"]) == ([2, 2], True, False)
    assert facts["fine_tuned_steps"] == 1
    assert facts["sources"] == f"{first['sources']}; then {plans.PLANS['involvement'].sources}"
    assert _length(facts) == "2 + 2 steps, then 1 more"


def job(tmp_path: Path, base: Bundle, scheme: str = SHORT, network: str = "classifier") -> plans.Job:
    return plans.Job(network, tmp_path, base, tmp_path, tmp_path, Steps(0, 5), 0, True, Hardware(), scheme)


def told_of(tmp_path: Path, base: Bundle, training: dict[str, Any], *schemes: str) -> tuple[str, str, str]:
    """What the checklist says of a classifier with this record after it was fine-tuned by these recipes."""
    for scheme in schemes:
        facts = {**base.networks["classifier"], "training": training}
        base = replace(base, networks={**base.networks, "cvae": facts, "classifier": facts})
        training = train_module._training(job(tmp_path, base, scheme))
    return _begun("classifier", training), _length(training), _chosen("classifier", training)


def test_what_fine_tuning_began_with_is_told_as_far_as_it_is_known(tiny_bundle: Path, tmp_path: Path) -> None:
    base, first = open_bundle(tiny_bundle), {"sources": "series", "recipe": "short", "steps": [0, 300]}
    encoder, before = "the CVAE's encoder, the rest random", "those of the bundle before"
    averaged = "averaged weights after a fixed number of steps"
    assert told_of(tmp_path, base, first, SHORT) == (encoder, "300 steps, then 5 more", averaged)
    assert told_of(tmp_path, base, first, SHORT, SHORT)[1] == "300 steps, then 10 more"
    found = told_of(tmp_path, base, first, PAPER)
    assert found == (encoder, "300 steps, then 200 more epochs", "the last weights")
    paper = {"sources": "series", "recipe": PAPER, "epochs": 200}
    assert told_of(tmp_path, base, paper, SHORT) == (encoder, "200 epochs, then 5 more steps", averaged)
    # Bundles that say too little.
    older = {"sources": "own data", "steps": [0, 1400], "fine_tuned": True}
    for unknown in ({}, older):
        assert told_of(tmp_path, base, unknown, SHORT)[:2] == (before, "5 steps")
        assert told_of(tmp_path, base, unknown, SHORT, SHORT)[:2] == (before, "5 steps")


def test_a_training_belongs_to_what_it_began_with(
    data: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preparing the data may take hours, in which somebody edits them or trains the bundle on."""
    folder = revise_bundle(tiny_bundle, tmp_path / "mine", networks={}).folder
    given = job(data, open_bundle(folder), network="lungs")
    run, weights = given.run, given.bundle.weights("lungs")

    def change_all(changed: plans.Job) -> torch.nn.Module:
        (data / "lesion_slices" / "images" / "9.png").write_bytes(b"new")
        facts = given.bundle.networks["lungs"]
        other = {name: value + 1 for name, value in weights.items()}
        record = NetworkRecord(facts["architecture"], facts["preprocessing"], other)
        revise_bundle(folder, folder, networks={"lungs": record})
        assert changed.run == run and changed.start is not None
        assert all(torch.equal(changed.start[name], weights[name]) for name in weights)
        return torch.nn.Identity()

    monkeypatch.setitem(plans.PLANS, "lungs", replace(plans.PLANS["lungs"], train=change_all))
    job(data, given.bundle, network="lungs").train()


@pytest.mark.parametrize(
    ("fine_tune", "own", "wanted", "steps"),
    [
        (False, False, None, (700, 150)),
        (False, False, 9, (9, 9)),
        (True, False, None, (0, 150)),
        (True, False, 9, (0, 9)),
        (False, True, None, (0, 850)),
        (True, True, 9, (0, 9)),
    ],
)
def test_a_network_learns_in_two_stages_or_in_one(
    fine_tune: bool, own: bool, wanted: int | None, steps: tuple[int, int]
) -> None:
    assert train_module._chosen_steps(Steps(700, 150), wanted, fine_tune, own) == steps
    assert train_module._chosen_steps(Steps(0, 300), wanted, fine_tune, own).pretraining == 0
