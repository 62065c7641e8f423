"""Who may know whom (design): every import of every file, also those inside functions."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import CovidCTDiagnosisLib
import pytest

PACKAGE = "CovidCTDiagnosisLib"
ROOT = Path(CovidCTDiagnosisLib.__file__).parent
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
CORE = ("ct", "networks", "relevance", "bundle", "pipeline", "study")
SLICER = {"slicer", "vtk", "qt", "ctk"}


def imported_by(source: str, module: tuple[str, ...]) -> set[str]:
    """Dotted names that a module's source imports; `module` is its package and name, for relative imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*module[: len(module) - node.level]] if node.level else []
            base += node.module.split(".") if node.module else []
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return names


def imports_of(path: Path) -> set[str]:
    place = path.relative_to(ROOT.parent).with_suffix("").parts
    return imported_by(path.read_text("utf-8"), place)


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def rooms_of(names: set[str]) -> set[str]:
    """The project's own rooms among imported names."""
    return {name.split(".")[1] for name in names if name.startswith(f"{PACKAGE}.")}


def outside_of(names: set[str]) -> set[str]:
    """Top-level packages among imported names that are neither the project's nor Python's own."""
    return {name.split(".")[0] for name in names} - {PACKAGE} - set(sys.stdlib_module_names)


def test_imports_are_found_wherever_they_are_written() -> None:
    source = "import a.b\nfrom ..ct import regrid\ndef f():\n    from . import near\n    from vtk.util import x\n"
    module = (PACKAGE, "pipeline", "lungs")
    assert imported_by(source, module) == {
        "a.b",
        f"{PACKAGE}.ct.regrid",
        f"{PACKAGE}.pipeline.near",
        "vtk.util.x",
    }


@pytest.mark.parametrize("room", CORE)
def test_every_room_of_the_core_is_there(room: str) -> None:
    assert files_of(room)


@pytest.mark.parametrize("room", ["networks", "relevance"])
def test_networks_and_relevance_know_torch_alone(room: str) -> None:
    for path in files_of(room):
        names = imports_of(path)
        assert outside_of(names) <= {"torch"}, path
        assert rooms_of(names) <= {"networks", room}, path


@pytest.mark.parametrize("room", CORE)
def test_the_core_knows_nothing_of_slicer(room: str) -> None:
    for path in files_of(room):
        assert not outside_of(imports_of(path)) & SLICER, path


@pytest.mark.parametrize("room", CORE)
def test_the_core_knows_neither_training_nor_evaluation_nor_any_door(room: str) -> None:
    doors = {"training", "evaluation", "scene", "panel", "console", "commands", "__main__"}
    for path in files_of(room):
        assert not rooms_of(imports_of(path)) & doors, path


@pytest.mark.parametrize(("room", "banned"), [("scene", {"qt", "ctk", "torch"}), ("panel", {"torch"})])
def test_scene_and_panel_keep_to_their_side(room: str, banned: set[str]) -> None:
    paths = files_of(room)
    assert paths
    for path in paths:
        names = imports_of(path)
        assert not outside_of(names) & banned, path
        # Nor by way of a room that needs it.
        assert not rooms_of(names) & {"networks", "relevance", "pipeline", "training", "evaluation"}, path


def test_a_room_imports_rooms_above_it_in_the_readmes_layout() -> None:
    layout = README.split("  CovidCTDiagnosisLib/\n")[1].split("  Resources/")[0]
    order = re.findall(r"^    (\w+)/ ", layout, re.MULTILINE)
    rooms = {path.parent.name for path in ROOT.rglob("*.py") if path.parent.parent == ROOT}
    assert sorted(order) == sorted(rooms)
    for number, room in enumerate(order):
        for path in files_of(room):
            assert not rooms_of(imports_of(path)) & set(order[number + 1 :]), path
