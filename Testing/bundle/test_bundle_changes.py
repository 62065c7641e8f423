"""A changed bundle says so in its version and model card."""

from __future__ import annotations

from CovidCTDiagnosisLib.bundle import changed_version, section, with_section

CARD = "# weights\n\nFor research.\n\n## Numbers\n\n0.98\n\n### Of folds\n\n0.7\n\n## Terms\n\nOpen.\n"


def test_a_change_stands_once_in_the_version() -> None:
    assert changed_version("1.2.3", "retrained") == "1.2.3+retrained"
    assert changed_version("1.2.3+retrained", "calibrated") == "1.2.3+retrained.calibrated"
    assert changed_version("1.2.3+retrained.calibrated", "retrained") == "1.2.3+retrained.calibrated"


def test_a_section_is_added_or_replaced_and_the_rest_stays() -> None:
    assert section(CARD, "Numbers") == "0.98\n\n### Of folds\n\n0.7\n\n" and not section(CARD, "Of folds")
    added = with_section(CARD, "Trained again", "- lungs")
    assert added == CARD + "\n## Trained again\n\n- lungs\n"
    assert with_section(added, "Trained again", "- lesions") == CARD + "\n## Trained again\n\n- lesions\n"
    assert with_section(added, "Numbers", "0.99").endswith("- lungs\n\n## Numbers\n\n0.99\n")
