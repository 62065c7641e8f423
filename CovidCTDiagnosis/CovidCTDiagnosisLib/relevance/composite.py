"""The paper's composite: which rule at which layer, from the score down to the pixels (section 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..networks import VolumeClassifier
from .gates import GATES, Gate
from .ledger import Ledger, LedgerEntry, total
from .placed import Placed
from .rules import (
    LRP0,
    ZB,
    AlphaBeta,
    FrozenNetVLAD,
    PassThrough,
    Rule,
    WinnerTakeAllPool,
    WinnerTakeAllPyramid,
)

Target = Literal["covid", "not-covid", "difference"]
GateName = Literal["gradient-times-input", "half-and-half", "winner-take-all"]

TARGETS: dict[str, tuple[float, float]] = {
    "covid": (0.0, 1.0),
    "not-covid": (1.0, 0.0),
    "difference": (-1.0, 1.0),
}
"""What each target takes of the scores [not COVID-19, COVID-19]."""
TARGET: Target = "covid"
GATE: GateName = "gradient-times-input"
ALPHA, BETA = 2.0, -1.0
"""What is usual."""

FORWARD_COST, BACKWARD_COST = 1, 3
"""Convolutions per convolution: the way up; the way down (magnitudes, and two ways for relevance)."""

KEPT_MB = 512
"""Activations (10^6 bytes) that are kept from the way up; slices beyond that go up a second time."""


@dataclass(frozen=True)
class Explanation:
    """Relevance for one score of one volume.

    Attributes:
        ct, lesions: signed relevance of the pixels of each input, (S, 1, H, W), zero outside the lungs.
        score: the explained score, before softmax and calibration.
        scores: [not COVID-19, COVID-19], (2,).
        ledger: one entry per layer, from the scores down. Over all entries,
            score = ct.sum() + lesions.sum() + sum(bias) + sum(stabiliser) - sum(created).
    """

    ct: Tensor
    lesions: Tensor
    score: float
    scores: Tensor
    ledger: list[LedgerEntry]


class _Step(NamedTuple):
    name: str
    layer: nn.Module
    rule: Rule


class _Trace:
    """Layers in a row: computed upwards once, keeping what their rules want, then propagated downwards."""

    def __init__(self, steps: Sequence[_Step], x: Tensor) -> None:
        self._steps = steps
        self._kept: list[Any] = []
        for step in steps:
            x, kept = step.rule.forward(step.layer, x)
            self._kept.append(kept)
        self.output = x

    @property
    def size(self) -> int:
        """Bytes of what is kept; what two layers share counts twice."""
        return sum(_bytes(kept) for kept in (self.output, *self._kept))

    def propagate(self, relevance: Placed, ledger: Ledger) -> Placed:
        """From the relevance of the output to that of the input."""
        incoming = total(relevance.values)
        for step in reversed(self._steps):
            passed, *absorbed = step.rule.backward(step.layer, self._kept.pop(), relevance)
            outgoing = incoming if passed is relevance else total(passed.values)
            relevance = passed
            ledger.book(step.name, incoming, outgoing, *absorbed)
            incoming = outgoing
        return relevance


@torch.no_grad()
def explain(
    classifier: VolumeClassifier,
    ct: Tensor,
    lesions: Tensor,
    inside: Tensor,
    *,
    target: Target = TARGET,
    gate: GateName = GATE,
    alpha: float = ALPHA,
    beta: float = BETA,
    chunk: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Explanation:
    """Propagate a score's relevance to the pixels of both inputs (composite LRP, Montavon et al. 2019).

    LRP-0 at the linear layers; NetVLAD a linear map, assignments and norms frozen; winner-take-all at pyramid
    and max pooling; gradient x input at the gate; alpha-beta at the convolutions; zB at the first of each
    branch, with bounds 0 and 1 inside the lungs, 0 and 0 outside, so that no relevance leaves the lungs.
    Every rule is linear in the relevance: the maps of "difference" are those of "covid" less "not-covid".

    NetVLAD's assignments want all slices, so all go up before the first comes down, chunk by chunk. Activations are
    kept up to ``KEPT_MB``; chunks beyond that go up again before they come down. So memory stays flat, and the whole
    costs four to five times the forward pass.

    Args:
        classifier: left as it is; its mode and gradients do not matter.
        ct, lesions: as for ``VolumeClassifier``, (S, 1, H, W), within [0, 1] and zero outside the lungs.
        inside: 1 where a pixel has any lung, else 0, of the same shape.
        target: the COVID-19 score, the other one, or their difference.
        gate: how the product of the branches shares its relevance, see ``gates``.
        alpha, beta: of the alpha-beta rule, alpha + beta = 1.
        chunk: slices at a time.
        progress: called with work done and planned, in units of one slice's forward pass.

    Raises:
        ValueError: for an unknown name, shapes that differ, inputs outside their bounds, alpha + beta != 1.
    """
    if target not in TARGETS:
        raise ValueError(f"target {target!r} is none of {', '.join(TARGETS)}")
    if gate not in GATES:
        raise ValueError(f"gate {gate!r} is none of {', '.join(GATES)}")
    _check_inputs(ct, lesions, inside)
    rule = AlphaBeta(alpha, beta)
    ledger = Ledger()
    work = _Work(progress, (FORWARD_COST + BACKWARD_COST) * len(ct))

    def climb(part: slice) -> _Climb:
        return _Climb(classifier, ct[part], lesions[part], inside[part], rule)

    parts = [slice(start, start + chunk) for start in range(0, len(ct), chunk)]
    climbs: dict[int, _Climb] = {}
    pooled, room = [], KEPT_MB * 10**6
    for number, part in enumerate(parts):
        found = climb(part)
        pooled.append(found.pooled)
        room -= found.size
        if room > 0:
            climbs[number] = found
        work.done(FORWARD_COST * len(pooled[-1]))

    head = _Trace(_head(classifier), torch.cat(pooled))
    start = head.output * head.output.new_tensor(TARGETS[target])
    relevance = head.propagate(Placed(start), ledger).maps

    ct_relevance, lesion_relevance = torch.zeros_like(ct), torch.zeros_like(lesions)
    for number, part in enumerate(parts):
        found = climbs.pop(number) if number in climbs else climb(part)
        ct_relevance[part], lesion_relevance[part] = found.descend(relevance[part], GATES[gate], ledger)
        work.done(BACKWARD_COST * len(relevance[part]))
    return Explanation(ct_relevance, lesion_relevance, total(start), head.output, ledger.entries)


def _head(classifier: VolumeClassifier) -> list[_Step]:
    """From pooled features of all slices (S, D) to the scores (2,)."""
    linear, activation = classifier.slice_network
    return [
        _Step("slice_network.0", linear, LRP0()),
        _Step("slice_network.1", activation, PassThrough()),
        _Step("aggregate", classifier.aggregate, FrozenNetVLAD()),
        _Step("classify", classifier.classify, LRP0()),
    ]


def _branch(name: str, branch: nn.Sequential, first: Rule, convolution: Rule) -> list[_Step]:
    """From an input's pixels (S, 1, H, W) to its features."""
    rules: dict[type[nn.Module], Rule] = {
        nn.Conv2d: convolution,
        nn.MaxPool2d: WinnerTakeAllPool(),
        nn.ReLU: PassThrough(),
        nn.LeakyReLU: PassThrough(),
    }
    return [
        _Step(f"encoder.{name}.{index}", layer, rules[type(layer)] if index else first)
        for index, layer in enumerate(branch)
    ]


class _Climb:
    """Some slices on their way up to pooled features (S, D), and their relevance down to the two inputs."""

    def __init__(
        self, classifier: VolumeClassifier, ct: Tensor, lesions: Tensor, inside: Tensor, convolution: Rule
    ) -> None:
        encoder = classifier.encoder
        pixels = ZB(low=torch.zeros_like(ct), high=inside.to(ct))
        self._ct = _Trace(_branch("ct_branch", encoder.ct_branch, pixels, convolution), ct)
        self._lesions = None
        features = self._ct.output
        if encoder.lesion_branch is not None:
            self._lesions = _Trace(_branch("lesion_branch", encoder.lesion_branch, pixels, convolution), lesions)
            features = features * self._lesions.output
        self._top = _Trace(
            [
                _Step("encoder.relu", encoder.relu, PassThrough()),
                _Step("pyramid", classifier.pyramid, WinnerTakeAllPyramid()),
            ],
            features,
        )

    @property
    def pooled(self) -> Tensor:
        """Features (S, D)."""
        return self._top.output

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(trace.size for trace in (self._ct, self._lesions, self._top) if trace)

    def descend(self, relevance: Tensor, gate: Gate, ledger: Ledger) -> tuple[Tensor, Tensor]:
        """From the relevance of the pooled features to that of the CT and of the lesion mask, (S, 1, H, W) each."""
        placed = self._top.propagate(Placed(relevance), ledger)
        if self._lesions is None:
            by_ct = self._ct.propagate(placed, ledger).maps
            return by_ct, torch.zeros_like(by_ct)
        ct, lesions = placed.take(self._ct.output), placed.take(self._lesions.output)
        to_ct, to_lesions = gate.split(ct, lesions, placed.values)
        incoming, outgoing = total(placed.values), total(to_ct) + total(to_lesions)
        ledger.book("encoder.gate", incoming, outgoing, created=(gate.paid - 1) * incoming)
        down = ((self._ct, to_ct), (self._lesions, to_lesions))
        by_ct, by_lesions = (trace.propagate(replace(placed, values=part), ledger).maps for trace, part in down)
        return by_ct, by_lesions


def _bytes(kept: Any) -> int:
    """Of the tensors in what a rule keeps."""
    if isinstance(kept, Tensor):
        return kept.nbytes
    return sum(map(_bytes, kept)) if isinstance(kept, tuple | list) else 0


def _check_inputs(ct: Tensor, lesions: Tensor, inside: Tensor) -> None:
    if not ct.shape == lesions.shape == inside.shape or ct.dim() != 4 or ct.shape[1] != 1:
        shapes = ", ".join(str(tuple(x.shape)) for x in (ct, lesions, inside))
        raise ValueError(f"ct, lesions and inside must have one shape (S, 1, H, W), not {shapes}")
    if ((inside != 0) & (inside != 1)).any():
        raise ValueError("inside must be 0 or 1")
    for name, x in (("ct", ct), ("lesions", lesions)):
        if not ((x >= -1e-3) & (x <= 1 + 1e-3)).all():
            raise ValueError(f"{name} must lie within [0, 1]")
        if x[inside == 0].any():
            raise ValueError(f"{name} must be zero outside the lungs")


class _Work:
    """Counts work for a progress callback."""

    def __init__(self, report: Callable[[int, int], None] | None, planned: int) -> None:
        self._report = report or (lambda done, planned: None)
        self._planned = planned
        self._done = 0

    def done(self, amount: int) -> None:
        """Report more work done."""
        self._done += amount
        self._report(self._done, self._planned)
