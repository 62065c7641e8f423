"""Layer-wise relevance propagation through the volume classifier (paper section 4.3); torch alone.

>>> explanation = explain(classifier, ct, lesions, inside)
>>> explanation.ct.sum() + explanation.lesions.sum()  # the score, less what the ledger names
"""

from .composite import Explanation, explain
from .gates import GATES, GradientTimesInputGate, HalfAndHalfGate, WinnerTakeAllGate
from .ledger import Ledger, LedgerEntry
from .placed import Placed
from .rules import (
    LRP0,
    ZB,
    AlphaBeta,
    FrozenNetVLAD,
    Passed,
    PassThrough,
    Rule,
    WinnerTakeAllPool,
    WinnerTakeAllPyramid,
)

__all__ = [
    "GATES",
    "LRP0",
    "ZB",
    "AlphaBeta",
    "Explanation",
    "FrozenNetVLAD",
    "GradientTimesInputGate",
    "HalfAndHalfGate",
    "Ledger",
    "LedgerEntry",
    "PassThrough",
    "Passed",
    "Placed",
    "Rule",
    "WinnerTakeAllGate",
    "WinnerTakeAllPool",
    "WinnerTakeAllPyramid",
    "explain",
]
