"""The package zennit as a peer of ``relevance``: the same rules by its own composite, for tests and benchmarks."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..networks import VolumeClassifier


def import_zennit() -> Any:
    """The package, without its part for torchvision, which would want that installed.

    Raises:
        UsageError: it is not installed.
    """
    sys.modules.setdefault("zennit.torchvision", ModuleType("zennit.torchvision"))
    try:
        import zennit
        import zennit.composites
        import zennit.rules
        import zennit.types
    except ImportError as error:
        raise UsageError("The package zennit is not installed.", "pip install --no-deps zennit") from error
    return zennit


def zennit_maps(classifier: VolumeClassifier, ct: Tensor, lesions: Tensor) -> tuple[Tensor, Tensor]:
    """What a user of zennit gets for the COVID-19 score with the paper's rules, both maps (S, 1, H, W).

    It has no rule for the gate and for NetVLAD and takes their gradients, so the maps differ; the work is the same.
    """
    zennit = import_zennit()
    rules = zennit.rules
    pixels = rules.ZBox(low=0.0, high=1.0)
    composite = zennit.composites.NameLayerMapComposite(
        name_map=[(["encoder.ct_branch.0", "encoder.lesion_branch.0"], pixels)],
        layer_map=[
            (nn.Linear, rules.Epsilon()),
            (nn.Conv2d, rules.AlphaBeta(alpha=2, beta=1)),
            (zennit.types.Activation, rules.Pass()),
        ],
    )
    with composite.context(classifier) as modified:
        inputs = [x.clone().requires_grad_() for x in (ct, lesions)]
        # Not the leaves themselves: torch's counter of operations cannot watch those.
        scores = modified(*(x.view_as(x) for x in inputs))
        by_ct, by_lesions = torch.autograd.grad(scores, inputs, scores.detach() * torch.tensor([0.0, 1.0]))
    return by_ct, by_lesions
