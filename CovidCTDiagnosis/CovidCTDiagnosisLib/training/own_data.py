"""A hospital's own data for the segmentation networks: CTs with label maps, checked before anything is trained.

The folder::

    DATA/images/NAME.nii.gz     the CT, HU (NIfTI, NRRD or MetaImage, here and below), or a folder NAME of DICOM files
    DATA/lungs/NAME.nii.gz      lungs: 0 background, any whole number above 0 lung
    DATA/lesions/NAME.nii.gz    0 none, 1 ground-glass opacity, 2 consolidation, 3 crazy paving, 4 combined pattern,
                                255 lesion of unknown class
    DATA/cases.csv              optional: columns name, patient, split (train, test or empty)
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..ct import Volume, check_chest_ct, read_image, read_scan, to_axial
from ..ct.dicom_header import patient_id
from ..ct.files import IMAGE_SUFFIXES, as_int16, files_below
from ..ct.text_header import files_of
from ..errors import CovidCTError, InputError
from ..folders import replaced_file
from ..networks import LESION_CLASSES
from ..tables import read_rows, require_columns, spelled_alike
from .sources import UNKNOWN_LESION, Case

Label = Literal["lungs", "lesions"]

NEEDED: dict[str, Label] = {"lungs": "lungs", "involvement": "lesions", "lesions": "lesions"}
"""The label map that a network learns from."""

PREPARED = 2
"""Counted up when what is made of cases changes: what was kept before is not used."""
GRID_TOLERANCE_MM = 0.1
LEAST_INSIDE = 0.5
"""At least this share of a lesion label must lie in the lungs, where lungs are given."""

MOST_NAMED = 5
"""Of many unknown numbers in a label map only so many are named."""

ONE_IN = 8
"""Patients kept for early stopping: one in so many."""


@dataclass(frozen=True)
class OwnCase:
    """A CT with its label maps.

    Attributes:
        name: file name without its ending.
        image: a file, or a folder of DICOM files.
        lungs, lesions: files; a label map may be missing.
        patient: who it is of; the name where nobody says.
        split: ``train`` or ``test``.
        found: numbers in the label map of lesions, without 0; known once the case has been checked.
    """

    name: str
    image: Path
    lungs: Path | None
    lesions: Path | None
    patient: str
    split: str
    found: frozenset[int] = frozenset()

    def label(self, kind: Label) -> Path | None:
        """The file of a label map, or None."""
        return self.lungs if kind == "lungs" else self.lesions


def is_own_data(data: Path) -> bool:
    """Whether the folder has this form, not that of the shared data."""
    return (data / "images").is_dir()


def check_own_data(data: Path, network: str) -> list[OwnCase]:
    """Read every case once and refuse the folder unless all are good.

    Args:
        data: the folder.
        network: ``lungs``, ``involvement`` or ``lesions``; says which label map is needed.

    Returns:
        The cases that have this label map, in order of name.

    Raises:
        InputError: names each bad case and what is wrong with it, one a line.
    """
    cases, problems = _list_cases(data)
    kind = NEEDED[network]
    usable = [case for case in cases if case.label(kind) is not None]
    for number, case in enumerate(usable):
        usable[number], wrong = _examined(case)
        problems += [f"{case.name}: {problem}" for problem in wrong]
    learned = [case for case in usable if case.split != "test"]
    if usable and kind == "lesions" and not problems and not any(case.found for case in learned):
        problems.append("no label map in lesions/ holds a lesion")
    if not usable:
        problems.append(f"no image has a label map in {kind}/, which {network} learns from")
    elif all(case.split == "test" for case in usable):
        problems.append(
            f"cases.csv: all cases with a label map in {kind}/ are in the split test, none is to learn from"
        )
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise InputError(f"The training data has {count}:\n{listed}\n", "Correct or remove these and start again.")
    return usable


def hold_out(cases: list[OwnCase], kind: Label) -> tuple[list[OwnCase], list[OwnCase]]:
    """Cases to learn from, and those of one patient in eight for early stopping (none below four patients).

    Cases of the split ``test`` are in neither. Where lesions are learned, only patients who have any are kept: without
    lesions, the network that finds least would be the best. The last ones with lesions, and with lesions of a known
    class, are learned from.
    """
    cases = [case for case in cases if case.split != "test"]
    patients = {case.patient for case in cases}
    telling = {case.patient for case in cases if kind == "lungs" or case.found}
    named = {case.patient for case in cases if case.found - {UNKNOWN_LESION}}
    wanted = max(len(patients) // ONE_IN, 1) if len(patients) >= 4 else 0
    kept: set[str] = set()
    for patient in sorted(telling, key=lambda p: hashlib.sha256(p.encode()).hexdigest()):
        without = kept | {patient}
        if len(kept) < wanted and telling - without and (not named or named - without):
            kept = without
    return [c for c in cases if c.patient not in kept], [c for c in cases if c.patient in kept]


def require_classes(cases: list[OwnCase]) -> None:
    """Raise InputError if nobody says of which class any lesion is: a new network would name classes by chance."""
    if not set().union(*(case.found for case in cases)) - {UNKNOWN_LESION}:
        raise InputError(
            "No lesion to learn from is of a known class.",
            "Name classes in some label maps, or add --fine-tune: what the bundle's network knows of them stays.",
        )


def prepare(cases: list[OwnCase], cache: Path, kind: Label) -> list[Case]:
    """Cases whose voxels stay on disk, so that hundreds of CTs do not fill the memory.

    Args:
        cases: that have this label map.
        cache: folder for the voxels in axial order; what is there already is used again.
        kind: ``lungs`` gives labels 0 and 1, ``lesions`` the numbers of the label map.
    """
    cache.mkdir(parents=True, exist_ok=True)
    return [_prepare(case, cache, kind) for case in cases]


def _prepare(case: OwnCase, cache: Path, kind: Label) -> Case:
    label = case.label(kind)
    assert label is not None
    files = (*files_of(case.image), *files_below(case.image), *files_of(label))
    key = "-".join(f"{p.name}-{p.stat().st_size}-{p.stat().st_mtime_ns}" for p in files)
    stem = hashlib.sha256(f"{PREPARED} {kind}-{key}".encode()).hexdigest()[:16]
    hu_file, label_file, spacing_file = (cache / f"{stem}-{part}.npy" for part in ("hu", "labels", "spacing"))
    # The spacing is written last: where it is there, all is.
    if not spacing_file.exists():
        volume = read_scan(case.image)
        labels = to_axial(volume.with_voxels(read_image(label).voxels)).voxels
        axial = to_axial(volume)
        _save(hu_file, as_int16(axial.voxels))
        _save(label_file, (labels > 0 if kind == "lungs" else labels).astype(np.uint8))
        _save(spacing_file, np.array(axial.spacing[::-1]))
    k, j, i = np.load(spacing_file).tolist()
    return Case(case.name, np.load(hu_file, mmap_mode="r"), (k, j, i), np.load(label_file, mmap_mode="r"))


def _save(path: Path, array: np.ndarray) -> None:
    """Write and rename: another process of the same training may have the file mapped."""
    with replaced_file(path) as partial, partial.open("wb") as out:
        np.save(out, array)


def _list_cases(data: Path) -> tuple[list[OwnCase], list[str]]:
    files = {kind: _files(data / kind) for kind in ("images", "lungs", "lesions")}
    problems = [
        f"{kind}/{name}: there are several files of this name"
        for kind, found in files.items()
        for name, paths in found.items()
        if len(paths) > 1
    ]
    for kind in ("lungs", "lesions"):
        problems += [
            f"{kind}/{name}: there is no image of this name" for name in files[kind] if name not in files["images"]
        ]
    problems += [
        f"images/{name}: there is no label map of this name"
        for name in files["images"]
        if name not in files["lungs"] and name not in files["lesions"]
    ]
    table, wrong = _read_table(data / "cases.csv", set(files["images"]))

    def one(kind: str, name: str) -> Path | None:
        return files[kind].get(name, [None])[0]

    cases = [
        OwnCase(name, paths[0], one("lungs", name), one("lesions", name), *table.get(name, ("", "train")))
        for name, paths in files["images"].items()
    ]
    by_tag = not any(case.patient for case in cases)
    cases = [case if case.patient else replace(case, patient=_tagged(case.image) or case.name) for case in cases]
    patients = spelled_alike(case.patient for case in cases)
    cases = [replace(case, patient=patient) for case, patient in zip(cases, patients, strict=True)]
    splits = {(case.patient, case.split) for case in cases}
    twice = [patient for patient, count in Counter(patient for patient, _ in splits).items() if count > 1]
    told = " by the PatientID of their DICOM files; name patients in cases.csv if that is wrong" if by_tag else ""
    torn = [
        f"{', '.join(c.name for c in cases if c.patient == p)}: one patient stands in two splits{told}" for p in twice
    ]
    return cases, problems + wrong + torn


def _tagged(image: Path) -> str:
    """PatientID of an image that is a DICOM folder, else empty; it is only compared with others, and never shown."""
    try:
        return patient_id(image) if image.is_dir() else ""
    except InputError:
        return ""  # it is told when the image is read


def _files(folder: Path) -> dict[str, list[Path]]:
    """Images and label maps by their names without the ending; a folder counts as one of its name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("[!.]*")):
        if path.is_dir():
            found.setdefault(path.name, []).append(path)
            continue
        ending = next((s for s in sorted(IMAGE_SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(s)), None)
        if ending is not None:
            found.setdefault(path.name[: -len(ending)], []).append(path)
    return found


def _read_table(path: Path, names: set[str]) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Patient and split by case name, and what is wrong with the table."""
    if not path.exists():
        return {}, []
    try:
        columns, rows = read_rows(path)
        require_columns(path, columns, ("name", "patient", "split"), "Give all three.")
    except InputError as error:
        return {}, [error.message]
    problems: list[str] = []
    known = {row.text("name") for row in rows if row.text("patient")}
    if known and names - known:
        problems.append(f"{path.name} names the patient of some cases only; name that of all of them, or of none")
    table: dict[str, tuple[str, str]] = {}
    for row in rows:
        name, patient, split = map(row.text, ("name", "patient", "split"))
        where = f"{path.name}, line {row.line}"
        if name not in names:
            problems.append(f"{where}: there is no image named {name}")
        elif name in table:
            problems.append(f"{where}: {name} stands there twice")
        elif split not in ("", "train", "test"):
            problems.append(f"{where}: the split of {name} is {split}, not train or test")
        else:
            table[name] = (patient, split or "train")
    return table, problems


def _examined(case: OwnCase) -> tuple[OwnCase, list[str]]:
    """The case with what its lesion labels hold, and what is wrong with its files."""
    try:
        ct = read_scan(case.image)
        check_chest_ct(ct)
    except CovidCTError as error:
        return case, [f"image: {error.message}"]
    problems: list[str] = []
    lungs = _label(case.lungs, ct, "lungs", problems)
    lesions = _label(case.lesions, ct, "lesions", problems)
    if lungs is not None and not lungs.any():
        problems.append("lungs: the label map is empty")
    elif lungs is not None and lesions is not None and lesions.any():
        inside = float((lungs[lesions > 0] > 0).mean())
        if inside < LEAST_INSIDE:
            problems.append(f"lesions: {1 - inside:.0%} of them lie outside the lungs")
    if lesions is not None:
        case = replace(case, found=frozenset(map(int, np.unique(lesions[lesions > 0]))))
    return case, problems


def _unknown(values: np.ndarray, kind: Label) -> np.ndarray:
    """Those numbers that a label map must not hold: an image or probabilities may have been given for it."""
    if kind == "lungs":
        return values[(values < 0) | (values != np.rint(values))]
    return np.setdiff1d(values, [*range(len(LESION_CLASSES)), UNKNOWN_LESION])


def _label(path: Path | None, ct: Volume, kind: Label, problems: list[str]) -> np.ndarray | None:
    """The label map's numbers, (K, J, I), or None if there is none or it cannot be used."""
    if path is None:
        return None
    if path.is_dir():
        problems.append(f"{kind}: the label map is a folder, not one file")
        return None
    try:
        label = read_image(path)
    except CovidCTError as error:
        problems.append(f"{kind}: {error.message}")
        return None
    if not label.on_same_grid(ct, GRID_TOLERANCE_MM):
        problems.append(f"{kind}: the label map does not lie on the image's grid")
        return None
    strange = _unknown(np.unique(label.voxels), kind)
    if len(strange):
        more = f" and {len(strange) - MOST_NAMED} more" if len(strange) > MOST_NAMED else ""
        problems.append(f"{kind}: unknown label {', '.join(f'{v:g}' for v in strange[:MOST_NAMED])}{more}")
        return None
    return label.voxels
