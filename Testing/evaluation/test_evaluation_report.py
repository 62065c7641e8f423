"""`covid-ct evaluate report`: the table that it reads, and the page that it writes."""

from __future__ import annotations

import base64
import csv
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from CovidCTDiagnosisLib.__main__ import main
from CovidCTDiagnosisLib.bundle import default_bundle_folder, open_bundle
from CovidCTDiagnosisLib.errors import InputError
from CovidCTDiagnosisLib.evaluation.checklist import ITEMS
from CovidCTDiagnosisLib.evaluation.confusion import Confusion
from CovidCTDiagnosisLib.evaluation.predictions import Prediction, Predictions, read_predictions
from CovidCTDiagnosisLib.evaluation.reliability import reliability_curve
from CovidCTDiagnosisLib.evaluation.report import report
from CovidCTDiagnosisLib.evaluation.report_figures import (
    co_rads_counts,
    group_bars,
    involvement_boxes,
    reliability_figure,
    roc_figure,
)
from CovidCTDiagnosisLib.evaluation.roc import roc
from CovidCTDiagnosisLib.pipeline.appearance import UNRELIABLE
from PIL import Image
from sklearn.metrics import roc_auc_score

Row = dict[str, object]


@pytest.fixture(autouse=True)
def _same_signals_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)


def rows(count: int = 60, **columns: Callable[[int, int], object]) -> list[Row]:
    """Scans of which every third is COVID-19, with more columns by number and truth."""
    rng = np.random.default_rng(0)
    result: list[Row] = []
    for n in range(count):
        covid = int(n % 3 == 0)
        row: Row = {"series": f"s{n}", "probability": round(float(rng.beta(2 + 2 * covid, 4 - 2 * covid)), 4)}
        row |= {"label": "", "warnings": "", "covid": covid}
        result.append(row | {name: value(n, covid) for name, value in columns.items()})
    return result


def write(path: Path, table: list[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path


ALL = {
    "co_rads": lambda n, covid: n % 5 + 1,
    "centre": lambda n, covid: "Leuven <1>" if n % 2 else "Liège",
    "split": lambda n, covid: "test" if n > 30 else "validation",
    "patient": lambda n, covid: f"p{n}",
    "involvement_percent": lambda n, covid: 5 + 20 * covid + n % 7,
}


# The table


def test_scans_that_were_learned_from_are_not_judged(tmp_path: Path) -> None:
    """A perfect answer on what was learned from must not flatter the page."""
    learned = [Prediction(f"t{n}", float(n % 2), n % 2, split=("train", "validation")[n % 3 == 0]) for n in range(30)]
    kept = [Prediction(f"s{n}", (0.8, 0.3, 0.6, 0.4)[n % 4], n % 2, split=("test", "")[n % 5 == 0]) for n in range(40)]
    predictions = Predictions([*learned, *kept], [])
    assert predictions.tested.scans == kept
    assert [s.split for s in predictions.to_fit.scans] == ["validation"] * 10
    assert Predictions([*learned[1::3], *kept], []).to_fit.scans == kept
    page = report(predictions, 0.5, replicates=20)
    assert "40 scans, 20 of them COVID-19" in page and "30 scans for training or validation count nowhere" in page
    assert "70 scans given, 70 diagnosed, 40 of them judged here" in page
    with pytest.raises(InputError, match="Without the scans of the split train, validation no COVID-19"):
        _ = Predictions([*learned, *kept[::2]], []).tested


def test_a_scan_is_called_as_the_table_says_where_rounding_hides_it() -> None:
    """Of 0.54806, written as 0.5481, a threshold of 0.54808 had not been reached."""
    scan = Prediction("s", 0.5481, 0, called=False)
    assert not scan.is_called(0.54808) and Prediction("s", 0.5481, 0).is_called(0.54808)
    others = [Prediction(f"s{n}", (0.8, 0.3)[n % 2], 1 - n % 2, called=n % 2 == 0) for n in range(20)]
    page = report(Predictions([scan, *others], []), 0.54808, replicates=20)
    assert "1.000" in page.split("Specificity")[1][:200]


def test_a_table_is_read_as_it_stands(tmp_path: Path) -> None:
    table = rows(**ALL)
    table[4]["probability"] = ""
    table[6]["co_rads"] = 0  # not interpretable
    table[5]["co_rads"] = table[5]["involvement_percent"] = table[5]["split"] = ""
    read = read_predictions(write(tmp_path / "t.csv", table))
    assert [(s.name, s.covid) for s in read.undiagnosed] == [("s4", 0)] and len(read.scans) == 59
    assert read.scans[0] == Prediction("s0", float(str(table[0]["probability"])), 1, 1, "Liège", "validation", 25, "p0")
    assert (read.scans[4].co_rads, read.scans[4].involvement_percent, read.scans[4].split) == (None, None, "")
    assert read.scans[5].co_rads == 0
    assert read.covid.sum() == 20 and read.probability.shape == (59,)


def test_names_may_be_scans_and_other_columns_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfscan,probability,covid,x\na,0.5,1,\nb,0.25,0,y\n\n")
    assert [s.name for s in read_predictions(tmp_path / "t.csv").scans] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name,probability,covid\n", "no column series"),
        ("series,covid\n", "no column probability"),
        ("series,probability\n", "no column covid"),
        ("series,probability,covid\na,0.5,1\nb,1.2,0\n", "line 3: probability is 1.2, not a number from 0 to 1"),
        ("series,probability,covid\na,nan,1\n", "line 2: probability is nan"),
        ("series,probability,covid\na,0.5,yes\n", "line 2: covid is yes"),
        ("series,probability,covid\na,0.5,0.5\n", "line 2: covid must be 1 or 0"),
        ("series,probability,covid\na,0.5,\n", "line 2: covid must be 1 or 0"),
        ("series,probability,covid\na,0.5,1\na,0.5,0\n", "line 3: series a stands twice"),
        ("series,probability,covid\n,0.5,1\n", "line 2: series is empty"),
        ("series,probability,covid,co_rads\na,0.5,1,7\n", "co_rads is 7, not a number from 0 to 6"),
        ("series,probability,covid,co_rads\na,0.5,1,2.5\n", "whole number"),
        ("series,probability,covid,patient,split\na,0.5,1,p,train\nb,0.5,0,p,test\n", "the patient of line 2 stands"),
        ("series,probability,covid\na,0.5,1\nb,0.1,1\n", "needs COVID-19 and other scans"),
        ("series,probability,covid\n", "needs COVID-19 and other scans"),
        ("series,probability,covid\n,,\n\na,0.5,1\nb,2,0\n", "line 5: probability is 2"),
        ("\nsep=;\nseries;probability;covid\na;0,5;1\nb;2;0\n", "line 5: probability is 2"),
        ('series,probability,covid,warnings\na,0.5,1,"no\nb,0.1,0,\nc,0.9,1,\n', "t.csv, line 2: a quote"),
        ("series,probability,covid\na,,77\nb,0.1,0\n", "line 2: covid is 77"),
        ("series,probability,covid,split\na,0.5,1,train/test\n", "line 2: the split is train/test: to learn"),
        ("series,probability,covid,split\na,0.5,1,External validation\n", "line 2: the split is external validation"),
    ],
)
def test_a_bad_table_is_answered_in_one_sentence(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=re.escape(complaint)):
        read_predictions(tmp_path / "t.csv")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"series,probability,covid\n\x00\n"])
def test_what_is_no_table(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(
        InputError, match="is not a file" if content is None else "t.csv (cannot be read as a table|needs)"
    ):
        read_predictions(tmp_path / "t.csv")


# The page


def read_all(tmp_path: Path, **columns: Callable[[int, int], object]) -> Predictions:
    return read_predictions(write(tmp_path / "t.csv", rows(**columns)))


def pictures(page: str) -> list[tuple[str, bytes]]:
    found = re.findall(r'src="data:image/([a-z+]+);base64,([^"]+)"', page)
    return [(kind, base64.b64decode(data)) for kind, data in found]


def test_the_page_has_a_figure_for_everything_that_the_table_knows(tmp_path: Path, tiny_bundle: Path) -> None:
    predictions = read_all(tmp_path, **ALL)
    page = report(predictions, 0.5, open_bundle(tiny_bundle), replicates=50)
    assert len(re.findall("<figure>", page)) == 7  # ROC, reliability, decisions, CO-RADS twice, centres, involvement
    assert all(ElementTree.fromstring(data).tag.endswith("svg") for kind, data in pictures(page))
    assert (
        f"AUC (DeLong)</td><td>{roc_auc_score(predictions.tested.covid, predictions.tested.probability):.3f} [" in page
    )
    assert "Leuven &lt;1&gt;" in page and "<1>" not in page
    called, covid = predictions.tested.probability >= 0.5, predictions.tested.covid
    true, false = (called & (covid == 1)).sum(), (called & (covid == 0)).sum()
    assert f"<td>{true} and {false}</td>" in page
    assert "http" not in re.sub("http://www.w3.org|http://purl.org|http://creativecommons.org", "", _text(page))


def _text(page: str) -> str:
    return re.sub(r'src="data:[^"]+"', "", page)


def test_what_the_table_does_not_know_is_not_on_the_page(tmp_path: Path) -> None:
    page = report(read_all(tmp_path), 0.5, replicates=50)
    assert len(re.findall("<figure>", page)) == 3
    for title in ("By CO-RADS", "By centre", "Involvement</h2>"):
        assert title not in page


def test_every_item_of_the_checklist_is_there_and_facts_are_filled_in(tmp_path: Path, tiny_bundle: Path) -> None:
    assert [item.number for item in ITEMS if item.number] == list(range(1, 43))
    # Every item of STARD 2015 too.
    stard = {n for item in ITEMS for n in item.stard.split(", ") if n}
    lettered = {f"{n}{letter}" for n in (10, 12, 13, 21) for letter in "ab"}
    assert stard == {str(n) for n in range(1, 31) if n not in (10, 12, 13, 21)} | lettered
    bundle = open_bundle(tiny_bundle)
    page = report(read_all(tmp_path, **ALL), 0.5, bundle, replicates=50)
    for item in ITEMS:
        assert f"<tr><td>{item.number or ''}</td><td>{item.stard}</td>" in page
    assert "29 scans, 9 COVID-19" in page and f"{bundle.name} {bundle.version}" in page
    assert "test: 29, validation: 31" in page and "2 centres: Leuven" in page
    for fact in (
        "patients: 60 in 60 scans, none in two splits",
        "every scan with a probability is called</span>",
        " true positives, ",
        "a probability of 0.5 or more",
        "CO-RADS by status: on this page",
        "percentage of involvement, median",
    ):
        assert fact in page, fact
    assert page.count("to be stated by the authors") > 10
    shipped = report(read_all(tmp_path, **ALL), 0.5, open_bundle(), replicates=50)
    assert "involvement: mean of 2 networks" in shipped and "none</span>" not in shipped
    assert "the bundle was last written with PyTorch" in shipped and "diagnosis --spoil" in shipped
    for fact in (
        "lungs: random",
        "seed 0",
        "learned from",
        "classifier: averaged weights",
        "classifier: the CVAE",
        "involvement: the contracting path&#x27;s from photographs",
        "lesions: 600 + 1000 steps, then 800 more, seed 0",
        "2 centres: Leuven",
    ):
        assert fact in shipped, fact
    alone = report(read_all(tmp_path), 0.25, replicates=50)
    assert "a probability of 0.25 or more" in alone and "CO-RADS by status" not in alone
    assert "patients: " not in alone and "lungs: random" not in alone


def test_examples_are_the_surest_of_each_kind_wrong_ones_first(tmp_path: Path) -> None:
    scans = [Prediction(f"c{n}", p, 1) for n, p in enumerate((0.9, 0.8, 0.3))]
    scans += [Prediction(f"n{n}", p, 0) for n, p in enumerate((0.95, 0.6, 0.7, 0.55, 0.1))]
    Image.new("L", (8, 8)).save(tmp_path / "n0.png")
    lost = [Prediction(f"lost {n}", math.nan, covid, split=split) for n, covid, split in ((1, 1, ""), (2, 0, "train"))]
    page = report(Predictions(scans, lost), 0.5, pictures=tmp_path, replicates=50)
    shown = page[page.index("<h2>Examples") : page.index("<h2>Checklist")]
    assert re.findall(r"([cn]\d): probability", re.sub(r'alt="[^"]*"', "", shown)) == [
        *("n0", "n2", "n1"),
        "c2",
        *("c0", "c1"),
        "n4",
    ]
    assert [kind for kind, _ in pictures(shown)] == ["png"]
    assert "1 more (1 COVID-19) have no probability and count nowhere: lost 1. Were all" in page
    assert "sensitivity would be 0.500 and specificity 0.200" in page  # 2 of 4, 1 of 5


def test_pictures_come_from_the_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "secret.png")
    scans = [Prediction("../secret", 0.9, 1), Prediction("x" * 300, 0.8, 1), Prediction("n", 0.1, 0)]
    page = report(Predictions(scans, []), 0.5, pictures=tmp_path / "inside", replicates=20)
    assert all(kind != "png" for kind, _ in pictures(page)) and "../secret: probability 0.9000" in page


@pytest.mark.parametrize("probabilities", [(1, 1, 1, 0, 0, 0), (0.5,) * 6, (0.9, 0.8, 0.7, 0.3)], ids=str)
def test_scans_that_allow_few_numbers_still_give_a_page(probabilities: tuple[float, ...]) -> None:
    covid = [1] + [0] * 3 if len(probabilities) == 4 else [1] * 3 + [0] * 3
    scans = [Prediction(f"{n}", p, c) for n, (p, c) in enumerate(zip(probabilities, covid, strict=True))]
    page = report(Predictions(scans, []), 0.5, replicates=20)
    legend = pictures(page)[0][1].decode()
    assert "Sensitivity" in page and "False positive rate" not in legend
    assert ("AUC (DeLong)" in page) == ("AUC" in legend) == (len(covid) == 6)
    assert "AUC (binormal" not in page  # none of them has scores that differ in both groups


def test_names_with_dollars_are_drawn_as_written(tmp_path: Path) -> None:
    predictions = read_all(tmp_path, centre=lambda n, covid: r"cost $\foo$" if n % 2 else "A$B$")
    page = report(predictions, 0.5, replicates=20)
    assert any(b"A$B$" in data and rb"cost $\foo$" in data for _, data in pictures(page))


@pytest.mark.filterwarnings("error")
def test_names_in_any_script_are_written_without_complaint(tmp_path: Path) -> None:
    predictions = read_all(tmp_path, centre=lambda n, covid: "武汉" if n % 2 else "서울")
    page = report(predictions, 0.5, replicates=20)
    assert any("武汉".encode() in data and "서울".encode() in data for _, data in pictures(page))


def test_the_checklist_names_a_bundle_only_if_it_made_the_predictions(tmp_path: Path, tiny_bundle: Path) -> None:
    table, page = write(tmp_path / "t.csv", rows()), tmp_path / "p.html"
    arguments = ["evaluate", "report", str(table), "--output", str(page)]
    assert main(arguments) == 0
    assert "see its model card" not in page.read_text("utf-8")
    assert main([*arguments, "--bundle", str(tiny_bundle)]) == 0
    assert "tiny 0.0.1" in page.read_text("utf-8")


def test_a_table_that_names_its_bundle_is_judged_as_its_own(
    tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "p.html"
    shipped = open_bundle(default_bundle_folder())
    table = write(tmp_path / "t.csv", rows(bundle=lambda n, covid: shipped.identity))
    arguments = ["evaluate", "report", str(table), "--output", str(page)]
    assert main(arguments) == 0
    assert f"{shipped.name} {shipped.version}" in page.read_text("utf-8")
    assert main([*arguments, "--bundle", str(tiny_bundle)]) == 3
    assert f"not of {open_bundle(tiny_bundle).identity}" in capsys.readouterr().err
    table = write(tmp_path / "t.csv", rows(bundle=lambda n, covid: "elsewhere 1.0.0 0123456789ab"))
    assert main(arguments) == 3
    assert main([*arguments, "--threshold", "0.5"]) == 0
    assert "see its model card" not in page.read_text("utf-8")


def test_figures_draw_the_numbers(tmp_path: Path) -> None:
    predictions = read_all(tmp_path, **ALL)
    probability, covid = predictions.probability, predictions.covid
    curve = roc(probability, covid, replicates=50)
    (axes,) = roc_figure(curve, "AUC", (0.2, 0.7)).axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), curve.true_positive_rate)
    tied = np.round(probability, 1)
    (axes,) = roc_figure(roc(tied, covid, replicates=50), "AUC", (0.2, 0.7)).axes
    drawn = axes.lines[0]
    assert drawn.get_drawstyle() == "default"
    assert np.trapezoid(drawn.get_ydata(), drawn.get_xdata()) == pytest.approx(roc_auc_score(covid, tied))
    assert axes.lines[-1].get_xydata().tolist() == [[0.2, 0.7]]
    bins = reliability_curve(probability, covid)
    (axes,) = reliability_figure(bins).axes
    assert [int(text.get_text()) for text in axes.texts] == [b.cases for b in bins]
    (axes,) = co_rads_counts(predictions.scans).axes
    assert sum(patch.get_height() for patch in axes.patches) == 60 and axes.get_ylabel() == "patients"
    twice = [replace(scan, name=f"{scan.name}-again") for scan in predictions.scans]
    (axes,) = co_rads_counts([*predictions.scans, *twice]).axes
    assert sum(patch.get_height() for patch in axes.patches) == 60
    (axes,) = co_rads_counts([replace(scan, patient="") for scan in [*predictions.scans, *twice]]).axes
    assert sum(patch.get_height() for patch in axes.patches) == 120 and axes.get_ylabel() == "scans"
    (axes,) = group_bars([("a", Confusion(3, 1, 4, 2)), ("no covid", Confusion(0, 1, 3, 0))], "group").axes
    assert [len(c.lines[0].get_xdata()) for c in axes.containers] == [2, 1, 2]
    (axes,) = involvement_boxes(predictions.scans).axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["test", "validation"] and len(axes.patches) == 4


# The command


def test_the_command(tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(tmp_path / "t.csv", rows(**ALL))
    page = tmp_path / "page.html"
    arguments = ["evaluate", "report", str(table), "--output", str(page), "--bundle", str(tiny_bundle)]
    assert main([*arguments, "--threshold", "0.4"]) == 0
    out = capsys.readouterr().out
    assert "29 scans (9 COVID-19), threshold 0.4" in out and "AUC" in out and str(page) in out
    assert "probability of 0.4 on" in page.read_text("utf-8") and str(tmp_path) not in page.read_text("utf-8")


@pytest.mark.parametrize(
    "wrong", [("--threshold", "1.5"), ("--pictures", "nowhere"), ("--output", "page.txt"), ("--output", "no/page.html")]
)
def test_a_wrong_call(wrong: tuple[str, str], tmp_path: Path, tiny_bundle: Path) -> None:
    table = write(tmp_path / "t.csv", rows())
    arguments = ["evaluate", "report", str(table), "--output", str(tmp_path / "p.html"), "--bundle", str(tiny_bundle)]
    assert main([*arguments, *wrong]) == 2
    assert {p.name for p in tmp_path.iterdir()} == {"t.csv"}


def test_labels_that_another_threshold_gave_are_not_judged_at_this_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table of before there was a column bundle; or one that names it for some rows only."""
    page, shipped = tmp_path / "p.html", open_bundle()
    above = shipped.settings["diagnosis"]["threshold"] + 0.1
    label = {True: "COVID-19", False: "not COVID-19"}
    for named in (lambda n, covid: "", lambda n, covid: shipped.identity if n == 3 else ""):
        table = rows(label=lambda n, covid: "", bundle=named)
        for row in table:
            row["label"] = label[float(str(row["probability"])) >= above]
        table[0] |= {"probability": above - 0.05, "label": label[False]}
        arguments = ["evaluate", "report", str(write(tmp_path / "t.csv", table)), "--output", str(page)]
        assert main(arguments) == 3 and "of another bundle" in capsys.readouterr().err
        assert main([*arguments, "--threshold", str(above)]) == 0


def test_a_row_for_scans_whose_centre_is_not_stated() -> None:
    scans = [Prediction(f"{n}", n / 20, n % 2, centre="Gent" if n < 12 else "") for n in range(20)]
    page = report(Predictions(scans, []), 0.5, replicates=20)
    table = page[page.index("<h2>By centre") :]
    assert "<td>Gent</td><td>12</td>" in table and "<td>not stated</td><td>8</td>" in table


@pytest.mark.parametrize(
    ("split", "judged"),
    [(s, False) for s in ("Training set", "val-2", "fold 1 train", "trained", "TrainSet", "trainval", "valset", "TRN")]
    + [(s, True) for s in ("external", "Testset", "holdout", "hospital B")],
)
def test_splits_are_known_by_how_a_word_begins(split: str, judged: bool, tmp_path: Path) -> None:
    table = rows(split=lambda n, covid: split if n < 9 else "test")
    assert len(read_predictions(write(tmp_path / "t.csv", table)).tested.scans) == (60 if judged else 51)


def test_letters_that_no_picture_may_hold_are_left_out() -> None:
    scans = [Prediction(f"{n}", n / 20, n % 2, centre=f"G\x08{n % 3}$") for n in range(20)]
    drawn = [data for _, data in pictures(report(Predictions(scans, []), 0.5, replicates=20))]
    assert any(b"G1" in data for data in drawn)
    for data in drawn:
        ElementTree.fromstring(data)


def test_what_few_cases_cannot_tell_is_not_told_as_certain() -> None:
    """Eight COVID-19 scans that nothing overlaps: no rate at 0.95 with an interval of no width, no binormal area."""
    scans = [Prediction(f"{n}", 0.9 - 0.05 * n, int(n < 8)) for n in range(16)]
    page = report(Predictions(scans, []), 0.5, replicates=20)
    assert (
        re.search(r"0\.000 \[0\.000, 0\.\d+\] \(a rough interval: below 40 COVID-19 scans", page)
        and "it is too narrow" in page
        and "Demidenko" not in page
    )
    scans += [Prediction(f"more{n}", 0.3 + 0.009 * n, n % 2) for n in range(70)]
    page = report(Predictions(scans, []), 0.5, replicates=20)
    assert "a rough interval" not in page and "it is too narrow" not in page
    assert "AUC (binormal, Demidenko)" in page and "; supposes that the log odds" in page


def test_warned_scans_and_the_splits_that_were_judged_are_named(tmp_path: Path) -> None:
    table = rows(split=lambda n, covid: ("dev", "tuning", "external")[n % 3 if n % 2 else 2])
    for row in table[:40]:
        row["warnings"] = f"This scan is noisier: {UNRELIABLE}." if row["split"] == "external" else "Left out: 1.png."
    judged = [row for row in table if row["split"] == "external"]
    judged[0]["warnings"] = "Left out: 1_mask.png, probably masks (too few grey levels)."
    page = report(read_predictions(write(tmp_path / "t.csv", table)), 0.5, replicates=20)
    warned = sum(UNRELIABLE in row["warnings"] for row in judged)
    assert f"{len(judged)} scans, " in page and "of the split external." in page
    assert warned and f"Of {warned} the program warned" in page
