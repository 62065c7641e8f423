"""Volume classifier: gated encoder, spatial pyramid pooling, NetVLAD (paper section 4.2.2, Figure 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .encoder import GatedEncoder


class SpatialPyramidPooling(nn.Module):
    """Max pooling over grids of bins x bins cells, for every entry of ``bins`` (He et al. 2015).

    The paper names max-pooling levels "5 x 5, 3 x 3, 2 x 2"; read as bins they suit any slice size.

    Shapes: (S, C, H, W) to (S, C * sum(b * b for b in bins)); level by level, in each level channel first.
    """

    def __init__(self, bins: Sequence[int] = (5, 3, 2)) -> None:
        super().__init__()
        self.bins = tuple(bins)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([F.adaptive_max_pool2d(x, b).flatten(1) for b in self.bins], dim=1)


class NetVLAD(nn.Module):
    """Soft-assigned residuals to cluster centres, summed over a volume's slices (Arandjelovic et al. 2016).

    V_k = sum_s a_ks (x_s - c_k), a = softmax over clusters of a linear map of x; each V_k is scaled to unit
    length, then the whole. The sum runs over slices, so any slice count gives one descriptor.

    Shapes: features (S, D) of one volume; output (K * D,), cluster by cluster.
    """

    def __init__(self, features: int = 512, clusters: int = 64) -> None:
        super().__init__()
        self.assign = nn.Linear(features, clusters)
        self.centres = nn.Parameter(torch.randn(clusters, features) / features**0.5)

    def assignments(self, features: Tensor) -> Tensor:
        """(S, D) to (S, K), rows sum to one."""
        return F.softmax(self.assign(features), dim=1)

    def residuals(self, features: Tensor, assignments: Tensor) -> Tensor:
        """The unnormalised V, (K, D): linear in the features when the assignments are given."""
        return assignments.t() @ features - assignments.sum(0).unsqueeze(1) * self.centres

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        residuals = self.residuals(features, self.assignments(features))
        return F.normalize(F.normalize(residuals, dim=1).flatten(), dim=0)


class VolumeClassifier(nn.Module):
    """COVID-19 scores of a CT volume from its masked slices and lesion masks.

    The paper's widths make 1.42 M parameters (its Table 5 says 1.92 M).

    Args:
        side_information: whether the encoder has its lesion branch.
        bins, neurons, clusters: of pyramid pooling, the network after it, and NetVLAD.

    Shapes: ``forward`` takes ct and lesions of one volume, (S, 1, H, W) each, any S, H and W of at least 4
    pixels, for the encoder's two poolings; it gives (2,): the scores (logits) of [not COVID-19, COVID-19].
    """

    def __init__(
        self,
        side_information: bool = True,
        bins: Sequence[int] = (5, 3, 2),
        neurons: int = 512,
        clusters: int = 64,
    ) -> None:
        super().__init__()
        self.encoder = GatedEncoder(side_information)
        self.pyramid = SpatialPyramidPooling(bins)
        self.slice_network = nn.Sequential(
            nn.Linear(GatedEncoder.channels * sum(b * b for b in bins), neurons), nn.ReLU()
        )
        self.aggregate = NetVLAD(neurons, clusters)
        self.classify = nn.Linear(neurons * clusters, 2)

    def slice_features(self, ct: Tensor, lesions: Tensor) -> Tensor:
        """Slice descriptors (S, neurons); slices are independent, so S may be split into chunks."""
        return self.descriptors(self.encoder(ct, lesions))

    def descriptors(self, maps: Tensor) -> Tensor:
        """Slice descriptors (S, neurons) from the encoder's maps (S, C, h, w)."""
        return self.slice_network(self.pyramid(maps))

    def scores(self, features: Tensor) -> Tensor:
        """Scores (2,) of one volume from its slice descriptors (S, neurons)."""
        return self.classify(self.aggregate(features))

    def forward(self, ct: Tensor, lesions: Tensor) -> Tensor:
        """See the class."""
        return self.scores(self.slice_features(ct, lesions))
