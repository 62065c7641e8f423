"""A bundle on disk: what is written comes back, and nothing that was tampered with is opened."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from CovidCTDiagnosisLib import __version__
from CovidCTDiagnosisLib.bundle import (
    NetworkRecord,
    default_bundle_folder,
    open_bundle,
    revise_bundle,
    write_bundle,
)
from CovidCTDiagnosisLib.bundle import bundle as bundle_module
from CovidCTDiagnosisLib.errors import BundleError, UsageError

LUNGS = "models/lungs.safetensors"
METADATA = "configs/metadata.json"


def record(seed: int = 0, **weights: torch.Tensor) -> NetworkRecord:
    generator = torch.Generator().manual_seed(seed)
    return NetworkRecord(
        architecture={"widths": [4, 8]},
        preprocessing={"window_hu": [-1100, 100], "spacing_mm": 3.0},
        weights=weights
        or {
            "conv.weight": torch.randn(4, 1, 3, 3, generator=generator),
            "norm.num_batches_tracked": torch.tensor(2**40 + seed),
        },
        training={"seed": seed, "dice": 0.97},
    )


def write(folder: Path, **changes: object) -> None:
    values: dict = {
        "name": "covid-ct",
        "version": "0.1.0",
        "networks": {"lungs": record(1), "lesions": record(2)},
        "settings": {"threshold": 0.5},
        "model_card": "# Karte für Tests\n",
        "license_text": "terms\n",
    }
    write_bundle(folder, **{**values, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "b")
    return tmp_path / "b"


def edit_metadata(folder: Path, **changes: object) -> None:
    path = folder / METADATA
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_is_written_comes_back(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert (bundle.name, bundle.version, bundle.settings) == ("covid-ct", "0.1.0", {"threshold": 0.5})
    assert bundle.networks["lungs"] == {
        "file": LUNGS,
        "architecture": {"widths": [4, 8]},
        "preprocessing": {"window_hu": [-1100, 100], "spacing_mm": 3.0},
        "training": {"seed": 1, "dice": 0.97},
    }
    files = snapshot(folder)
    del files[METADATA]
    assert bundle.sha256 == {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    assert files["docs/README.md"].decode("utf-8") == "# Karte für Tests\n"


def test_weights_are_stored_in_half_precision_and_used_in_single(folder: Path) -> None:
    written, read = record(1).weights, open_bundle(folder).weights("lungs")
    assert read.keys() == written.keys()
    kernel = read["conv.weight"]
    assert kernel.dtype == torch.float32
    assert torch.equal(kernel, written["conv.weight"].half().float())
    assert not torch.equal(kernel, written["conv.weight"])
    # A counter beyond half precision, and beyond single precision, keeps every digit.
    assert read["norm.num_batches_tracked"].dtype == torch.int64
    assert read["norm.num_batches_tracked"].item() == 2**40 + 1
    assert open_bundle(folder).weights("lesions")["norm.num_batches_tracked"].item() == 2**40 + 2


def test_tied_and_strided_weights_are_written(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    write(tmp_path / "b", networks={"lungs": record(0, a=base, b=base, c=base.T, d=base[:, :1].expand(2, 5))})
    read = open_bundle(tmp_path / "b").weights("lungs")
    assert torch.equal(read["a"], base) and torch.equal(read["b"], base) and torch.equal(read["c"], base.T)
    assert torch.equal(read["d"], base[:, :1].expand(2, 5))


@pytest.mark.parametrize("value", [1e5, float("nan"), float("inf")])
def test_weights_that_do_not_fit_half_precision_are_not_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="half precision"):
        write(tmp_path / "b", networks={"lungs": record(0, a=torch.tensor([1.0, value]))})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", [LUNGS, "docs/README.md", "LICENSE"])
def test_one_changed_byte_is_found(folder: Path, file: str) -> None:
    data = bytearray((folder / file).read_bytes())
    data[-1] ^= 1
    (folder / file).write_bytes(data)
    with pytest.raises(BundleError, match=f"{file}.*SHA-256") as caught:
        open_bundle(folder)
    assert caught.value.code == 4 and caught.value.remedy


@pytest.mark.parametrize("file", [LUNGS, "docs/README.md", "LICENSE"])
def test_a_missing_file_is_found(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(BundleError, match=f"{file} is missing"):
        open_bundle(folder)


def test_what_file_managers_leave_does_not_matter(folder: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "._lungs.safetensors"):
        (folder / "models" / name).write_bytes(b"left")
    open_bundle(folder)


@pytest.mark.parametrize("file", ["models/sub/other.safetensors", "models/a.npy"])
def test_a_file_that_the_metadata_does_not_list_is_refused(folder: Path, file: str) -> None:
    (folder / "models" / "sub").mkdir()
    shutil.copy(folder / LUNGS, folder / file)
    with pytest.raises(BundleError, match=rf"{file}.*not listed"):
        open_bundle(folder)


@pytest.mark.parametrize(
    "file", ["models/a.pt", "models/a.PTH", "docs/a.ckpt", "a.bin", "configs/a.pkl", "docs/a.Pickle", "models/a.joblib"]
)
def test_pickled_weights_are_refused_anywhere_in_the_bundle(folder: Path, file: str) -> None:
    torch.save({"a": torch.zeros(1)}, folder / file)
    with pytest.raises(BundleError, match=f"{file}.*pickled"):
        open_bundle(folder)


def make_zip(path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, path)
    assert zipfile.is_zipfile(path)


def make_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": [0.0] * 100}))


@pytest.mark.parametrize("make", [make_zip, make_pickle, Path.touch])
def test_other_formats_called_safetensors_are_refused_even_with_the_right_hash(folder: Path, make) -> None:
    (folder / LUNGS).unlink()
    make(folder / LUNGS)
    hashes = {**open_hashes(folder), LUNGS: hashlib.sha256((folder / LUNGS).read_bytes()).hexdigest()}
    edit_metadata(folder, sha256=hashes)
    with pytest.raises(BundleError, match=f"{LUNGS}.*is not a safetensors file"):
        open_bundle(folder)


def open_hashes(folder: Path) -> dict[str, str]:
    return json.loads((folder / METADATA).read_text("utf-8"))["sha256"]


def test_broken_safetensors_with_the_right_hash_are_a_bundle_error(folder: Path) -> None:
    data = (8).to_bytes(8, "little") + b"{broken}"
    (folder / LUNGS).write_bytes(data)
    edit_metadata(folder, sha256={**open_hashes(folder), LUNGS: hashlib.sha256(data).hexdigest()})
    with pytest.raises(BundleError, match=f"{LUNGS}.*cannot be read"):
        open_bundle(folder).weights("lungs")


def test_a_network_without_a_hash_is_refused(folder: Path) -> None:
    hashes = open_hashes(folder)
    del hashes[LUNGS]
    edit_metadata(folder, sha256=hashes)
    (folder / LUNGS).unlink()
    with pytest.raises(BundleError, match="no SHA-256 for the network lungs"):
        open_bundle(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "latest"},
        {"networks": []},
        {"networks": {"lungs": {"file": LUNGS}}},
        {"settings": None},
        {"sha256": {}},
        {"sha256": {"LICENSE": "0" * 64, "docs/README.md": "0" * 64, "../../secret": "0" * 64}},
        {"sha256": {"LICENSE": "0" * 64, "docs/README.md": "not a hash"}},
    ],
)
def test_metadata_that_break_the_schema_are_refused(folder: Path, changes: dict) -> None:
    edit_metadata(folder, **changes)
    with pytest.raises(BundleError, match=r"metadata\.json .*is not valid \(" + next(iter(changes))):
        open_bundle(folder)


def test_a_network_file_outside_the_bundle_is_refused(folder: Path) -> None:
    networks = json.loads((folder / METADATA).read_text("utf-8"))["networks"]
    networks["lungs"]["file"] = "models/../../lungs.safetensors"
    edit_metadata(folder, networks=networks)
    with pytest.raises(BundleError, match="networks/lungs/file"):
        open_bundle(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"version": NaN}', b"[" * 100_000])
def test_metadata_that_are_not_json_are_refused(folder: Path, content: bytes) -> None:
    (folder / METADATA).write_bytes(content)
    with pytest.raises(BundleError, match="is not valid"):
        open_bundle(folder)


def test_monai_fields_that_we_do_not_use_are_allowed(folder: Path) -> None:
    edit_metadata(folder, authors="A hospital", changelog={"0.1.0": "first"})
    assert open_bundle(folder).name == "covid-ct"


def test_the_metadata_stand_for_their_bundle(folder: Path) -> None:
    assert open_bundle(folder / "configs" / "metadata.json").folder == folder


def test_weights_that_are_replaced_after_the_bundle_was_opened_are_not_taken_for_those(folder: Path) -> None:
    opened = open_bundle(folder)
    name = next(iter(opened.networks))
    weights = opened.weights(name)
    said = opened.network(name)
    other = {key: value + 1 for key, value in weights.items()}
    record = NetworkRecord(said["architecture"], said["preprocessing"], other)
    revise_bundle(folder, folder, networks={name: record})
    with pytest.raises(BundleError, match="was changed while it was in use"):
        opened.weights(name)
    assert open_bundle(folder).weights(name).keys() == weights.keys()


def test_a_copy_of_a_read_only_bundle_can_be_changed(folder: Path) -> None:
    places = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for place in places:
        place.chmod(0o555)
    try:
        copy = revise_bundle(folder, folder.with_name("copy"), networks={"more": record(3)}).folder
    finally:
        for place in places:
            place.chmod(0o755)
    assert all(path.stat().st_mode & 0o200 for path in (copy, *copy.rglob("*")))
    revise_bundle(copy, copy, networks={"more": record(4)})
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, "copy"}


def test_the_program_is_not_older_than_its_bundle() -> None:
    """Whoever installs a newer wheel must get what is in it."""
    program, bundle = (tuple(map(int, v.split(".")[:2])) for v in (__version__, open_bundle().version))
    assert program >= bundle


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BundleError, match="is not a bundle") as caught:
            open_bundle(folder)
        assert caught.value.remedy


def test_an_unknown_network_is_named_with_those_there_are(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"no network diagnosis.*lesions, lungs"):
        open_bundle(folder).weights("diagnosis")


def test_the_networks_fit_thirty_megabytes() -> None:
    """Lungs, 2DS, lesion classes and classifier, at half precision."""
    bundle = open_bundle()
    files = [bundle.folder / bundle.networks[n]["file"] for n in ("lungs", "involvement", "lesions", "classifier")]
    assert 10e6 < sum(path.stat().st_size for path in files) <= 30e6


@pytest.mark.parametrize("depth", [1, 2])
def test_the_shipped_bundle_is_found_in_wheel_and_source_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    code = tmp_path / "a" / "CovidCTDiagnosisLib" / "bundle" / "bundle.py"
    monkeypatch.setattr(bundle_module, "__file__", str(code))
    with pytest.raises(BundleError, match="missing"):
        open_bundle()
    shipped = code.parents[depth] / "Resources" / "Models" / "covid-ct"
    shipped.parent.mkdir(parents=True)
    write(shipped)
    assert default_bundle_folder() == shipped
    assert open_bundle().folder == shipped


def test_a_failed_write_leaves_the_old_bundle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write_bytes, calls = snapshot(folder), Path.write_bytes, []

    def interrupted(path: Path, data: bytes) -> int:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(folder, version="0.2.0")
    assert snapshot(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_new_bundle_takes_the_place_of_the_old_one_as_a_whole(folder: Path) -> None:
    write(folder, version="0.2.0", networks={"lungs": record(3)})
    assert open_bundle(folder).version == "0.2.0"
    assert [p.name for p in (folder / "models").iterdir()] == ["lungs.safetensors"]
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_with_other_things_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a bundle"):
        write(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("networks", [{"../lungs": record()}, {"Lungs": record()}, {"": record()}])
def test_network_names_are_checked_before_they_become_paths(tmp_path: Path, networks: dict) -> None:
    with pytest.raises(ValueError, match="does not match"):
        write(tmp_path / "b", networks=networks)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["lungs", "diagnosis"])
@pytest.mark.parametrize("in_place", [True, False])
def test_one_network_is_replaced_or_added_and_the_rest_stays(folder: Path, name: str, in_place: bool) -> None:
    before = snapshot(folder)
    target = folder if in_place else folder.with_name("c")
    bundle = revise_bundle(folder, target, networks={name: record(7)})
    assert bundle.folder == target
    assert bundle.weights(name)["norm.num_batches_tracked"].item() == 2**40 + 7
    assert bundle.networks[name]["training"]["seed"] == 7
    changed = {METADATA, f"models/{name}.safetensors"}
    after = snapshot(target)
    assert after.keys() == before.keys() | changed
    assert all(after[file] == before[file] for file in before.keys() - changed)
    assert in_place or snapshot(folder) == before


def test_weights_on_another_grid_are_another_network(folder: Path) -> None:
    before, lungs = open_bundle(folder), record(1)
    finer = replace(lungs, preprocessing={**lungs.preprocessing, "spacing_mm": 1.5})
    after = revise_bundle(folder, folder.with_name("c"), networks={"lungs": finer})
    assert after.sha256[LUNGS] == before.sha256[LUNGS]
    assert after.fingerprint(["lungs"]) != before.fingerprint(["lungs"])


def test_version_settings_and_model_card_can_be_revised(folder: Path) -> None:
    (folder / "docs" / "data.txt").write_text("kept")
    edit_metadata(folder, authors="A hospital")
    weights = (folder / LUNGS).read_bytes()
    bundle = revise_bundle(folder, folder, version="0.1.1", settings={"threshold": 0.4}, model_card="new\n")
    assert (bundle.version, bundle.settings) == ("0.1.1", {"threshold": 0.4})
    assert (folder / "docs" / "README.md").read_text() == "new\n"
    assert (folder / "docs" / "data.txt").read_text() == "kept"
    assert json.loads((folder / METADATA).read_text("utf-8"))["authors"] == "A hospital"
    assert (folder / LUNGS).read_bytes() == weights


def test_a_damaged_bundle_is_not_revised(folder: Path) -> None:
    (folder / LUNGS).write_bytes((folder / LUNGS).read_bytes()[:-1])
    with pytest.raises(BundleError):
        revise_bundle(folder, folder.with_name("c"), networks={"lesions": record()})
    assert list(folder.parent.iterdir()) == [folder]
