"""The README's commands are real: the command line takes them, and make knows its targets."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from CovidCTDiagnosisLib.__main__ import _parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    {
        match.strip("`").strip()
        for match in re.findall(r"(?:^|`)(?:\.venv/bin/)?(covid-ct [^`\n]+)", README, re.MULTILINE)
    }
)


def test_the_readme_shows_every_command() -> None:
    shown = {shlex.split(command)[1] for command in COMMANDS}
    assert {"analyze", "sample", "train", "evaluate", "complexity"} <= shown


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_takes_what_the_readme_shows(command: str) -> None:
    words = [word for word in shlex.split(command)[1:] if word != "…"]
    if words[0] == "analyze" and "--output" not in words:
        words += ["SCAN", "--output", "STUDY"]
    assert _parser().parse_args(words).run is not None


@pytest.mark.parametrize("target", ["run", "run SAMPLE=chest-dicom", "test", "bench"])
def test_make_knows_the_target(target: str) -> None:
    assert f"make {target.split()[0]}" in README
    planned = subprocess.run(
        ["make", "-n", *target.split()], cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    assert planned.returncode == 0, planned.stderr


def test_the_files_that_the_readme_links_are_there() -> None:
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_layout_in_the_readme_names_every_room() -> None:
    library = ROOT / "CovidCTDiagnosis" / "CovidCTDiagnosisLib"
    for room in library.iterdir():
        if room.is_dir() and any(room.glob("*.py")):
            assert f"{room.name}/" in README
