"""What the user chose in the panel, kept in the scene."""

from __future__ import annotations

import pathlib
from typing import Annotated

from slicer import vtkMRMLLabelMapVolumeNode, vtkMRMLScalarVolumeNode
from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper

CT, LESIONS = "CT", "Lesion mask"


@parameterNodeWrapper
class PanelParameters:
    """Saved and restored with the scene.

    Attributes:
        inputVolume: the CT.
        lungMask: lungs of the user's own, or None.
        showLesions, lesionOpacity: the label layer.
        showRelevance, relevanceOpacity: the foreground layer.
        branch: whose relevance is shown.
        signed: show what speaks against COVID-19 too.
        smoothingMm: standard deviation of the Gaussian for display, mm; 0 shows the file as it is.
        percentile: of the positive relevance, where the colours end.
        bundle: folder with weights; the current folder (nothing chosen) stands for those shipped.
        device: where to compute.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    lungMask: vtkMRMLLabelMapVolumeNode
    showLesions: bool = True
    lesionOpacity: Annotated[float, WithinRange(0, 1)] = 0.6
    showRelevance: bool = True
    relevanceOpacity: Annotated[float, WithinRange(0, 1)] = 0.6
    branch: Annotated[str, Choice([CT, LESIONS])] = CT
    signed: bool = False
    smoothingMm: Annotated[float, WithinRange(0, 10)] = 3.0
    percentile: Annotated[float, WithinRange(90, 100)] = 99.5
    bundle: pathlib.Path = pathlib.Path()
    device: Annotated[str, Choice(["auto", "cpu", "cuda"])] = "auto"
