"""The training loop: Lightning runs it; it resumes after a kill and keeps an average of the weights."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..errors import Cancelled

Draw = Callable[[np.random.Generator], Any]

STEPS_PER_EPOCH = 50

WORKERS = 1 if sys.platform == "linux" else 0
"""Batches are drawn beside the training where a process can fork."""


class DrawnBatches(Dataset):
    """Random batches that depend on seed and step alone: a resumed run draws what it would have drawn."""

    def __init__(self, draw: Draw, seed: int, first: int) -> None:
        self.draw, self.seed, self.first = draw, seed, first

    def __len__(self) -> int:
        return STEPS_PER_EPOCH

    def __getitem__(self, index: int) -> Any:
        return self.draw(np.random.default_rng([self.seed, self.first + index]))


class Recipe(lightning.LightningModule):
    """A network, where its batches come from, and its loss.

    Args:
        network: to be trained.
        draw: one random batch of tensors.
        loss: of the network and one batch.
        steps: optimiser steps in all.
        learning_rate, weight_decay: of AdamW; one-cycle schedule.
        seed: of everything random.

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
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.draw, self.loss = network, draw, loss
        self.steps, self.seed = steps, seed
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.freeze_from = steps // 2

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Fine-tune: start from these weights and keep their normalisation statistics."""
        self.network.load_state_dict(weights)
        self.freeze_from = 0

    def train_dataloader(self) -> DataLoader:
        """A new epoch of batches."""
        return DataLoader(DrawnBatches(self.draw, self.seed, self.global_step), batch_size=None, num_workers=WORKERS)

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
        """One step; logs the loss."""
        loss = self.loss(self.network, batch)
        self.log("loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW with a one-cycle learning rate."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=self.steps + 1, pct_start=0.1
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(recipe: Recipe, run: Path) -> nn.Module:
    """Train, checkpointing to ``run`` after every epoch of 50 steps; a second call goes on from there.

    Returns:
        The network with the averaged weights, in evaluation mode, on the CPU.

    Raises:
        Cancelled: training was interrupted; the run folder holds what is needed to go on.
    """
    finished = run / f"averaged-{recipe.steps}.safetensors"
    if not finished.exists():
        _train(recipe, run)
        partial = finished.with_suffix(".partial")
        save_file({k: v.cpu().contiguous() for k, v in recipe.network.state_dict().items()}, partial)
        partial.replace(finished)
    recipe.network.load_state_dict(load_file(finished))
    return recipe.network.cpu().eval()


def _train(recipe: Recipe, run: Path) -> None:
    warnings.filterwarnings("ignore", module="lightning")
    lightning.seed_everything(recipe.seed, verbose=False)
    run.mkdir(parents=True, exist_ok=True)
    trainer = lightning.Trainer(
        max_steps=recipe.steps,
        max_epochs=-1,
        accelerator="auto",
        devices=1,
        default_root_dir=run,
        logger=CSVLogger(run, name="log", version=0),
        callbacks=[
            ModelCheckpoint(run, filename="checkpoint", save_last=True, every_n_epochs=1),
            EMAWeightAveraging(decay=0.99),
            RichProgressBar(),
        ],
        gradient_clip_val=1.0,
        reload_dataloaders_every_n_epochs=1,
        enable_model_summary=False,
    )
    last = run / "last.ckpt"
    # Only this machine's own checkpoint is read here, never a bundle.
    try:
        trainer.fit(recipe, ckpt_path=last if last.exists() else None, weights_only=False)
    except SystemExit:
        raise Cancelled() from None
    if trainer.interrupted:
        raise Cancelled()
