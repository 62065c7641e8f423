"""The training loop: batches depend on their number alone, so a killed run goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.errors import InputError
from CovidCTDiagnosisLib.training import loop
from CovidCTDiagnosisLib.training.loop import DrawnBatches, Hardware, Recipe, fit
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

TRUTH = torch.tensor([[1.5, -2.0, 0.5]])


class Killed(Exception):
    """Stands for the machine going down."""


def draw(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(rng.standard_normal((16, 3), np.float32))
    return x, x @ TRUTH.t()


def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(network(batch[0]), batch[1])


class Watched(Recipe):
    """Notes what it sees, and dies before a certain step."""

    def __init__(self, dies_at: int | None = None, steps: int = 12) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(3, 1), draw, loss, steps=steps, learning_rate=0.5, seed=7)
        self.dies_at = dies_at
        self.seen: dict[int, float] = {}

    def training_step(self, batch: Any, number: int) -> Tensor:
        if self.global_step == self.dies_at:
            raise Killed
        self.seen[self.global_step] = batch[0].sum().item()
        return super().training_step(batch, number)


@pytest.fixture(autouse=True)
def _short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STEPS_PER_EPOCH", 4)


def test_batches_depend_on_seed_and_place_in_the_run_alone() -> None:
    def sums(seed: int, place: int) -> list[float]:
        batches = DrawnBatches(draw, (seed, 0), place, 4)
        return [batches[n][0].sum().item() for n in reversed(range(len(batches)))]

    assert sums(1, 0) == sums(1, 0)
    different = {*sums(1, 0), *sums(1, 100), *sums(2, 0)}
    assert len(different) == 3 * 4


def test_a_killed_run_goes_on_where_it_was_and_ends_the_same(tmp_path: Path) -> None:
    straight = Watched()
    expected = fit(straight, tmp_path / "straight")
    assert sorted(straight.seen) == list(range(12))
    assert len(set(straight.seen.values())) == 12  # every step its own batch

    killed = Watched(dies_at=6)
    with pytest.raises(Killed):
        fit(killed, tmp_path / "killed")
    resumed = Watched()
    found = fit(resumed, tmp_path / "killed")
    assert sorted(resumed.seen) == list(range(4, 12))  # from the end of the first epoch
    assert {**killed.seen, **resumed.seen} == pytest.approx(straight.seen)
    assert resumed.trainer.global_step == straight.trainer.global_step == 12
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, atol=1e-6, rtol=1e-5)


class Drawing(nn.Linear):
    """Draws in its forward pass, as a CVAE does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn_like(x) * 0.1)


def test_what_a_network_draws_itself_is_the_same_after_a_kill(tmp_path: Path) -> None:
    def watched(dies_at: int | None = None) -> Watched:
        recipe = Watched(dies_at=dies_at)
        weights = recipe.network.state_dict()
        recipe.network = Drawing(recipe.network.in_features, recipe.network.out_features)
        recipe.network.load_state_dict(weights)
        return recipe

    expected = fit(watched(), tmp_path / "straight")
    with pytest.raises(Killed):
        fit(watched(dies_at=6), tmp_path / "killed")
    torch.randn(7)
    found = fit(watched(), tmp_path / "killed")
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, atol=1e-6, rtol=1e-5)


def test_a_run_folder_that_was_moved_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    """However often it is killed there."""
    with pytest.raises(Killed):
        fit(Watched(dies_at=6), tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "moved")
    for dies_at, begins in ((10, 4), (None, 8)):
        run = Watched(dies_at=dies_at)
        with contextlib.suppress(Killed):
            fit(run, tmp_path / "moved")
        assert min(run.seen) == begins
    assert [p.name for p in (tmp_path / "moved").glob("last*")] == ["last.ckpt"]


def test_a_checkpoint_that_a_kill_cut_off_costs_nothing(tmp_path: Path) -> None:
    """Lightning keeps two, and moves one after the other into place."""
    with pytest.raises(Killed):
        fit(Watched(dies_at=6), tmp_path)
    last = tmp_path / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    run = Watched()
    fit(run, tmp_path)
    assert min(run.seen) == 4


class Hostile:
    """Pickled, it writes a file where it is read as a pickle."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("hostile", [True, False])
def test_a_checkpoint_that_is_none_runs_no_code_and_is_named(tmp_path: Path, hostile: bool) -> None:
    checkpoint, written = tmp_path / "run" / "last.ckpt", tmp_path / "written"
    checkpoint.parent.mkdir()
    if hostile:
        torch.save({"state_dict": Hostile(written)}, checkpoint)
    else:
        checkpoint.write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"last\.ckpt cannot be read.*Delete the folder"):
        fit(Watched(), checkpoint.parent)
    assert not written.exists()
    if hostile:
        torch.load(checkpoint, weights_only=False)
        assert written.exists(), "the test would see nothing"


QUIET = """
from pathlib import Path
import torch
from torch import nn
from CovidCTDiagnosisLib.training.loop import Recipe, fit
recipe = Recipe(nn.Linear(3, 1), lambda rng: torch.ones(1, 3), lambda network, x: network(x).sum(), steps=2,
                learning_rate=0.1, seed=7)
fit(recipe, Path("run"))
"""


def test_nothing_is_told_of_cloud_services(tmp_path: Path) -> None:
    call = [sys.executable, "-c", QUIET]
    done = subprocess.run(call, capture_output=True, text=True, check=True, cwd=tmp_path)
    told = done.stdout + done.stderr
    assert "Epoch" in told
    assert "http" not in told and "GPU" not in told


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = fit(Watched(steps=4), tmp_path / "run")
    again = Watched(steps=4)
    for name, value in fit(again, tmp_path / "run").state_dict().items():
        assert torch.equal(value, first.state_dict()[name])
    assert not again.seen


def test_an_earlier_training_is_not_kept_in_memory(tmp_path: Path) -> None:
    gc.disable()  # it would come by itself at last, after some hundred megabytes
    try:
        recipe = Watched(steps=4)
        fit(recipe, tmp_path / "first")
        earlier = weakref.ref(recipe)
        del recipe
        assert earlier() is not None  # held by Lightning's trainer
        fit(Watched(steps=4), tmp_path / "second")
        assert earlier() is None
    finally:
        gc.enable()


def test_a_run_stopped_after_its_last_step_ends_with_the_averaged_weights(tmp_path: Path) -> None:
    expected = fit(Watched(steps=8), tmp_path / "run")
    (tmp_path / "run" / "averaged-8.safetensors").unlink()
    again = Watched(steps=8)
    for name, value in fit(again, tmp_path / "run").state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])
    assert not again.seen


def test_training_learns_and_gives_a_network_for_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STEPS_PER_EPOCH", 60)
    recipe = Watched(steps=120)
    before = [p.detach().clone() for p in recipe.network.parameters()]
    network = fit(recipe, tmp_path / "run")
    assert not network.training and next(network.parameters()).device.type == "cpu"
    batch = draw(np.random.default_rng(99))
    with torch.inference_mode():
        assert loss(network, batch) < 0.1 * F.mse_loss(F.linear(batch[0], *before), batch[1])


def test_early_stopping_ends_a_run_that_no_longer_gets_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PATIENCE", 2)

    def noise(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(rng.standard_normal((16, 3), np.float32)), torch.zeros(16, 1)

    recipe = Recipe(nn.Linear(3, 1), draw, loss, steps=400, learning_rate=0.5, seed=1, validation=noise)
    fit(recipe, tmp_path / "stopped")
    assert 12 <= recipe.trainer.global_step < 400  # what is checked gets worse from the first epoch on
    watched = Recipe(nn.Linear(3, 1), draw, loss, steps=40, learning_rate=0.5, seed=1, validation=draw)
    fit(watched, tmp_path / "all")
    assert watched.trainer.global_step == 40


def test_a_kill_after_early_stopping_trains_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PATIENCE", 2)
    trained: list[int] = []

    class Counted(Recipe):
        def training_step(self, batch: Any, number: int) -> Tensor:
            trained.append(number)
            return super().training_step(batch, number)

    def run() -> dict[str, Tensor]:
        torch.manual_seed(0)
        recipe = Counted(nn.Linear(3, 1), draw, loss, steps=400, learning_rate=0.5, seed=1, validation=noise)
        return fit(recipe, tmp_path).state_dict()

    def noise(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(rng.standard_normal((16, 3), np.float32)), torch.zeros(16, 1)

    expected, steps = run(), len(trained)
    assert steps < 400
    (tmp_path / "averaged-400.safetensors").unlink()
    found = run()
    assert len(trained) == steps
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_batches_that_are_kept_are_all_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STEPS_PER_EPOCH", 5)
    kept = [(torch.full((1, 3), float(n)), torch.zeros(1, 1)) for n in range(3)]
    seen: list[float] = []

    class Observed(Recipe):
        def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
            seen.append(float(batch[0][0, 0]))
            super().validation_step(batch, index)

    recipe = Observed(
        nn.Linear(3, 1), draw, loss, steps=10, learning_rate=0.1, seed=1, constant_rate=True, validation=kept
    )
    network = fit(recipe, tmp_path)
    assert seen == [0.0, 1.0, 2.0] * 2
    with safe_open(tmp_path / loop.BEST, "pt") as file:
        best = float(file.metadata()[loop.VALIDATION_LOSS])
    with torch.inference_mode():
        assert best == pytest.approx(np.mean([float(loss(network, batch)) for batch in kept]), rel=1e-5)


@pytest.mark.parametrize("averaged", [False, True])
def test_early_stopping_gives_the_weights_that_did_best(
    averaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is checked is best at zero weights, from which training leads away."""
    monkeypatch.setattr(loop, "PATIENCE", 3)
    monkeypatch.setattr(loop, "STEPS_PER_EPOCH", 5)

    def zero(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(rng.standard_normal((16, 3), np.float32)), torch.zeros(16, 1)

    def checked(network: nn.Module) -> float:
        losses = [float(loss(network, zero(np.random.default_rng([1, 1, n])))) for n in range(loop.VALIDATION_BATCHES)]
        return float(np.mean(losses))

    seen: list[float] = []

    class Observed(Recipe):
        def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
            if index == 0:
                seen.append(checked(self.network))
            super().validation_step(batch, index)

    def recipe(steps: int) -> Observed:
        return Observed(
            nn.Linear(3, 1),
            draw,
            loss,
            steps=steps,
            learning_rate=0.1,
            seed=1,
            constant_rate=not averaged,
            validation=zero,
        )

    network = fit(recipe(62), tmp_path / "run")  # the last two steps are no epoch
    assert len(seen) > 3 and seen[-1] > min(seen)
    with torch.inference_mode():
        assert checked(network) == pytest.approx(min(seen))
    for other in (min(seen) + 1, float("nan")):
        loop.keep_best(nn.Linear(3, 1), other, tmp_path / "run" / loop.BEST)
    resumed = fit(recipe(63), tmp_path / "run")
    with torch.inference_mode():
        assert checked(resumed) <= min(seen) + 1e-6  # a resumed run remembers


def test_volumes_are_trained_in_single_precision_on_a_processor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Hardware(precision="bf16-mixed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert wanted.for_volumes().trainer_arguments()["precision"] == "32-true"
    assert "single precision" in capsys.readouterr().out
    assert Hardware(precision="16-mixed").for_volumes().precision is None  # bf16-mixed in disguise
    assert Hardware(precision="32-true").for_volumes().precision == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert wanted.for_volumes() is wanted


def test_fewer_steps_than_an_epoch_are_checked_too(tmp_path: Path) -> None:
    recipe = Recipe(nn.Linear(3, 1), draw, loss, steps=3, learning_rate=0.1, seed=1, validation=draw)
    network = fit(recipe, tmp_path / "run")
    kept = load_file(tmp_path / "run" / loop.BEST)
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
from CovidCTDiagnosisLib.training.loop import Hardware, Recipe, fit, is_helper
from torch import nn

def draw(rng):
    return torch.from_numpy(rng.standard_normal((4, 3), "float32"))

for name in ("first", "second"):  # a training of two stages
    recipe = Recipe(nn.Linear(3, 1), draw, lambda n, x: (n(x) - 1).square().mean(), steps=6, learning_rate=0.1)
    fit(recipe, Path(sys.argv[1]) / name, Hardware(devices=2))
if not is_helper():
    print("written once")
"""


def test_several_processes_train_together_and_one_writes(tmp_path: Path) -> None:
    """Stands for several graphics cards: Lightning starts the processes and keeps their weights alike."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "runs"],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written once") == 1
    assert {p.parent.name for p in (tmp_path / "runs").glob("*/averaged-6.safetensors")} == {"first", "second"}
