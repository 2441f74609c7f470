"""Rules of lmms-eval 0.7 that several of its tasks share; tests compare them with what the package gives.

lmms-eval strips every answer before it is scored, and asks every question: it has no rule for one without an answer.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answer, Answers, Scores
from warren.evaluate.benchmarks.reference_files import by_key, refuse_unknown
from warren.evaluate.measures import mean
from warren.evaluate.scorers.anls import edit_distance
from warren.evaluate.scorers.vqa import soft_accuracies

NAME = "lmms-eval"
_STRIPPED = (",", ".", "!", "?", ";", ":", "'")
_LONG_WORDS = 5
_PUNCTUATION = str.maketrans("", "", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_PHRASES = (
    *("the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is"),
    *("best answer is", "the correct option is", "correct option is", "the best option is", "best option is"),
    *("the choice is", "choice is", "the correct choice is", "correct choice is", "i choose", "i select", "i pick"),
    *("my answer is", "my choice is", "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
_FORMS = ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} "))  # by how much each is believed
_START, _END, _PHRASE = 10, 9, 7
_WHOLE_WORDS = (
    *("{}.", "{},", "{}:", "{})", "{}).", "({})", "({})."),
    *(":{}", ":{},", ":{}.", ":{})", ":{})."),
)
_POSSIBLE = "ABCDE"
_MANY_WORDS = 3
_ALLOWED_ERROR = 0.05
_LEAST_SIMILAR = 0.5


def complete(
    answers: Answers, keys: Iterable[str], benchmark: str, known: Iterable[str] = (), convention: str = NAME
) -> dict[str, Answer]:
    """Return the answer to every question whose request did not fail.

    Args:
        answers: What is scored.
        keys: The questions that count.
        benchmark: Its name, for messages.
        known: Questions of the reference that do not count; answers to them are left out.
        convention: Whose rules ask for this, for messages.

    Raises:
        DataError: A question has none, or an answer is to another question.
    """
    keys = list(keys)
    answered = by_key(answers)
    refuse_unknown(answered, [*keys, *known], benchmark)
    missing = [key for key in keys if key not in answered and key not in answers.failed]
    if missing:
        raise DataError(
            f"{benchmark}: no answer to {len(missing)} of {len(keys)} questions, the first is {missing[0]!r}; "
            f"{convention} has no rule for missing answers, so every question needs one"
        )
    return {key: answered[key] for key in keys if key in answered}


def score_soft_accuracy(
    answers: Answers,
    humans: Mapping[str, Sequence[str]],
    images: Mapping[str, str],
    benchmark: str,
    normal: Callable[[str], str],
) -> Scores:
    """Return the mean soft accuracy over people's answers, one question at a time.

    Args:
        answers: What is scored.
        humans: People's answers by question.
        images: The image of each question.
        benchmark: Its name, for messages.
        normal: What answers are compared as.

    Raises:
        DataError: The reference has no answers, as that of a test split, or a question has none of the model.
    """
    if not all(humans.values()):
        raise DataError(f"{benchmark}: this reference has no answers of people: only the server scores the test split")
    answered = complete(answers, humans, benchmark)
    per_question: dict[str, dict[str, object]] = {}
    scores: dict[str, float] = {}
    for key, answer in answered.items():
        points = soft_accuracies(humans[key], normal)
        text = normal(answer.text.strip())
        scores[key] = points.get(text, 0.0)
        commonest = max(points.items(), key=lambda one: one[1])[0]
        per_question[key] = {"prediction": text, "truth": commonest, "score": scores[key]}
    measure = mean("exact_match", scores, 1, images)
    return Scores(len(humans), len(answered), {measure.name: measure.value}, per_question, measures=[measure])


def same_but_for_punctuation(answer: str, truth: str) -> bool:
    """Tell whether two texts are equal but for case and ASCII punctuation."""
    return answer.strip().lower().translate(_PUNCTUATION) == truth.lower().translate(_PUNCTUATION)


def chosen_option(text: str, choices: Sequence[str], options: Mapping[str, str]) -> str | None:
    """Return the letter that MMMU's task takes from an answer; None where it draws one."""
    for char in _STRIPPED:
        text = text.strip(char)
    text = f" {text} "
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        named = [choice for choice in choices if form.format(choice) in text]
        if named:
            return max(named, key=lambda choice: text.rfind(place.format(choice)))
    if len(text.split()) <= _LONG_WORDS:
        return None
    lower = text.lower()
    named = [choice for choice, option in options.items() if option.lower() in lower]
    return max(named, key=lambda choice: lower.rfind(options[choice].lower()), default=None)


def matched_option(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that MMBench's `static` task takes from an answer; None for none."""
    return _letter_word(text) or _only_option_text(text, options) or extracted_letter(text, sorted(options))


def is_within_five_percent(answer: str, truth: str) -> bool:
    """Tell whether a number is within 5 % of the truth, or another text equals it but for case: ChartQA's rule."""
    value, target = _as_number(answer), _as_number(truth)
    if value is None or not target:  # a truth of zero allows no relative error
        return answer.lower() == truth.lower()
    return abs(value - target) / abs(target) <= _ALLOWED_ERROR


def document_anls(answer: str, truths: Sequence[str]) -> float:
    """Return the similarity to the nearest truth, white space counted once; below one half it is 0: DocVQA's rule."""
    distances = []
    for truth in truths:
        longest = max(len(truth), len(answer))
        edits = edit_distance(" ".join(truth.lower().split()), " ".join(answer.lower().split()))
        distances.append(edits / longest if longest else 0.0)
    similarity = 1 - min(distances)
    return similarity if similarity >= _LEAST_SIMILAR else 0.0


def _as_number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _letter_word(text: str) -> str | None:
    """Return the one letter that is a word of the answer, plain or in punctuation."""
    words = text.split()
    letters = [letter for letter in _POSSIBLE if letter in words]
    if len(letters) == 1 and not ("A" in words and len(words) > _MANY_WORDS):  # it may be an article
        return letters[0]
    for form in _WHOLE_WORDS:
        letters = [letter for letter in _POSSIBLE if form.format(letter) in words]
        if len(letters) == 1:
            return letters[0]
    return None


def _only_option_text(text: str, options: Mapping[str, str]) -> str | None:
    lower = text.lower()
    named = [letter for letter, option in options.items() if option.lower() in lower]
    return named[0] if len(named) == 1 else None


def extracted_letter(text: str, choices: Sequence[str]) -> str | None:
    """Return the letter in the form that is believed most, the last one of several; None for none."""
    if not text.strip():
        return None
    text = text.strip()
    for char in (*_STRIPPED, '"'):
        text = text.strip(char)
    text = f" {text} "
    mentions = [
        (belief, text.rfind(form.format(choice)), choice)
        for belief, form in _FORMS
        for choice in choices
        if form.format(choice) in text
    ]
    mentions += _after_phrases(text, choices)
    bare = text.strip()
    mentions += [(_START, 0, choice) for choice in choices if re.match(rf"{choice}(?![^\W\d_])", bare)]
    mentions += [(_END, len(text) - 1, choice) for choice in choices if re.search(rf"(?<![^\W\d_]){choice}$", bare)]
    mentions = mentions or [(0, text.rfind(choice), choice) for choice in choices if choice in text]
    return max(mentions, key=lambda one: one[:2])[2] if mentions else None


def _after_phrases(text: str, choices: Sequence[str]) -> list[tuple[int, int, str]]:
    lower, mentions = text.lower(), []
    for phrase in _PHRASES:
        place = lower.find(phrase)
        after = [text.find(choice, place + len(phrase)) for choice in choices] if place != -1 else []
        mentions += [(_PHRASE, there, choice) for there, choice in zip(after, choices, strict=False) if there != -1]
    return mentions
