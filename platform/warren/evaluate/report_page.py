"""The report of a scored run as one page: the table with intervals, a plot, examples, and what was measured.

`report.html` holds everything, images too. `report.md` is the same without the images, its plot beside it.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jinja2
from PIL import Image

from warren import __version__
from warren.data.images import decode_image
from warren.data.plots import new_figure, to_png
from warren.errors import BadSampleError
from warren.evaluate.answer_file import StoredAnswer, load_answers, read_stored
from warren.evaluate.benchmark_questions import questions
from warren.evaluate.benchmarks import Question
from warren.evaluate.report_templates import HTML, MARKDOWN
from warren.evaluate.score_formatting import Line, number, table
from warren.storage import Location, digest_bytes

NUM_EXAMPLES = 20
PLOT = "scores.png"
_SIDE_PX = 320
_MAX_BARS = 40
ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Example:
    """One question with its answer; `images` are JPEGs as data URIs."""

    key: str
    question: str
    answer: str
    truth: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """What a report shows.

    Attributes:
        report: What `score_answers` returned.
        right: Examples of right answers.
        wrong: Examples of wrong answers.
        facts: What was measured and how fast, by name.
        failures: Failed questions and why.
    """

    report: Mapping[str, Any]
    right: Sequence[Example] = ()
    wrong: Sequence[Example] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, report: Mapping[str, Any], answers: Location, data: Location | None = None) -> "Page":
        """Make the page of a score report and of its answers.

        Args:
            report: What `score_answers` returned for these answers.
            answers: The file of answers.
            data: The folder that the questions were read from; without it the examples have no images.
        """
        stored = _stored(answers)
        decided = {
            row.get("key", name): row for name, row in report["per_question"].items() if isinstance(row, Mapping)
        }
        judged = [(row, decided[row.key]) for row in stored if row.key in decided and row.answer is not None]
        chosen = {
            right: spread([(row, entry) for row, entry in judged if _is_right(entry) is right])
            for right in (True, False)
        }
        shown = {row.key for pairs in chosen.values() for row, _ in pairs}
        images = _images(report, data, shown) if data else {}
        right, wrong = ([_example(row, entry, images) for row, entry in chosen[kind]] for kind in (True, False))
        failures = {row.key: row.error for row in stored if row.error is not None}
        failures |= (report.get("judge") or {}).get("failed", {})
        return cls(report, right, wrong, _facts(report, stored, answers), failures)

    @property
    def lines(self) -> list[Line]:
        """The score table."""
        return table(self.report)


def write_page(page: Page, folder: Location) -> Location:
    """Write report.md, report.html and the plot; return the HTML page."""
    plot = draw_scores(page.lines)
    if plot:
        (folder / PLOT).put_bytes(plot)
    for name, template in (("report.md", MARKDOWN), ("report.html", HTML)):
        (folder / name).put_bytes(_render(template, page, plot).encode())
    return folder / "report.html"


def render_html(page: Page) -> bytes:
    """Return a page as one HTML file that needs nothing beside it."""
    return _render(HTML, page, draw_scores(page.lines)).encode()


def draw_scores(lines: Sequence[Line]) -> bytes | None:
    """Draw the scores that have intervals, sums left out, as a PNG; None where there are none."""
    shown = [line for line in lines if line.low is not None and not line.name.endswith("total")][:_MAX_BARS]
    if not shown:
        return None
    figure = new_figure(8, 1 + 0.28 * len(shown))
    axis = figure.subplots()
    places, values = range(len(shown)), [line.value for line in shown]
    below = [max(0.0, line.value - (line.low or 0)) for line in shown]
    above = [max(0.0, (line.high or 0) - line.value) for line in shown]
    axis.barh(places, values, color="tab:blue", alpha=0.6, xerr=[below, above], capsize=3)
    axis.set_yticks(places, [line.name.replace("$", r"\$") for line in shown], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("score, with its 95 % interval")
    axis.grid(axis="x", alpha=0.3)
    return to_png(figure, dpi=110)


def _stored(answers: Location) -> list[StoredAnswer]:
    if answers.name.endswith(".parquet"):
        return read_stored(answers)[0]
    return [StoredAnswer(answer.key, answer.prompt, answer.text) for answer in load_answers(answers)[0]]


def _is_right(entry: Mapping[str, Any]) -> bool | None:
    """Tell whether a scored question is right or wrong; None for something between, or where only a server scores."""
    for name in ("right", "correct"):
        if name in entry:
            return bool(entry[name])
    points = entry.get("score")
    return None if points is None or 0 < points < 1 else bool(points)


def spread(pairs: Sequence[ItemT]) -> list[ItemT]:
    """Take examples from the whole of a list, the same ones every time."""
    step = max(1, len(pairs) // NUM_EXAMPLES)
    return list(pairs[::step][:NUM_EXAMPLES])


def _example(row: StoredAnswer, entry: Mapping[str, Any], images: Mapping[str, tuple[str, ...]]) -> Example:
    truth = entry.get("truth", "")
    shown = ", ".join(map(str, truth)) if isinstance(truth, list) else str(truth)
    return Example(row.key, row.question, row.answer or "", shown, images.get(row.key, ()))


def _images(report: Mapping[str, Any], data: Location, keys: set[str]) -> dict[str, tuple[str, ...]]:
    benchmark_questions = questions(_name(report), data, report.get("split"), report.get("prompts"))
    return {question.key: _thumbnails(question) for question in benchmark_questions if question.key in keys}


def _name(report: Mapping[str, Any]) -> str:
    return str(report.get("defined_in") or report["benchmark"])


def _thumbnails(question: Question) -> tuple[str, ...]:
    """Return the images of a question, small; those that cannot be read are left out."""
    thumbnails = []
    for source in question.images:
        try:
            thumbnails.append(thumbnail(source.read()))
        except BadSampleError:
            continue
    return tuple(thumbnails)


def thumbnail(data: bytes) -> str:
    """Return an encoded image as a small JPEG in a data URI.

    Raises:
        BadSampleError: It cannot be decoded.
    """
    image = decode_image(data)
    image.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.BICUBIC)
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}"


def _facts(report: Mapping[str, Any], stored: Sequence[StoredAnswer], answers: Location) -> dict[str, str]:
    facts = {"model": report.get("model"), "split": report.get("split"), "prompts": report.get("prompts")}
    seconds = [row.seconds for row in stored if row.seconds is not None]
    tokens = [row.num_tokens for row in stored if row.num_tokens is not None]
    facts["answered"] = f"{report['num_answered']} of {report['num_questions']}"
    if report["num_failed"]:
        facts["failed"] = f"{report['num_failed']}, left out of every score"
    if report["random_fallback_ids"]:
        facts["drawn at random"] = f"{report['random_fallback_fraction']:.1%}, because the answer could not be read"
    if judge := report.get("judge"):
        facts["judged by"] = f"{judge['model']} at {judge['url']}"
        facts["digest of judge's prompts"] = judge["prompts_digest"]
    if tokens:
        facts["tokens generated"] = str(sum(tokens))
    if seconds:
        facts["time for an answer"] = f"{sum(seconds) / len(seconds):.2f} s on average, {sum(seconds):.0f} s together"
    facts["answers"] = f"{answers.name}, sha256 {digest_bytes(answers.read_bytes())}"
    facts |= {f"digest of {name}": digest for name, digest in sorted(report["digests"].items())}
    facts |= {f"version of {name}": version for name, version in sorted(report["versions"].items())}
    facts["scored by"] = f"warren {__version__}"
    return {name: value for name, value in facts.items() if value}


def _render(template: str, page: Page, plot: bytes | None) -> str:
    environment = jinja2.Environment(autoescape=template is HTML, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "cell": _cell}
    encoded = base64.b64encode(plot).decode() if plot else ""
    return environment.from_string(template).render(page=page, report=page.report, plot=encoded, plot_file=PLOT)


def _cell(text: object) -> str:
    """Keep a text inside its cell of a Markdown table, and markup in it harmless."""
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(escaped.split())
