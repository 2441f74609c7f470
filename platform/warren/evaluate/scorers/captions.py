"""Metrics of captions against several people's: BLEU, ROUGE-L and CIDEr, as COCO's evaluation computes them.

Sources: BLEU (P02-1040), ROUGE-L (W04-1013, with beta 1.2), CIDEr-D (arXiv 1411.5726, with sigma 6 and scale 10).
Tests compare the numbers with those of pycocoevalcap 1.2. It is not used: it has 100 MB and needs Java for tokens.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_MAX_ORDER = 4
_TINY, _SMALL = 1e-15, 1e-9  # keep BLEU defined where nothing matches, as in COCO's code
_BETA = 1.2
_SIGMA, _SCALE = 6.0, 10.0

NGram = tuple[str, ...]

_TOKEN = re.compile(
    r"https?://[^\s,;]+|[\w.+-]+@[\w-]+\.[\w.]+"  # addresses
    r"|(?:[^\W\d_]\.){2,}|ph\.d\.|(?:mr|mrs|ms|dr|st|mt|jr|sr|vs|etc|prof|gen|capt|co|inc|ave|blvd)\.(?=\W|$)"
    r"|'\d\ds\b|'n'"  # '90s, rock 'n' roll
    r"|\d+(?:[.,:]\d+)+\w*"
    r"|\w+(?:['./-]\w+)*'?"
    r"|[?!]{2,}|\.{2,}|-{2,}|."
)
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))$")
_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"', "—", "–"])
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SPLIT = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "wanna": ("wan", "na"),
    "gotta": ("got", "ta"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}
_QUOTES = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'"})


def tokens(caption: str) -> list[str]:
    """Return a caption's tokens in lower case and without punctuation, split as the Penn Treebank's tokeniser does."""
    words: list[str] = []
    for text in _TOKEN.findall(" ".join(caption.translate(_QUOTES).lower().split())):
        word = text.strip()
        if word and word not in _DROPPED and word.strip(".-"):
            words += [word] if word == "'n'" else _split(_BRACKETS.get(word, word))
    return words


def _split(word: str) -> Sequence[str]:
    if word in _SPLIT:
        return _SPLIT[word]
    if len(word) > 1 and word.endswith("'"):
        return _split(word[:-1])
    clitic = _CLITIC.search(word)
    return [word] if clitic is None or clitic.start() == 0 else [*_split(word[: clitic.start()]), clitic[1]]


def ngrams(words: Sequence[str]) -> Counter[NGram]:
    """Count the sequences of one to four words."""
    return Counter(
        tuple(words[start : start + order])
        for order in range(1, _MAX_ORDER + 1)
        for start in range(len(words) - order + 1)
    )


def bleu(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """Return BLEU-1 to BLEU-4 of all captions together, against the reference of the nearest length."""
    matches, totals = [0] * _MAX_ORDER, [0] * _MAX_ORDER
    length = reference_length = 0
    for words, others in zip(captions, references, strict=True):
        length += len(words)
        reference_length += min((abs(len(other) - len(words)), len(other)) for other in others)[1]
        allowed: Counter[NGram] = Counter()
        for other in others:
            allowed |= ngrams(other)
        for ngram, count in ngrams(words).items():
            matches[len(ngram) - 1] += min(count, allowed[ngram])
        for order in range(_MAX_ORDER):
            totals[order] += max(0, len(words) - order)
    ratio = (length + _TINY) / (reference_length + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for order in range(_MAX_ORDER):
        product *= (matches[order] + _TINY) / (totals[order] + _SMALL)
        scores.append(product ** (1 / (order + 1)) * penalty)
    return scores


def rouge_l(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the F-measure of the longest common subsequence, its best precision and recall over the references."""
    lengths = [(_common_length(words, other), len(other)) for other in references]
    precision = max(common for common, _ in lengths) / max(1, len(words))
    recall = max(common / max(1, length) for common, length in lengths)
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, 1):
            diagonal, row[place] = row[place], diagonal + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]


@dataclass(frozen=True)
class _Vector:
    """TF-IDF weights of n-grams by order, their norms, and the number of word pairs."""

    weights: Sequence[Mapping[NGram, float]]
    norms: Sequence[float]
    num_pairs: int


class Cider:
    """CIDEr-D, weighing an n-gram by how few images' references have it."""

    def __init__(self, references: Iterable[Sequence[Sequence[str]]]) -> None:
        self._num_images = 0
        self._frequency: Counter[NGram] = Counter()
        for others in references:
            self._num_images += 1
            self._frequency.update({ngram for other in others for ngram in ngrams(other)})

    def score(self, words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """Return the score of one caption; the mean over all captions is the benchmark's."""
        vector = self._vector(words)
        total = sum(self._similarity(vector, self._vector(other)) for other in references)
        return _SCALE * total / _MAX_ORDER / len(references)

    def _vector(self, words: Sequence[str]) -> _Vector:
        weights: list[dict[NGram, float]] = [{} for _ in range(_MAX_ORDER)]
        num_pairs = 0
        for ngram, count in ngrams(words).items():
            rarity = math.log(self._num_images) - math.log(max(1, self._frequency[ngram]))
            weights[len(ngram) - 1][ngram] = count * rarity
            num_pairs += count if len(ngram) == 2 else 0
        return _Vector(weights, [math.sqrt(sum(value**2 for value in of.values())) for of in weights], num_pairs)

    def _similarity(self, caption: _Vector, reference: _Vector) -> float:
        """Return the sum over orders of clipped cosines, lowered where the lengths differ."""
        penalty = math.exp(-((caption.num_pairs - reference.num_pairs) ** 2) / (2 * _SIGMA**2))
        total = 0.0
        for order in range(_MAX_ORDER):
            theirs = reference.weights[order]
            shared = sum(
                min(value, theirs.get(ngram, 0.0)) * theirs.get(ngram, 0.0)
                for ngram, value in caption.weights[order].items()
            )
            norms = caption.norms[order] * reference.norms[order]
            total += (shared / norms if norms else shared) * penalty
        return total
