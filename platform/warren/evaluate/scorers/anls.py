"""ANLS (arXiv 1905.13648): how much of an answer must be edited to reach the nearest truth."""

from collections.abc import Iterable

_THRESHOLD = 0.5  # less similar than that is wrong


def anls(answer: str, truths: Iterable[str]) -> float:
    """Return the similarity to the nearest truth, between 0 and 1; below one half it is 0."""
    return max((_similarity(answer.lower().strip(), truth.lower().strip()) for truth in truths), default=0.0)


def _similarity(first: str, second: str) -> float:
    longest = max(len(first), len(second))
    similarity = 1 - edit_distance(first, second) / longest if longest else 1.0
    return similarity if similarity >= _THRESHOLD else 0.0


def edit_distance(first: str, second: str) -> int:
    """Return the smallest number of inserted, removed and replaced characters that turns one text into the other."""
    row = list(range(len(second) + 1))
    for i, char in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (char != other))
    return row[-1]
