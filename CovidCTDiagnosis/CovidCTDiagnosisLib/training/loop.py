"""The training loop: Lightning runs it; it resumes after a kill and keeps an average of the weights."""

from __future__ import annotations

import gc
import logging
import math
import pickle
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..errors import Cancelled, InputError
from ..folders import replaced_file

Draw = Callable[[np.random.Generator], Any]

STEPS_PER_EPOCH = 50
VALIDATION_LOSS = "check_loss"
"""Its name in files, which runs that were stopped go on from."""
VALIDATION_BATCHES = 10
BEST, LAST, SPARE = "best.safetensors", "last.ckpt", "checkpoint.ckpt"
PATIENCE = 8
"""Epochs without improvement on what is kept for early stopping."""

WORKERS = 1 if sys.platform == "linux" else 0
"""Batches are drawn beside the training where a process can fork."""


class Steps(NamedTuple):
    """Optimiser steps of a training: on what is plentiful first (0: there is no such stage), then on everything."""

    pretraining: int
    learning: int


@dataclass(frozen=True)
class Hardware:
    """What Lightning trains on.

    Attributes:
        devices: ``auto`` takes all graphics cards of this machine, or the processor.
        nodes: machines; each must run the command in an environment that Lightning knows (SLURM, torchrun).
        precision: Lightning's name; None is mixed precision on a graphics card and single on a processor.
    """

    devices: int | Literal["auto"] = "auto"
    nodes: int = 1
    precision: str | None = None

    def for_volumes(self) -> Hardware:
        """The same for 3-D networks: on a processor with AMX, torch 2.13 crashes in their bfloat16 convolutions."""
        if self.precision in (None, "32-true") or torch.cuda.is_available():
            return self  # Lightning takes bf16-mixed for 16-mixed on a processor
        print("3-D networks are trained in single precision on a processor.")
        return replace(self, precision=None)

    def trainer_arguments(self) -> dict[str, Any]:
        """For ``lightning.Trainer``; several processes on processors are meant for tests."""
        cuda = torch.cuda.is_available()
        devices = 1 if self.devices == "auto" and not cuda else self.devices
        precision = self.precision or ("16-mixed" if cuda else "32-true")
        accelerator = "cuda" if cuda else "cpu"
        return {"accelerator": accelerator, "devices": devices, "num_nodes": self.nodes, "precision": precision}


class DrawnBatches(Dataset):
    """Random batches that depend on seed, process and step alone: a resumed run draws what it would have drawn."""

    def __init__(self, draw: Draw, seed: tuple[int, ...], first: int, count: int) -> None:
        self.draw, self.seed, self.first, self.count = draw, seed, first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.draw(np.random.default_rng([*self.seed, self.first + index]))


class Recipe(lightning.LightningModule):
    """A network, where its batches come from, and its loss.

    Args:
        network: to be trained.
        draw: one random batch of tensors.
        loss: of the network and one batch.
        steps: optimiser steps in all.
        learning_rate, weight_decay: of AdamW; one-cycle schedule.
        constant_rate: Adam without a schedule, and no average of the weights.
        seed: of everything random.
        validation: what is kept for early stopping: all its batches, or one random batch of it (the same few are drawn
            every time); None to train all steps.

    Attributes:
        freeze_from: step from which the statistics of batch normalisations stay as they are.
    """

    def __init__(
        self,
        network: nn.Module,
        draw: Draw,
        loss: Callable[[nn.Module, Any], Tensor],
        *,
        steps: int,
        learning_rate: float,
        weight_decay: float = 1e-4,
        constant_rate: bool = False,
        seed: int = 0,
        validation: Draw | Sequence[Any] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.draw, self.loss, self.validation = network, draw, loss, validation
        self.steps, self.seed = steps, seed
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.constant_rate = constant_rate
        self.freeze_from = steps // 2
        self._validation_losses: list[Tensor] = []

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Fine-tune: start from these weights and keep their normalisation statistics."""
        self.network.load_state_dict(weights)
        self.freeze_from = 0

    def train_dataloader(self) -> DataLoader:
        """A new epoch of batches; each of several processes draws its own."""
        batches = DrawnBatches(self.draw, (self.seed, self.global_rank), self.global_step, STEPS_PER_EPOCH)
        return DataLoader(batches, batch_size=None, num_workers=WORKERS)

    def val_dataloader(self) -> DataLoader | list[Any]:
        """The same batches every time, or none."""
        if self.validation is None:
            return []
        return DataLoader(self._validation_batches(), batch_size=None)

    def _validation_batches(self) -> Any:
        """A sequence of batches."""
        if callable(self.validation):
            return DrawnBatches(self.validation, (self.seed, 1), 0, VALIDATION_BATCHES)
        return self.validation

    @torch.inference_mode()
    def validation_loss(self) -> float:
        """Mean loss on what is kept for early stopping, of the network as it is."""
        batches = self._validation_batches()
        return float(np.mean([float(self.loss(self.network, batches[n])) for n in range(len(batches))]))

    def on_train_epoch_start(self) -> None:
        """Freeze the statistics of batch normalisations, halfway unless it is a fine-tuning.

        Batches differ (whole chests, patches, slices); what comes after learns with the fixed statistics that
        inference will use.
        """
        if self.global_step >= self.freeze_from:
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                    module.eval()

    def training_step(self, batch: Any, _: int) -> Tensor:
        """One step; logs the loss.

        What is random in network and loss depends on seed, process and step alone, as the batches do.
        """
        with torch.random.fork_rng(devices=[]):
            step = np.random.SeedSequence([self.seed, self.global_rank, self.global_step])
            torch.manual_seed(int(step.generate_state(1)[0]))
            loss = self.loss(self.network, batch)
        self.log("loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=1)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        """Logs the loss of what is kept for early stopping, and keeps the weights that have done best there.

        Here, as the averaged weights are in place only while batches are checked.
        """
        loss = self.loss(self.network, batch)
        self.log(VALIDATION_LOSS, loss, prog_bar=True, batch_size=1, sync_dist=True)
        self._validation_losses = [*(self._validation_losses if index else []), loss.detach()]
        if index == len(self._validation_batches()) - 1:
            mean = self.trainer.strategy.reduce(torch.stack(self._validation_losses).mean(), reduce_op="mean")
            if self.trainer.is_global_zero:
                keep_best(self.network, float(mean), Path(self.trainer.default_root_dir) / BEST)

    def configure_optimizers(self) -> Any:
        """AdamW with a one-cycle learning rate, or plain Adam."""
        if self.constant_rate:
            return torch.optim.Adam(self.network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=self.steps + 1, pct_start=0.1
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


Network = TypeVar("Network", bound=nn.Module)


def seeded(seed: int, make: Callable[[], Network]) -> Network:
    """A network whose first weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def keep_best(network: nn.Module, loss: float, path: Path) -> None:
    """Write the weights with their loss, unless those that lie there have a loss no greater, or it is no number."""
    if not math.isfinite(loss):
        return
    if path.exists():
        with safe_open(path, "pt") as file:
            if float(file.metadata()[VALIDATION_LOSS]) <= loss:
                return
    _write(network, path, {VALIDATION_LOSS: repr(loss)})


def _write(network: nn.Module, path: Path, facts: dict[str, str] | None = None) -> None:
    with replaced_file(path) as partial:
        save_file({k: v.cpu().contiguous() for k, v in network.state_dict().items()}, partial, facts)


def fit(recipe: Recipe, run: Path, hardware: Hardware | None = None) -> nn.Module:
    """Train, checkpointing to ``run`` after every epoch of 50 steps; a second call goes on from there.

    With several devices Lightning runs this program once for each; see ``is_helper``.

    Returns:
        The network in evaluation mode, on the CPU, with its averaged (or last) weights; those that did best on what is
        kept for early stopping, where there is any.

    Raises:
        Cancelled: training was interrupted; the run folder holds what is needed to go on.
        InputError: the run folder's checkpoint cannot be read.
    """
    finished = run / f"averaged-{recipe.steps}.safetensors"
    latest = None if finished.exists() else _latest_checkpoint(run)
    if latest and _has_stopped(_read_checkpoint(latest)):
        # Killed before this was written. Every process writes the same.
        recipe.network.load_state_dict(load_file(run / BEST))
        _write(recipe.network, finished)
    elif not finished.exists():
        trainer = _train(recipe, run, hardware or Hardware())
        if trainer.is_global_zero:
            if recipe.validation is not None:
                # The last steps may be less than an epoch, and were not checked yet.
                keep_best(recipe.network.cpu().eval(), recipe.validation_loss(), run / BEST)
            if (run / BEST).exists():
                recipe.network.load_state_dict(load_file(run / BEST))
            _write(recipe.network, finished)
        trainer.strategy.barrier()
    recipe.network.load_state_dict(load_file(finished))
    return recipe.network.cpu().eval()


def fit_in_stages(
    first: Recipe, second: Recipe, first_run: Path, second_run: Path, hardware: Hardware | None = None
) -> nn.Module:
    """``fit`` one recipe, then another on the same network that starts where the first ended."""
    second.start_from(fit(first, first_run, hardware).state_dict())
    return fit(second, second_run, hardware)


def is_helper() -> bool:
    """Whether this process only helps another one to train, and must write no results."""
    return getattr(rank_zero_only, "rank", 0) != 0


def _train(recipe: Recipe, run: Path, hardware: Hardware) -> lightning.Trainer:
    # Trainer and recipe of an earlier training hold each other, and a hundred megabytes: an ablation runs 35.
    gc.collect()
    warnings.filterwarnings("ignore", module="lightning")
    # What it tells otherwise is about cards that are not there, and cloud services.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    lightning.seed_everything(recipe.seed, verbose=False)
    run.mkdir(parents=True, exist_ok=True)
    stop = [] if recipe.validation is None else [EarlyStopping(VALIDATION_LOSS, patience=PATIENCE, strict=False)]
    average = [] if recipe.constant_rate else [EMAWeightAveraging(decay=0.99)]
    trainer = lightning.Trainer(
        max_steps=recipe.steps,
        max_epochs=-1,
        **hardware.trainer_arguments(),
        use_distributed_sampler=False,
        default_root_dir=run,
        logger=CSVLogger(run, name="log", version=0),
        callbacks=[
            # Without counted names, as a run folder that was moved would never get past its first checkpoint.
            ModelCheckpoint(
                run, filename=Path(SPARE).stem, save_last=True, every_n_epochs=1, enable_version_counter=False
            ),
            RichProgressBar(),
            *average,
            *stop,
        ],
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        reload_dataloaders_every_n_epochs=1,
        enable_model_summary=False,
    )
    try:
        trainer.fit(recipe, ckpt_path=_latest_checkpoint(run), weights_only=True)
    except SystemExit:
        raise Cancelled() from None
    if trainer.interrupted:
        raise Cancelled()
    for callback in average:
        # Lightning leaves it out where a run that goes on has no steps left.
        callback.on_train_end(trainer, recipe)
    return trainer


def _latest_checkpoint(run: Path) -> Path | None:
    """The last checkpoint that is whole; None where there is none yet.

    Lightning writes the spare one first and moves each into place, which from another disk is no single step: a kill
    may damage one of them.

    Raises:
        InputError: none can be read.
    """
    there = [path for path in (run / LAST, run / SPARE) if path.exists()]
    for path in there:
        try:
            _read_checkpoint(path)
        except InputError:
            if path == there[-1]:
                raise
        else:
            return path
    return None


def _read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds: numbers and no code.

    Not to be kept: Windows cannot replace a file that is mapped.

    Raises:
        InputError: it is damaged, or something else.
    """
    try:
        found: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(
            f"The checkpoint {checkpoint} cannot be read.",
            "Delete the folder's .ckpt files; the training then starts at its first step.",
        ) from error
    return found


def _has_stopped(checkpoint: dict[str, Any]) -> bool:
    """Whether early stopping had ended the run: Lightning would train on, as it does not keep that."""
    callbacks = checkpoint.get("callbacks", {})
    return any(
        state["wait_count"] >= state["patience"]
        for name, state in callbacks.items()
        if name.startswith("EarlyStopping")
    )
