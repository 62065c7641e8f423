"""The paper's networks, nothing but torch: no files, no SimpleITK, no Slicer.

Their grids are axial: k inferior to superior, j anterior to posterior, i right to left.
"""

from .classifier import NetVLAD, SpatialPyramidPooling, VolumeClassifier
from .cvae import CVAE, CVAEOutput
from .deepmedic import DeepMedic
from .efficientnet import EfficientNetLite0
from .encoder import GatedEncoder, convolution_branch
from .novelty import Novelty
from .unet2d import UNet2D, UNet2DEnsemble, make_2ds
from .unet3d import COMBINED, CONSOLIDATION, CRAZY_PAVING, GROUND_GLASS, LESION_CLASSES, UNet3D

__all__ = [
    "COMBINED",
    "CONSOLIDATION",
    "CRAZY_PAVING",
    "CVAE",
    "GROUND_GLASS",
    "LESION_CLASSES",
    "CVAEOutput",
    "DeepMedic",
    "EfficientNetLite0",
    "GatedEncoder",
    "NetVLAD",
    "Novelty",
    "SpatialPyramidPooling",
    "UNet2D",
    "UNet2DEnsemble",
    "UNet3D",
    "VolumeClassifier",
    "convolution_branch",
    "make_2ds",
]
