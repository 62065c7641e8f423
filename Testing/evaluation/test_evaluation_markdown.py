"""Tables as Markdown, and how they come into documents."""

from __future__ import annotations

from pathlib import Path

from CovidCTDiagnosisLib.evaluation.markdown import markdown_table, write_markdown


def test_cells_stay_in_their_columns(tmp_path: Path) -> None:
    found = markdown_table(("What", "Measured"), [("Dice\n(of lungs)", "0.9 | 0.8"), ("", "1")])
    assert found == "| What | Measured |\n| --- | --- |\n| Dice<br>(of lungs) | 0.9 \\| 0.8 |\n|  | 1 |\n"
    write_markdown(tmp_path / "t.md", ("What", "Measured"), [("a", "b")])
    assert (tmp_path / "t.md").read_text() == "| What | Measured |\n| --- | --- |\n| a | b |\n"
