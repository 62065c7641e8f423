"""The README's commands are real: the command line takes them, and make knows its targets."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from CovidCTDiagnosisLib.__main__ import _parser
from CovidCTDiagnosisLib.bundle import open_bundle

ROOT = Path(__file__).parents[2]
PUBLISH = SimpleNamespace(**runpy.run_path(str(ROOT / "Resources" / "results" / "publish.py")))
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    {
        match.strip("`").strip()
        for match in re.findall(r"(?:^|`)(?:\.venv/bin/)?(covid-ct [^`\n]+)", README, re.MULTILINE)
    }
)


def test_the_readme_shows_every_command() -> None:
    (commands,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert {shlex.split(command)[1] for command in COMMANDS} == set(commands.choices)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_takes_what_the_readme_shows(command: str) -> None:
    words = [word for word in shlex.split(command)[1:] if word != "…"]
    if words[0] == "analyze" and "--output" not in words:
        words += ["SCAN", "--output", "STUDY"]
    assert _parser().parse_args(words).run is not None


@pytest.mark.parametrize("target", ["run", "run SAMPLE=chest-dicom", "test", "bench", "numbers"])
def test_make_knows_the_target(target: str) -> None:
    assert f"make {target.split()[0]}" in README
    planned = subprocess.run(
        ["make", "-n", *target.split()], cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    assert planned.returncode == 0, planned.stderr


def test_the_files_that_the_readme_links_are_there() -> None:
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("document", ["README", "model card"])
def test_tables_are_those_that_evaluation_has_written(document: str, tmp_path: Path) -> None:
    text = README if document == "README" else open_bundle().model_card
    assert PUBLISH.TABLE.search(text) and PUBLISH.published(text) == text
    for place in PUBLISH.TABLE.finditer(text):
        (tmp_path / place["file"]).write_text("| other |\n", encoding="utf-8")
    changed = PUBLISH.published(text, tmp_path)
    assert changed != text and PUBLISH.published(changed) == text
