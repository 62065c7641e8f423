"""What the Extensions Index and Slicer's build want of the files around the panel."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "CovidCTDiagnosis"
PANEL = [MODULE / "CovidCTDiagnosis.py", *sorted((MODULE / "CovidCTDiagnosisLib" / "panel").glob("*.py"))]

# Of Slicer, Qt and CTK, all names that the module and its panel use: a new one has to be looked up in the sources of
# Slicer 5.10 and later before it is added here.
KNOWN = {
    "slicer.ScriptedLoadableModule.ScriptedLoadableModule",
    "slicer.ScriptedLoadableModule.ScriptedLoadableModuleLogic",
    "slicer.ScriptedLoadableModule.ScriptedLoadableModuleTest",
    "slicer.ScriptedLoadableModule.ScriptedLoadableModuleWidget",
    "slicer.app.applicationLogic",
    "slicer.app.clipboard",
    "slicer.app.connect",
    "slicer.app.layoutManager",
    "slicer.app.processEvents",
    "slicer.app.userSettings",
    "slicer.i18n.tr",
    "slicer.i18n.translate",
    "slicer.modules",
    "slicer.app.testingEnabled",
    "slicer.mrmlScene",
    "slicer.mrmlScene.Clear",
    "slicer.mrmlScene.EndCloseEvent",
    "slicer.mrmlScene.EndImportEvent",
    "slicer.mrmlScene.GetNodeByID",
    "slicer.mrmlScene.IsImporting",
    "slicer.mrmlScene.StartCloseEvent",
    "slicer.mrmlScene.StartImportEvent",
    "slicer.parameterNodeWrapper.Choice",
    "slicer.parameterNodeWrapper.WithinRange",
    "slicer.parameterNodeWrapper.parameterNodeWrapper",
    "slicer.util.VTKObservationMixin",
    "slicer.util.arrayFromVolume",
    "slicer.util.childWidgetVariables",
    "slicer.util.confirmOkCancelDisplay",
    "slicer.util.loadUI",
    "slicer.util.mainWindow",
    "slicer.util.pip_install",
    "slicer.util.pip_uninstall",
    "slicer.vtkMRMLLabelMapVolumeNode",
    "slicer.vtkMRMLNode",
    "slicer.vtkMRMLSegmentationNode",
    "slicer.vtkMRMLScalarVolumeNode",
    "slicer.vtkMRMLSliceLogic",
    "slicer.vtkMRMLVolumeArchetypeStorageNode",
    "slicer.vtkMRMLVolumeNode",
    "qt.QTableWidgetItem",
    "qt.QTimer",
}
WIDGETS = {"qMRMLWidget", "qMRMLNodeComboBox", "ctkCollapsibleButton", "ctkSliderWidget", "ctkPathLineEdit"}


def names_used(path: Path) -> set[str]:
    """Of slicer, qt and ctk."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("slicer", "qt", "ctk"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        parts, inner = [], node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if parts and isinstance(inner, ast.Name) and inner.id in ("slicer", "qt", "ctk"):
            found.add(".".join([inner.id, *reversed(parts)]))
    return found - {"slicer.util", "slicer.app"}


def test_every_name_of_slicer_is_known() -> None:
    used = set().union(*(names_used(path) for path in PANEL))
    assert used == KNOWN


def test_the_ui_file_has_known_widgets_tooltips_and_parameters() -> None:
    tree = ElementTree.parse(MODULE / "Resources" / "UI" / "CovidCTDiagnosis.ui")
    widgets = list(tree.iter("widget"))
    assert {w.get("class") for w in widgets if not str(w.get("class")).startswith("Q")} == WIDGETS
    for widget in widgets:
        if widget.get("class") not in ("QLabel", "qMRMLWidget", "ctkCollapsibleButton"):
            assert widget.find("property[@name='toolTip']") is not None, widget.get("name")
    parameters = ast.parse((MODULE / "CovidCTDiagnosisLib" / "panel" / "parameters.py").read_text(encoding="utf-8"))
    (made,) = (node for node in parameters.body if isinstance(node, ast.ClassDef))
    names = {
        node.target.id for node in made.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    bound = [p.findtext("string") for p in tree.iter("property") if p.get("name") == "SlicerParameterName"]
    assert sorted(str(b) for b in bound) == sorted(names)


def test_cmake_installs_every_file_of_the_module() -> None:
    text = (MODULE / "CMakeLists.txt").read_text(encoding="utf-8")
    listed = set(re.findall(r"^  ((?:CovidCTDiagnosisLib|Resources)/\S+)$", text, re.MULTILINE))
    skipped = {"__pycache__", ".ruff_cache"}
    there = {
        path.relative_to(MODULE).as_posix()
        for folder in ("CovidCTDiagnosisLib", "Resources")
        for path in (MODULE / folder).rglob("*")
        if path.is_file() and not skipped & set(path.parts)
    }
    assert listed == there


def test_the_catalog_entry_follows_the_index_s_rules() -> None:
    entry = json.loads((ROOT / "CovidCTDiagnosis.json").read_text(encoding="utf-8"))
    allowed = {
        "$schema": str,
        "category": str,
        "scm_url": str,
        "scm_revision": str,
        "scm_type": str,
        "build_dependencies": list,
        "build_subdirectory": str,
        "enabled": bool,
        "tier": int,
    }
    assert {"$schema", "category", "scm_url"} <= entry.keys() <= allowed.keys()
    assert all(isinstance(value, allowed[key]) for key, value in entry.items())
    assert entry["scm_url"].startswith("https://") and entry["scm_url"].endswith(".git") and 1 <= entry["tier"] <= 5
    depends = re.search(r'EXTENSION_DEPENDS "([^"]*)"', (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"))
    assert depends is not None and entry["build_dependencies"] == depends[1].split()
    assert re.search(r"schema-v\d+\.\d+\.\d+\.json#$", entry["$schema"])


def test_the_extension_s_description_is_there() -> None:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    facts = dict(re.findall(r'set\(EXTENSION_(\w+) "([^"]*)"\)', text))
    assert {"HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS"} <= facts.keys()
    assert facts["DEPENDS"] == "PyTorch" and "research" in facts["DESCRIPTION"]
    assert re.search(r"^project\(CovidCTDiagnosis\)$", text, re.MULTILINE)
    assert (ROOT / facts["ICONURL"].rpartition("/main/")[2]).is_file()
    assert (ROOT / facts["SCREENSHOTURLS"].rpartition("/main/")[2]).is_file()


def test_the_panel_never_loads_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = [{testing!r}, {module!r}]\n"
        "import pathlib, slicer_host\n"
        "host = slicer_host.Host(pathlib.Path({file!r}), pathlib.Path({settings!r}))\n"
        "before = 'torch' in sys.modules\n"
        "host.open(); host.close()\n"
        "print(before, 'torch' in sys.modules)"
    )
    filled = code.format(
        testing=str(ROOT / "Testing" / "host"),
        module=str(MODULE),
        file=str(PANEL[0]),
        settings=str(tmp_path / "settings.ini"),
    )
    found = subprocess.run([sys.executable, "-c", filled], capture_output=True, text=True, check=False)
    assert found.stdout.split() == ["False", "False"], found.stderr


@pytest.mark.parametrize("folder", [ROOT / "Testing", *sorted((ROOT / "Testing").iterdir())])
def test_the_tests_are_no_package_that_slicer_could_import(folder: Path) -> None:
    assert not (folder / "__init__.py").exists()
