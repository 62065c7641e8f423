"""A set of weights on disk, in MONAI-bundle layout: hashes, safetensors, model card, licence."""

from CovidCTDiagnosisLib.bundle.bundle import (
    Bundle,
    NetworkRecord,
    default_bundle_folder,
    open_begun_bundle,
    open_bundle,
    revise_bundle,
    write_bundle,
)
from CovidCTDiagnosisLib.bundle.changes import changed_version, section, with_section

__all__ = [
    "Bundle",
    "NetworkRecord",
    "changed_version",
    "default_bundle_folder",
    "open_begun_bundle",
    "open_bundle",
    "revise_bundle",
    "section",
    "with_section",
    "write_bundle",
]
