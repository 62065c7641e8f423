"""A set of weights on disk, in MONAI-bundle layout: hashes, safetensors, model card, licence."""

from CovidCTDiagnosisLib.bundle.bundle import (
    Bundle,
    NetworkRecord,
    default_bundle_folder,
    open_bundle,
    replace_network,
    revise_bundle,
    write_bundle,
)

__all__ = [
    "Bundle",
    "NetworkRecord",
    "default_bundle_folder",
    "open_bundle",
    "replace_network",
    "revise_bundle",
    "write_bundle",
]
