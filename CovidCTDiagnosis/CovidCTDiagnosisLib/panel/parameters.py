"""What the user chose in the panel, kept in the scene."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any, Union

from slicer import vtkMRMLLabelMapVolumeNode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper

from CovidCTDiagnosisLib.scene.heatmap import HeatmapView

CT, LESIONS = "CT", "Lesion mask"
EXPLAINED = {"COVID-19": "covid", "not COVID-19": "not-covid", "the difference of both": "difference"}
"""What heatmaps can explain, and what the command line calls it."""


_OF_COMPUTER = ("bundle", "device", "keepFiles", "wheels")
"""Choices that a new scene takes over, as they are of the hospital and its computer, not of a patient."""


def computer_choices(parameters: PanelParameters) -> dict[str, str]:
    """What was chosen for this computer, as texts."""
    return {name: str(getattr(parameters, name)) for name in _OF_COMPUTER}


_OF_DISPLAY = (
    "showLesions",
    "lesionOpacity",
    "showRelevance",
    "relevanceOpacity",
    "branch",
    "signed",
    "smoothingMm",
    "hiddenPercentile",
    "percentile",
    "showLegend",
    "showSurfaces",
)
"""Choices that say how a study is shown."""


def display_choices(parameters: PanelParameters) -> dict[str, Any]:
    """How a study is to be shown."""
    return {name: getattr(parameters, name) for name in _OF_DISPLAY}


def note_choices(choices: dict[str, str], settings: Any) -> None:
    """Keep choices for this computer in Slicer's settings (``value`` and ``setValue``)."""
    for name, value in choices.items():
        settings.setValue(f"CovidCTDiagnosis/{name}", value)


def recall_choices(parameters: PanelParameters, settings: Any) -> None:
    """Make them those of a new scene."""
    for name in _OF_COMPUTER:
        value = settings.value(f"CovidCTDiagnosis/{name}")
        if value:
            setattr(parameters, name, value if name == "device" else pathlib.Path(value))


def chosen_path(path: pathlib.Path) -> pathlib.Path | None:
    """A path that the user chose, seen from where Slicer runs, or None."""
    return None if path == pathlib.Path() else path.absolute()


@parameterNodeWrapper
class PanelParameters:
    """Saved and restored with the scene.

    Attributes:
        inputVolume: the CT.
        lungMask: lungs of the user's own, a segmentation or label map, or None.
        showLesions, lesionOpacity: the label layer.
        showRelevance, relevanceOpacity: the foreground layer.
        branch: whose relevance is shown.
        signed: show what speaks against the explained score too.
        smoothingMm: standard deviation of the Gaussian for display, mm; 0 shows the file as it is.
        hiddenPercentile, percentile: of the relevance of the whole scan, where the colours begin and end.
        showLegend: the scale of the colours in the views.
        showSurfaces: lungs and lesions in 3-D.
        bundle: folder or zip file with weights; the current folder (nothing chosen) stands for those shipped.
        device: where to compute.
        explain: whose score the heatmaps of the next analysis show.
        keepFiles: folder in which the study of the next analysis is kept; the current folder stands for none.
        wheels: folder with Python packages, for a computer without internet; the current folder stands for none.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    lungMask: Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode, None]  # noqa: UP007 - Slicer knows this form
    showLesions: bool = True
    lesionOpacity: Annotated[float, WithinRange(0, 1)] = 0.6
    showRelevance: bool = True
    relevanceOpacity: Annotated[float, WithinRange(0, 1)] = 0.6
    branch: Annotated[str, Choice([CT, LESIONS])] = CT
    signed: bool = False
    smoothingMm: Annotated[float, WithinRange(0, 10)] = HeatmapView.smoothing_mm
    hiddenPercentile: Annotated[float, WithinRange(0, 100)] = HeatmapView.hidden_percentile
    percentile: Annotated[float, WithinRange(90, 100)] = HeatmapView.end_percentile
    showLegend: bool = True
    showSurfaces: bool = True
    bundle: pathlib.Path = pathlib.Path()
    device: Annotated[str, Choice(["auto", "cpu", "cuda"])] = "auto"
    explain: Annotated[str, Choice([*EXPLAINED])] = "COVID-19"
    keepFiles: pathlib.Path = pathlib.Path()
    wheels: pathlib.Path = pathlib.Path()
