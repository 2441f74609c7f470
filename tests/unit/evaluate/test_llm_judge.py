"""Judged benchmarks: a judge over HTTP, its failures, its cache, and scores that equal lmms-eval's.

tests/golden/judged_scores.json was made by the packages that it names.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_benchmark_questions import PNG, put
from test_benchmarks import approx

from judge_server import JudgeServer, Refusal, judging
from warren.cli.score import main, run_command
from warren.evaluate import endpoint_client
from warren.evaluate.benchmark_questions import questions
from warren.evaluate.score_answers import measures_of
from warren.evaluate.score_formatting import numbers
from warren.storage import Location

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "judged_scores.json").read_text())
JUDGED = ("mmvet", "llava_bench", "hallusionbench")


@pytest.fixture(autouse=True)
def nobody_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_client, "_jittered", lambda longest_s: 0.0)


def make_reference(name: str, folder: Path) -> Path:
    """Write a benchmark's files as they are published, and answers of a model."""
    rows = GOLDEN[name]["rows"]
    if name == "mmvet":
        put(folder / "mm-vet.json", rows)
        answers = GOLDEN[name]["answers"]
    elif name == "hallusionbench":
        put(folder / "HallusionBench.json", rows)
        answers = GOLDEN[name]["answers"]
    else:
        asked = [
            {"question_id": n, "image": f"{n}.jpg", "text": r["question"], "category": r["category"]}
            for n, r in enumerate(rows)
        ]
        put(folder / "questions.jsonl", asked)
        put(folder / "context.jsonl", [{"image": f"{n}.jpg", "caption": row["caption"]} for n, row in enumerate(rows)])
        put(folder / "answers_gpt4.jsonl", [{"question_id": n, "text": r["gpt_answer"]} for n, r in enumerate(rows)])
        put(folder / "rule.json", GOLDEN[name]["rules"])
        answers = {str(n): f"Model's answer {n}." for n in range(len(rows))}
    put(folder / "model.jsonl", [{"question_id": key, "text": text} for key, text in answers.items()])
    return folder


def run(name: str, folder: Path, *options: str) -> tuple[int, dict[str, Any] | None]:
    """Score the answers of a folder with the command line; returns its exit code and the scores."""
    out = folder / "out" / "scores.json"
    out.unlink(missing_ok=True)
    arguments = ["--benchmark", name, "--answers", f"{folder}/model.jsonl", "--reference", str(folder)]
    code = main([*arguments, "--convention", "lmms-eval", "--out", str(out), *options])
    return code, json.loads(out.read_text()) if out.exists() else None


def scripted(name: str) -> Callable[[str, int], str]:
    keys = {prompt: key for key, prompt in GOLDEN[name]["prompts"].items()}
    return lambda prompt, _: str(GOLDEN[name]["judgements"][keys[prompt]])


def judge(server: JudgeServer) -> tuple[str, ...]:
    return ("--judge", server.url, "--judge-model", "judge-1")


@pytest.mark.parametrize("name", JUDGED)
def test_judged_scores_equal_lmms_evals_and_scoring_again_asks_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, golden = make_reference(name, tmp_path), GOLDEN[name]
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    with judging(scripted(name)) as server:
        code, report = run(name, folder, *judge(server), "--judge-key-env", "JUDGE_KEY")
        assert (code, server.keys) == (0, {"Bearer sk-secret"})
        assert sorted(server.prompts) == sorted(golden["prompts"].values()), "asked in the package's words"
        assert all(body["temperature"] == 0 and body["model"] == "judge-1" for body in server.bodies)
        num_asked = len(server.bodies)
        assert report is not None
        assert (report["judge"]["model"], report["judge"]["num_asked"]) == ("judge-1", num_asked)
        assert all(prompt for prompt in report["judge"]["prompts"].values())
        assert "sk-secret" not in json.dumps(report)
        assert not any("sk-secret" in file.read_text() for file in (folder / "out").rglob("*.json"))
        _, again = run(name, folder, *judge(server))
        assert len(server.bodies) == num_asked, "everything was in the cache"
        assert again is not None
        assert (again["judge"]["num_asked"], again["judge"]["num_cached"]) == (0, num_asked)
        assert again["scores"] == report["scores"]
        run(name, folder, "--judge", server.url, "--judge-model", "judge-2")
        assert len(server.bodies) == 2 * num_asked, "another judge is asked"
    scores = report["scores"]
    if name == "mmvet":
        assert scores["gpt_eval_score"] == pytest.approx(golden["overall"])
        assert {k: r["score"] for k, r in report["per_question"].items()} == approx(golden["scores"])
        logged = {frozenset(key.split("_")): value for key, value in golden["logged"].items()}
        for group, value in scores["integrations"].items():
            assert value == pytest.approx(logged[frozenset(group.split("_"))])
        assert scores["capabilities"]["know"] == pytest.approx(golden["logged"]["know"])
    else:
        assert scores == approx(golden["scores"] if name == "llava_bench" else golden["judged"])
    for measure in measures_of(report):
        expected = dict(numbers(scores))[measure.name]
        assert measure.value == pytest.approx(expected, abs=0.05 if name == "llava_bench" else 1e-4)


@pytest.mark.parametrize("name", JUDGED)
def test_without_a_judge_the_file_for_it_is_written_and_scores_are_absent(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = run(name, make_reference(name, tmp_path), "--judge-model", "judge-1")
    assert code == 0
    assert report is not None
    assert report["scores"] is None
    assert report["measures"] == []
    lines = [json.loads(line) for line in (tmp_path / "out/scores.judge.jsonl").read_text().splitlines()]
    assert {line["custom_id"]: line["body"]["messages"][0]["content"] for line in lines} == GOLDEN[name]["prompts"]
    assert {(line["body"]["model"], line["url"]) for line in lines} == {("judge-1", "/v1/chat/completions")}
    assert "no scores without --judge" in capsys.readouterr().out


def test_a_busy_judge_is_asked_again(tmp_path: Path) -> None:
    busy = [Refusal(429, headers={"Retry-After": "0"}), Refusal(503, headers={"Retry-After": "0.01"})]
    golden = scripted("mmvet")
    with judging(lambda prompt, before: busy[before] if before < 2 else golden(prompt, before)) as server:
        code, report = run("mmvet", make_reference("mmvet", tmp_path), *judge(server))
    assert code == 0
    assert report is not None
    assert report["scores"]["gpt_eval_score"] == pytest.approx(GOLDEN["mmvet"]["overall"])
    assert len(server.bodies) == 3 * report["num_questions"]


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("mmvet", "I would say 0.5", "cannot be read: 'I would say 0.5'"),
        ("mmvet", "1.5", "cannot be read: '1.5'"),
        ("mmvet", "nan", "cannot be read"),
        ("mmvet", "", "cannot be read: ''"),
        ("llava_bench", "Assistant 1: 8, Assistant 2: 7", "cannot be read"),
        ("llava_bench", "8\n7", "cannot be read"),
        ("llava_bench", "80 70", "cannot be read"),
        ("hallusionbench", "The prediction is fine.", "cannot be read"),
        ("mmvet", Refusal(400, "too long"), "HTTP 400: too long"),
        ("mmvet", Refusal(200, "<html>"), "what is not JSON"),
        ("mmvet", Refusal(200, '{"choices": []}'), "has no text"),
        ("mmvet", Refusal(200, '{"choices": [{"message": {"content": null}}]}'), "has no text"),
    ],
)
def test_a_judgement_that_says_nothing_is_a_failed_row_and_never_a_zero(
    name: str, bad: str | Refusal, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden, prompts = scripted(name), GOLDEN[name]["prompts"]
    lost = next(iter(prompts))
    with judging(lambda prompt, before: bad if prompt == prompts[lost] else golden(prompt, before)) as server:
        folder = make_reference(name, tmp_path)
        assert run(name, folder, *judge(server)) == (1, None), "no failure is allowed by default"
        error = capsys.readouterr().err
        assert f"1 of {len(prompts)} answers have no judgement ({lost!r}: " in error
        assert message in error
        asked = len(server.bodies)
        code, report = run(name, folder, *judge(server), "--max-failed-fraction", "0.5")
        assert set(server.prompts[asked:]) == {prompts[lost]}, "the others were kept"
    assert code == 0
    assert report is not None
    assert (report["num_failed"], report["failed"], list(report["judge"]["failed"])) == (1, [lost], [lost])
    assert report["num_answered"] == len(prompts) - 1
    assert lost not in report["per_question"]
    overall = report["measures"][0]
    assert len(overall["keys"]) == len(prompts) - 1
    if name == "mmvet":
        others = [value for key, value in GOLDEN[name]["scores"].items() if key != lost]
        assert report["scores"]["gpt_eval_score"] == pytest.approx(100 * sum(others) / len(others))


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_a_judge_that_refuses_everything_ends_the_run_at_once(
    status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with judging(lambda prompt, before: Refusal(status, "no such model")) as server:
        assert run("mmvet", make_reference("mmvet", tmp_path), *judge(server)) == (1, None)
        assert len(server.bodies) <= 8
    message = f"HTTP {status}: no such model: check --judge, --judge-model and --judge-key-env"
    assert message in capsys.readouterr().err


def test_only_so_many_requests_are_in_flight(tmp_path: Path) -> None:
    golden = scripted("mmvet")
    with judging(golden, pause_s=0.05) as server:
        assert run("mmvet", make_reference("mmvet", tmp_path), *judge(server))[0] == 0
    assert 1 < server.most_open <= 8


def test_a_judge_that_is_down_ends_the_run_and_what_it_wrote_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = scripted("llava_bench")
    folder = make_reference("llava_bench", tmp_path)
    with judging(lambda prompt, before: Refusal(502, "down")) as server:
        assert run("llava_bench", folder, *judge(server)) == (1, None)
    assert "502: down" in capsys.readouterr().err
    with judging(golden) as server:
        assert run("llava_bench", folder, *judge(server))[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--judge", "127.0.0.1:8000", "--judge-model", "m"), "--judge is '127.0.0.1:8000'; it is a URL such as"),
        (("--judge", "http://[::1", "--judge-model", "m"), "--judge is 'http://[::1', which is not a URL"),
        (("--judge", "http://127.0.0.1:9/v1"), "needs --judge-model"),
        (
            ("--judge", "http://h/v1", "--judge-model", "m", "--judge-key-env", "NO_SUCH_KEY"),
            "NO_SUCH_KEY, which is not set",
        ),
        (("--judge", "http://me:secret@h/v1", "--judge-model", "m"), "give the key by --judge-key-env VARIABLE"),
        (("--judge-cache", "x"), "need --judge URL"),
        (("--judge", "http://h/v1", "--judge-model", "m", "--convention", "bunny"), "needs no judge"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("mmvet", make_reference("mmvet", tmp_path), *options) == (1, None)
    error = capsys.readouterr().err
    assert message in error
    assert "secret" not in error


def test_a_damaged_judgement_in_the_cache_is_asked_for_again(tmp_path: Path) -> None:
    with judging(scripted("mmvet")) as server:
        folder = make_reference("mmvet", tmp_path)
        run("mmvet", folder, *judge(server), "--judge-cache", f"{tmp_path}/kept")
        files = sorted((tmp_path / "kept").iterdir())
        for file, content in zip(files, ("", "{}", '{"text": 3}', '{"text": "nothing"}', "[]"), strict=False):
            file.write_text(content)
        asked = len(server.bodies)
        _, report = run("mmvet", folder, *judge(server), "--judge-cache", f"{tmp_path}/kept")
    assert len(server.bodies) - asked == 5
    assert report is not None
    assert report["scores"]["gpt_eval_score"] == pytest.approx(GOLDEN["mmvet"]["overall"])


def test_reports_name_the_judge_and_comparisons_warn_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden, lost = scripted("mmvet"), GOLDEN["mmvet"]["prompts"]["3"]
    with judging(lambda prompt, before: "?" if prompt == lost else golden(prompt, before)) as server:
        folder = make_reference("mmvet", tmp_path)
        options = ("--max-failed-fraction", "0.5", "--report", f"{tmp_path}/page")
        run("mmvet", folder, *judge(server), *options)
        page = (tmp_path / "page/report.md").read_text()
        assert f"judge-1 at {server.url}" in page
        assert "the judgement cannot be read: '?'" in page
        (tmp_path / "out/scores.json").rename(tmp_path / "first.json")
        run("mmvet", folder, "--judge", server.url, "--judge-model", "judge-2", *options)
    capsys.readouterr()
    assert run_command(["compare", f"{tmp_path}/first.json", f"{tmp_path}/out/scores.json"]) == 0
    assert "The judges differ: judge-1 and judge-2." in capsys.readouterr().out
    assert run_command(["compare", f"{tmp_path}/first.json", f"{tmp_path}/first.json"]) == 0
    assert "The judge" not in capsys.readouterr().out
    run("mmvet", folder)
    assert run_command(["compare", *[f"{tmp_path}/out/scores.json"] * 2]) == 1
    assert "score with --judge" in capsys.readouterr().err


def test_failed_requests_of_the_model_are_not_judged(tmp_path: Path) -> None:
    from warren.evaluate.answer_file import AnswersOrigin, StoredAnswer, write_answers

    make_reference("mmvet", tmp_path)
    stored = [
        StoredAnswer(key, "q", error="timeout") if key == "0" else StoredAnswer(key, "q", text)
        for key, text in GOLDEN["mmvet"]["answers"].items()
    ]
    write_answers(Location.parse(f"{tmp_path}/model.parquet"), stored, AnswersOrigin("mmvet"))
    with judging(scripted("mmvet")) as server:
        code, report = run(
            "mmvet", tmp_path, *judge(server), "--answers", f"{tmp_path}/model.parquet", "--max-failed-fraction", "0.2"
        )
    assert code == 0
    assert report is not None
    assert (report["failed"], len(server.bodies)) == (["0"], len(stored) - 1)


def test_judged_benchmarks_are_asked_in_their_own_words(tmp_path: Path) -> None:
    for name in JUDGED:
        make_reference(name, tmp_path / name)
        for row in GOLDEN[name]["rows"]:
            image = GOLDEN[name]["rows"][row]["imagename"] if name == "mmvet" else row.get("filename")
            if image:
                put(tmp_path / name / "images" / image.removeprefix("./"), PNG)
        for n in range(5):
            put(tmp_path / name / "images" / f"{n}.jpg", PNG)
        found = list(questions(name, Location.parse(str(tmp_path / name)), None, "lmms-eval"))
        assert {question.key for question in found} == set(GOLDEN[name]["prompts"])
        assert all(len(question.images) == 1 for question in found)
    assert found[0].text == GOLDEN["hallusionbench"]["rows"][0]["question"]
    first = next(iter(questions("mmvet", Location.parse(str(tmp_path / "mmvet")), None, "lmms-eval")))
    assert first.text == GOLDEN["mmvet"]["asked"]
