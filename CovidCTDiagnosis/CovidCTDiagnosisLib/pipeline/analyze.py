"""The main job: a chest CT in, findings on its own grid out."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import __version__
from ..bundle import Bundle
from ..ct import Volume, check_chest_ct, digest, from_axial, to_axial
from .compute import choose_device, describe_device
from .diagnosis import Diagnosis, classifier_input, diagnose
from .explanation import TARGET, Relevance, Target, describe_relevance, explain_diagnosis
from .given_lungs import take_lungs
from .lesion_mask import LesionSource
from .lesions import segment_lesions, usual_source
from .lungmask_engine import require_lungmask, segment_with_lungmask
from .lungs import segment_lungs
from .measurements import measure
from .memory import memory_errors, peak_memory_mb
from .models import Models
from .monitor import Monitor

SCHEMA_VERSION = "1.0"

LungEngine = Literal["network", "lungmask"]


@dataclass(frozen=True)
class Analysis:
    """Everything found in one CT.

    Attributes:
        images: ``lungs``, ``lesions`` (uint8), ``relevance_ct``, ``relevance_lesions`` (float32), each on the
            CT's own grid.
        document: the content of analysis.json (without the time that writing takes).
        probabilities: not written; each on its network's working grid around the lungs (axial, half or single
            precision). ``lung``, unless the lungs were given or another engine found them; ``lesion``, whose threshold
            draws the mask; and each lesion class by name, together that of lesion.
    """

    images: dict[str, Volume]
    document: dict[str, Any]
    probabilities: dict[str, Volume]


def analyze(
    ct: Volume,
    bundle: Bundle,
    *,
    name: str,
    device: str = "auto",
    lesion_source: LesionSource | None = None,
    lungs: Volume | None = None,
    lung_engine: LungEngine = "network",
    lungmask_weights: Path | None = None,
    explain: Target = TARGET,
    monitor: Monitor | None = None,
) -> Analysis:
    """Lungs, lesions, diagnosis, relevance and measurements of a chest CT.

    Args:
        ct: HU, on any grid.
        bundle: the weights.
        name: what the study calls the CT: a file or folder name without the folders above it.
        device: ``auto``, ``cpu`` or ``cuda``.
        lesion_source: which network draws the lesion mask: ``both``, ``lesions`` or ``involvement``; None is the
            bundle's usual one.
        lungs: a ready mask to use instead of segmenting the lungs (see ``take_lungs``).
        lung_engine: who segments them otherwise: the bundle's ``network`` or the package ``lungmask``.
        lungmask_weights: a local file for the latter (see ``segment_with_lungmask``).
        explain: which score relevance is propagated from: ``covid``, ``not-covid`` or ``difference``.
        monitor: gets progress and warnings, may cancel.

    Raises:
        UsageError: the package ``lungmask`` is asked for and missing, or its weights cannot be used.
        InputError: this is no chest CT that can be analysed, or ``lungs`` are not its lungs.
        BundleError: the bundle lacks a network.
        ResourceError: out of memory.
        Cancelled: the monitor was asked to stop.
    """
    monitor = monitor or Monitor()
    models = Models(bundle, choose_device(device))
    models.require("lesions", "involvement", "classifier")
    lung_source = _LungSource(lungs, lung_engine, lungmask_weights)
    lung_source.require(models)
    with memory_errors(
        "There is not enough memory to analyze this CT.", "Close other programs or use a larger machine."
    ):
        return _analyze(ct, models, name, lesion_source, lung_source, explain, monitor)


@dataclass(frozen=True)
class _LungSource:
    """Where the lungs come from; see ``analyze``."""

    mask: Volume | None
    engine: LungEngine
    weights: Path | None

    def require(self, models: Models) -> None:
        """Fail before the work starts where a part is missing."""
        if self.mask is None and self.engine == "network":
            models.require("lungs")
        elif self.mask is None:
            require_lungmask()

    def lungs(self, ct: Volume, axial: Volume, models: Models, monitor: Monitor) -> _FoundLungs:
        """Sided lungs on the axial grid, and what the study says of their origin."""
        if self.mask is not None:
            origin = {"source": "mask", "sha256": digest(self.mask)}
            return _FoundLungs(take_lungs(self.mask, ct, monitor.warn), origin)
        if self.engine == "lungmask":
            lungs, weights = models.on_card_or_cpu(
                lambda m: segment_with_lungmask(axial, self.weights, m.device, monitor.report), monitor.warn
            )
            return _FoundLungs(lungs, {"source": "lungmask", **weights})
        found = models.on_card_or_cpu(lambda m: segment_lungs(axial, m, monitor.report, monitor.warn), monitor.warn)
        return _FoundLungs(found.labels, {"source": "network"}, found.probabilities(axial))


@dataclass(frozen=True)
class _FoundLungs:
    """Sided lungs on the axial grid, what the study says of their origin, and probabilities where a network tells."""

    labels: np.ndarray
    origin: dict[str, Any]
    probabilities: dict[str, Volume] = field(default_factory=dict)


@dataclass(frozen=True)
class _Findings:
    """What the stages have found, on the axial grid.

    Attributes:
        axial: the CT, HU.
        lungs: uint8, with the lesions that reach out of them.
        lungs_origin: what the study says of where they come from.
        lesions: uint8.
        diagnosis: of the classifier.
        relevance: maps of both inputs.
        probabilities: see ``Analysis``.
    """

    axial: Volume
    lungs: np.ndarray
    lungs_origin: dict[str, Any]
    lesions: np.ndarray
    diagnosis: Diagnosis
    relevance: Relevance
    probabilities: dict[str, Volume]


def _analyze(
    ct: Volume,
    models: Models,
    name: str,
    lesion_source: LesionSource | None,
    lung_source: _LungSource,
    explain: Target,
    monitor: Monitor,
) -> Analysis:
    found = _find(ct, models, lesion_source, lung_source, explain, monitor)
    images = _images(found, ct)
    settings = {
        "lesion_source": lesion_source or usual_source(models),
        "lungs": found.lungs_origin,
        **{f"{n}_preprocessing": models.preprocessing(n) for n in models.bundle.networks},
    }
    document = {
        "schema_version": SCHEMA_VERSION,
        "input": _describe_input(ct, name),
        "bundle": {
            "name": models.bundle.name,
            "version": models.bundle.version,
            "files": models.bundle.sha256,
        },
        "device": describe_device(models.device),
        "versions": _versions(),
        "timings_s": dict(monitor.timings_s),
        "peak_memory_mb": peak_memory_mb(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "diagnosis": _describe_diagnosis(found.diagnosis),
        "relevance": describe_relevance(found.relevance, ct, images),
        "measurements": measure(found.axial.voxels, found.lungs, found.lesions, ct.voxel_ml),
        "settings": settings,
        "warnings": list(monitor.warnings),
    }
    return Analysis(images, document, found.probabilities)


def _find(
    ct: Volume,
    models: Models,
    lesion_source: LesionSource | None,
    lung_source: _LungSource,
    explain: Target,
    monitor: Monitor,
) -> _Findings:
    """The stages, one after the other."""
    for warning in check_chest_ct(ct):
        monitor.warn(warning)
    axial = to_axial(ct)
    with monitor.stage("lungs", "Segmenting the lungs"):
        found_lungs = lung_source.lungs(ct, axial, models, monitor)
    with monitor.stage("lesions", "Segmenting lesions"):
        widen, labels = lung_source.mask is None, found_lungs.labels
        found = models.on_card_or_cpu(
            lambda m: segment_lesions(axial, labels, m, monitor.report, lesion_source, widen=widen, warn=monitor.warn),
            monitor.warn,
        )
        lungs, lesions = found.lungs, found.labels
    with monitor.stage("diagnosis", "Computing the COVID-19 probability"):
        settings = models.preprocessing("classifier")
        inputs = classifier_input(
            axial,
            lungs,
            lesions,
            slice_mm=settings["slice_mm"],
            longest_side=settings["longest_side"],
        )
        diagnosis = models.on_card_or_cpu(lambda m: diagnose(inputs, m, monitor.report), monitor.warn)
        for warning in diagnosis.warnings:
            monitor.warn(warning)
    with monitor.stage("relevance", "Explaining the probability"):
        relevance = models.on_card_or_cpu(
            lambda m: explain_diagnosis(inputs, axial, lungs, lesions, m, monitor.report, explain), monitor.warn
        )
    probabilities = found_lungs.probabilities | found.probabilities(axial)
    return _Findings(axial, lungs, found_lungs.origin, lesions, diagnosis, relevance, probabilities)


def _images(found: _Findings, ct: Volume) -> dict[str, Volume]:
    """Masks and heatmaps on the CT's own grid; the heatmaps are taken out of what was found."""

    def own(voxels: np.ndarray) -> Volume:
        return ct.with_voxels(np.ascontiguousarray(from_axial(voxels, ct)))

    return {
        "lungs": own(found.lungs),
        "lesions": own(found.lesions),
        # Taken out one by one: of a large CT the axial and its own order do not fit into memory side by side.
        **{f"relevance_{name}": own(found.relevance.maps.pop(name)) for name in ("ct", "lesions")},
    }


def _describe_input(ct: Volume, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "size": list(ct.shape[::-1]),
        "spacing_mm": [float(s) for s in ct.spacing],
        "origin_mm": [float(o) for o in ct.origin],
        "direction": [float(d) for row in ct.direction for d in row],
        "sha256": digest(ct),
    }


def _describe_diagnosis(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "probability": diagnosis.probability,
        "threshold": diagnosis.threshold,
        "label": diagnosis.label,
        "score": diagnosis.scores[1],
        "scores": list(diagnosis.scores),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "covid-ct-diagnosis": __version__}
    for package in ("torch", "numpy", "SimpleITK", "scikit-image", "scipy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
