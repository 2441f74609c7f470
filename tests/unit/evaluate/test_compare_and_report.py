"""Two runs compared, and the page that people read."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_answer_file import file, stored
from test_benchmark_questions import make_pope
from test_benchmarks import CASES, ORACLE, at

from warren.cli.score import run_command
from warren.errors import DataError
from warren.evaluate.answer_file import AnswersOrigin, StoredAnswer, write_answers
from warren.evaluate.compare import compare_reports, render_comparison
from warren.evaluate.report_page import NUM_EXAMPLES
from warren.evaluate.score_answers import score_answers


def improved(name: str, share: float) -> list[StoredAnswer]:
    """Return the oracle's answers, a share of the wrong ones made right."""
    rows = stored(name)
    report = score_answers(name, at(CASES[name][0]), at(CASES[name][1]))
    truths = {row.get("key", key): str(row["truth"]) for key, row in report["per_question"].items()}
    generator = np.random.default_rng(0)
    return [
        StoredAnswer(row.key, row.question, truths.get(row.key, "?") if generator.random() < share else row.answer)
        for row in rows
    ]


def reports(folder: Path, name: str = "pope", share: float = 0.6) -> tuple[dict[str, Any], dict[str, Any]]:
    for number, rows in enumerate((stored(name), improved(name, share))):
        write_answers(file(folder, f"{number}.parquet"), rows, AnswersOrigin(name, "", "bunny", f"model {number}"))
    first, second = (score_answers(name, file(folder, f"{number}.parquet"), at(CASES[name][1])) for number in (0, 1))
    return json.loads(json.dumps(first)), json.loads(json.dumps(second))


@pytest.mark.parametrize("name", ["pope", "gqa", "mme"])
def test_a_better_run_is_shown_to_be_better(name: str, tmp_path: Path) -> None:
    first, second = reports(tmp_path, name, 1.0)
    rows = compare_reports(first, second)
    assert rows[0].conclusion == "better"
    assert compare_reports(second, first)[0].conclusion == "worse"
    for row in rows:
        assert row.comparison is not None
        assert row.corrected is not None
        assert row.comparison.difference == pytest.approx(row.second - row.first)
        assert row.corrected >= row.comparison.p_value
    text = render_comparison(rows, first, second, ("old|one", "new"))
    assert text.startswith(f"# {first['title']} (bunny): new against old|one")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == len(rows) + 1
    assert {line.replace("\\|", "").count("|") for line in table} == {10}


def test_the_same_run_twice_shows_nothing(tmp_path: Path) -> None:
    first, _ = reports(tmp_path)
    for row in compare_reports(first, first):
        assert row.conclusion == "no difference shown"
        assert row.comparison is not None
        assert (row.comparison.difference, row.corrected) == (0.0, 1.0)


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    first, second = reports(tmp_path)
    mme, _ = reports(tmp_path, "mme")
    with pytest.raises(DataError, match="differ in benchmark: 'pope' and 'mme'"):
        compare_reports(first, mme)
    second["measures"][0]["keys"][0] = "other"
    with pytest.raises(DataError, match="rest on different questions"):
        compare_reports(first, second)
    second["measures"].pop()
    with pytest.raises(DataError, match="only one run has"):
        compare_reports(first, second)
    nothing = {**first, "measures": []}
    with pytest.raises(DataError, match="its server scores it"):
        compare_reports(nothing, nothing)


def test_other_prompts_are_said(tmp_path: Path) -> None:
    first, second = reports(tmp_path)
    second["prompts"] = "lmms-eval"
    text = render_comparison(compare_reports(first, second), first, second, ("a", "b"))
    assert "The prompts differ: bunny and lmms-eval." in text


def test_the_compare_command_takes_scores_and_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = reports(tmp_path)
    for name, report in (("a.json", first), ("b.json", second)):
        (tmp_path / name).write_text(json.dumps(report))
    out = tmp_path / "compare.md"
    assert run_command(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "model 1 against model 0" in printed
    assert out.read_text().strip() == printed.strip()
    answers = [str(tmp_path / f"{number}.parquet") for number in (0, 1)]
    of_answers = ["--benchmark", "pope", "--reference", str(ORACLE / "pope")]
    assert run_command(["compare", *answers, *of_answers]) == 0
    assert capsys.readouterr().out.strip() == printed.strip()
    assert run_command(["compare", *answers]) == 1
    assert "for files of answers give --benchmark" in capsys.readouterr().err
    (tmp_path / "old.json").write_text('{"scores": {}}')
    assert run_command(["compare", str(tmp_path / "old.json"), answers[0]]) == 1
    assert "not a scores.json of this version" in capsys.readouterr().err


def test_the_report_has_everything_in_one_page(tmp_path: Path) -> None:
    make_pope(tmp_path / "data")
    rows = improved("pope", 0.3)
    rows[0] = StoredAnswer(rows[0].key, rows[0].question, "No <script>alert(1)</script> | no", 4, 0.5)
    rows[1] = StoredAnswer(rows[1].key, rows[1].question, error="HTTP 500 <b>")
    origin = AnswersOrigin("pope", "all", "bunny", "run <i> at step 5", {"model": "ab12"}, {"ray": "2.60"})
    write_answers(file(tmp_path), rows, origin)
    command = ["score", "--benchmark", "pope", "--answers", str(tmp_path / "answers.parquet")]
    command += [
        "--reference",
        str(tmp_path / "data"),
        "--data",
        str(tmp_path / "data"),
        "--report",
        str(tmp_path / "r"),
    ]
    assert run_command([*command, "--out", str(tmp_path / "s.json"), "--max-failed-fraction", "0.1"]) == 0
    html, markdown = ((tmp_path / "r" / name).read_text() for name in ("report.html", "report.md"))
    assert "<script>" not in html
    assert "<script>" not in markdown
    assert html.count("<figure") == html.count("data:image/jpeg;base64,")
    assert NUM_EXAMPLES < html.count("<figure") <= 2 * NUM_EXAMPLES
    assert not re.findall(r'(?:src|href)="(?!data:)', html), "the page needs nothing beside it"
    for text in (html, markdown):
        for fact in ("average_f1", "ab12", "2.60", "HTTP 500", "left out of every score", "0.50 s on average"):
            assert fact in text, fact
    assert (tmp_path / "r" / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert {line.count("|") for line in markdown.splitlines() if line.startswith("| splits")} == {5}


def test_a_report_without_scores_or_images(tmp_path: Path) -> None:
    command = ["score", "--benchmark", "vizwiz", "--answers", str(ORACLE / CASES["vizwiz"][0])]
    command += [
        "--reference",
        str(ORACLE / CASES["vizwiz"][1]),
        "--report",
        str(tmp_path),
        "--out",
        str(tmp_path / "s"),
    ]
    assert run_command(command) == 0
    assert "Only the benchmark's server scores" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "scores.png").exists()
