"""Open, check and write a bundle.

A bundle is a folder in MONAI-bundle layout::

    configs/metadata.json      follows metadata.schema.json; holds the SHA-256 of every other file that is used
    models/<network>.safetensors
    docs/README.md             the model card
    LICENSE

Weights are stored in half precision and used in single precision. Pickled weights can run code when they are
loaded, so no file named like that is accepted, and none that the metadata does not name is ever read. Beside ``models``
a hospital may keep files of its own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from CovidCTDiagnosisLib.bundle.archive import unpack_bundle
from CovidCTDiagnosisLib.documents import encode_document, read_document
from CovidCTDiagnosisLib.errors import BundleError
from CovidCTDiagnosisLib.folders import check_target, is_left_by_file_manager, replaced_folder

if TYPE_CHECKING:
    import torch

METADATA = "configs/metadata.json"
MODEL_CARD = "docs/README.md"
LICENSE = "LICENSE"
PICKLED_SUFFIXES = frozenset({".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".joblib"})

_PACKAGE = "CovidCTDiagnosisLib.bundle"
_SCHEMA = "metadata.schema.json"
_TASK = "Lungs, lesions and COVID-19 diagnosis with relevance heatmaps from chest CT"
_DESCRIPTION = "Weights of the networks of CovidCTDiagnosis; the model card says what they learned from."
_INTENDED_USE = "For research, not for diagnosis."
_REMEDY = "Install the bundle again or choose another one."


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle whose files have been checked.

    Attributes:
        name: for example "covid-ct".
        version: semantic version of the weights.
        folder: where it lies.
        sha256: SHA-256 of each file but the metadata, by path relative to the folder.
        networks: by network name: `file`, `architecture` (keyword arguments), `preprocessing`, `training`.
        settings: numbers that belong to the weights, such as the diagnosis threshold and calibration.
        written_with: versions of the packages that wrote it.
    """

    name: str
    version: str
    folder: Path
    sha256: dict[str, str]
    networks: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    written_with: dict[str, str]

    def fingerprint(self, names: Iterable[str]) -> str:
        """Tells apart what different weights or preprocessing of these networks make of one input."""
        used = [(self.sha256[self.networks[n]["file"]], self.networks[n]["preprocessing"]) for n in names]
        return hashlib.sha256(json.dumps(used).encode()).hexdigest()[:12]

    @property
    def identity(self) -> str:
        """Name, version and hash: tables of predictions say with it what made them.

        Bundles of one hash predict alike, whatever they are called (see ``predicts_as``).
        """
        whole = json.dumps([self.fingerprint(sorted(self.networks)), self.settings], sort_keys=True)
        return f"{self.name} {self.version} {hashlib.sha256(whole.encode()).hexdigest()[:12]}"

    def predicts_as(self, identity: str) -> bool:
        """Whether this bundle predicts as the one of that ``identity``: the hash says so."""
        return identity.split()[-1:] == self.identity.split()[-1:]

    @property
    def model_card(self) -> str:
        """Markdown."""
        return (self.folder / MODEL_CARD).read_text(encoding="utf-8")

    @property
    def license_text(self) -> str:
        """Terms of the weights."""
        return (self.folder / LICENSE).read_text(encoding="utf-8")

    def network(self, name: str) -> dict[str, Any]:
        """What the bundle says of a network, see ``networks``.

        Raises:
            BundleError: there is no such network.
        """
        if name not in self.networks:
            have = ", ".join(sorted(self.networks)) or "none"
            raise BundleError(
                f"The bundle {self.name} has no network {name} (it has: {have}).", "Choose another bundle."
            )
        return self.networks[name]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """A network's state dict on the CPU; half precision becomes float32, integers stay.

        Raises:
            BundleError: there is no such network, its file is not valid safetensors, or not the one that was opened.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        file = self.network(name)["file"]
        try:
            content = (self.folder / file).read_bytes()
            if hashlib.sha256(content).hexdigest() != self.sha256[file]:
                raise BundleError(f"The bundle {self.name} was changed while it was in use.", "Start again.")
            tensors = load(content)
        except (SafetensorError, OSError) as error:
            raise BundleError(f"{file} of the bundle {self.name} cannot be read.", _REMEDY) from error
        return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


@dataclass(frozen=True, eq=False)
class NetworkRecord:
    """A trained network, to be written into a bundle.

    Attributes:
        architecture: keyword arguments of the network's class (JSON values).
        preprocessing: what is done to a CT before the network sees it (JSON values; HU, mm).
        weights: state dict.
        training: facts of the training: data, seed, steps, measures (JSON values).
    """

    architecture: dict[str, Any]
    preprocessing: dict[str, Any]
    weights: Mapping[str, torch.Tensor]
    training: dict[str, Any] = field(default_factory=dict)


def default_bundle_folder() -> Path:
    """The bundle that ships with the program, in a source tree, a Slicer extension or an installed wheel.

    Raises:
        BundleError: this installation has none.
    """
    here = Path(__file__)
    # A wheel has it inside the package; the source tree and Slicer have it beside the package. Inside comes
    # first: beside an installed package lie other people's packages.
    for parent in (here.parents[1], here.parents[2]):
        folder = parent / "Resources" / "Models" / "covid-ct"
        if folder.is_dir():
            return folder
    raise BundleError("The weights that ship with the program are missing.", "Install the program again.")


def open_bundle(folder: Path | None = None) -> Bundle:
    """Open a bundle (the shipped one by default) and check every file of it before anything is loaded.

    Args:
        folder: of the bundle, its metadata.json (a file is all that some dialogs can choose), or a zip file with it,
            which is unpacked into the user's cache.

    Raises:
        BundleError: the folder is no bundle; a file is missing, has another SHA-256, is among the models and not
            listed in the metadata, or is named like pickled weights.
    """
    folder = default_bundle_folder() if folder is None else folder
    if folder.is_file() and folder.match(METADATA):
        folder = folder.parents[1]
    if folder.is_file():
        folder = unpack_bundle(folder, METADATA)
    try:
        metadata = read_document(folder / METADATA, _PACKAGE, _SCHEMA)
    except OSError as error:
        raise BundleError(f"{folder} is not a bundle: {METADATA} cannot be read.", _REMEDY) from error
    except ValueError as error:
        raise BundleError(f"{METADATA} in {folder} is not valid ({error}).", _REMEDY) from error
    bundle = Bundle(
        name=metadata["name"],
        version=metadata["version"],
        folder=folder,
        sha256=metadata["sha256"],
        networks=metadata["networks"],
        settings=metadata["settings"],
        written_with={"PyTorch": metadata["pytorch_version"], "NumPy": metadata["numpy_version"]},
    )
    _refuse_pickles(folder)
    _check_listed(bundle)
    _check_hashes(bundle)
    return bundle


def open_begun_bundle(folder: Path) -> Bundle | None:
    """The bundle that is to be added to, or None where the folder is not there or empty.

    Raises:
        UsageError: it is a file, or holds something else.
        BundleError: see ``open_bundle``.
    """
    if folder.exists():
        check_target(folder, METADATA, "bundle")
    return open_bundle(folder) if (folder / METADATA).is_file() else None


def write_bundle(
    folder: Path,
    *,
    name: str,
    version: str,
    networks: Mapping[str, NetworkRecord],
    settings: dict[str, Any],
    model_card: str,
    license_text: str,
) -> Bundle:
    """Write a bundle, whole or not at all; an older bundle in `folder` is replaced at the end.

    Args:
        folder: where to; its parent must exist.
        name: for example "covid-ct".
        version: semantic version, three numbers.
        networks: by network name (lower case); the file is called after it.
        settings: numbers that belong to the weights.
        model_card: Markdown.
        license_text: terms of the weights.

    Raises:
        UsageError: `folder` holds something other than a bundle or cannot be written.
        ResourceError: the disk is full.
        ValueError: a value does not follow the metadata's schema, or weights do not fit half precision.
    """
    check_target(folder, METADATA, "bundle")
    files = {MODEL_CARD: model_card.encode("utf-8"), LICENSE: license_text.encode("utf-8")}
    metadata: dict[str, Any] = {
        "name": name,
        "version": version,
        "task": _TASK,
        "description": _DESCRIPTION,
        "intended_use": _INTENDED_USE,
        "networks": {},
        "settings": settings,
        "sha256": {},
    }
    with replaced_folder(folder) as partial:
        _write_files(partial, metadata, networks, files)
    return open_bundle(folder)


def revise_bundle(
    folder_in: Path,
    folder_out: Path,
    *,
    networks: Mapping[str, NetworkRecord] | None = None,
    version: str | None = None,
    settings: dict[str, Any] | None = None,
    model_card: str | None = None,
    license_text: str | None = None,
) -> Bundle:
    """Write a changed copy of a bundle (or change it in place); what is not given stays as it is.

    Args:
        folder_in: an intact bundle.
        folder_out: where to; may be `folder_in`.
        networks: networks to replace or add, by name; the others' files are copied byte by byte.
        version: new semantic version.
        settings: new settings, in place of all the old ones.
        model_card: new model card, Markdown.
        license_text: new terms of the weights.

    Raises:
        BundleError: `folder_in` is missing or damaged.
        UsageError: `folder_out` holds something other than a bundle or cannot be written.
        ResourceError: the disk is full.
        ValueError: a value does not follow the metadata's schema, or weights do not fit half precision.
    """
    open_bundle(folder_in)
    check_target(folder_out, METADATA, "bundle")
    metadata = read_document(folder_in / METADATA, _PACKAGE, _SCHEMA)
    if version is not None:
        metadata["version"] = version
    if settings is not None:
        metadata["settings"] = settings
    texts = {MODEL_CARD: model_card, LICENSE: license_text}
    files = {name: text.encode("utf-8") for name, text in texts.items() if text is not None}
    with replaced_folder(folder_out) as partial:
        # An installed bundle may be read-only: copyfile leaves the permissions of files behind, but not of folders.
        shutil.copytree(folder_in, partial, dirs_exist_ok=True, copy_function=shutil.copyfile)
        for folder in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        _write_files(partial, metadata, networks or {}, files)
    return open_bundle(folder_out)


def _write_files(
    folder: Path, metadata: dict[str, Any], networks: Mapping[str, NetworkRecord], files: Mapping[str, bytes]
) -> None:
    """Write networks and other files into `folder`, then the metadata with their hashes."""
    import numpy
    import safetensors
    import torch

    contents = dict(files)
    for name, record in networks.items():
        file = f"models/{name}.safetensors"
        metadata["networks"][name] = {
            "file": file,
            "architecture": record.architecture,
            "preprocessing": record.preprocessing,
            "training": record.training,
        }
        contents[file] = _encode_weights(name, record.weights)
    metadata["pytorch_version"] = torch.__version__
    metadata["numpy_version"] = numpy.__version__
    metadata["required_packages_version"] = {"safetensors": safetensors.__version__}
    metadata["sha256"].update({file: hashlib.sha256(data).hexdigest() for file, data in contents.items()})
    # Encoding checks the names against the schema, before any of them becomes a path.
    contents[METADATA] = encode_document(metadata, _PACKAGE, _SCHEMA)
    for file, data in contents.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _encode_weights(name: str, weights: Mapping[str, torch.Tensor]) -> bytes:
    """Safetensors with floating-point tensors in half precision."""
    from safetensors.torch import save

    stored = {}
    for key, value in weights.items():
        value = value.detach().cpu()
        if value.is_floating_point():
            value = value.half()
            if not value.isfinite().all():
                raise ValueError(f"{key} of the network {name} does not fit half precision")
        # safetensors refuses tensors that share memory, as tied weights and views do.
        stored[key] = value.clone().contiguous()
    return save(stored, metadata={"format": "pt"})


def _refuse_pickles(folder: Path) -> None:
    """Raise BundleError for anything that looks like pickled weights, anywhere in the bundle."""
    for path in sorted(folder.rglob("*")):
        file = path.relative_to(folder).as_posix()
        if path.suffix.lower() in PICKLED_SUFFIXES:
            raise BundleError(
                f"{file} in {folder} is a pickled weight file, which can run code when it is loaded.",
                "Use a bundle with safetensors only.",
            )
        left = is_left_by_file_manager(path.name)
        if path.suffix.lower() == ".safetensors" and path.is_file() and not left and not _has_safetensors_header(path):
            raise BundleError(
                f"{file} in {folder} is not a safetensors file, whatever its name says.",
                "Use a bundle with safetensors only.",
            )


def _has_safetensors_header(path: Path) -> bool:
    """Whether the file starts as safetensors do: the header's length (8 bytes), then a JSON object."""
    with path.open("rb") as stream:
        start = stream.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and length <= path.stat().st_size - 8


def _check_listed(bundle: Bundle) -> None:
    """Raise BundleError when models/ and the metadata do not name the same files."""
    models = bundle.folder / "models"
    for path in sorted(models.rglob("*")):
        file = path.relative_to(bundle.folder).as_posix()
        if not path.is_dir() and file not in bundle.sha256 and not is_left_by_file_manager(path.name):
            raise BundleError(
                f"{file} in {bundle.folder} is not listed in {METADATA}.",
                "Remove it or install the bundle again.",
            )
    for name, network in bundle.networks.items():
        if network["file"] not in bundle.sha256:
            raise BundleError(f"{METADATA} in {bundle.folder} has no SHA-256 for the network {name}.", _REMEDY)


def _check_hashes(bundle: Bundle) -> None:
    """Raise BundleError when a file is missing or its bytes are not those that were written."""
    for file, expected in bundle.sha256.items():
        try:
            data = (bundle.folder / file).read_bytes()
        except OSError as error:
            raise BundleError(f"{file} is missing in {bundle.folder}.", _REMEDY) from error
        if hashlib.sha256(data).hexdigest() != expected:
            raise BundleError(f"{file} in {bundle.folder} is damaged: its SHA-256 is wrong.", _REMEDY)
