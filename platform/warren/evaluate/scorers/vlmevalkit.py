"""Rules of VLMEvalKit without a judge model, its `exact_matching`; tests compare them with what the package gives."""

from warren.evaluate.scorers.vqa import without_punctuation

NAME = "vlmevalkit"


def yes_or_no(answer: str) -> str | None:
    """Return `Yes` or `No` where the answer holds exactly one of the two words; None otherwise."""
    words = without_punctuation(answer.lower()).split()
    said = [word for word in ("yes", "no") if word in words]
    return said[0].capitalize() if len(said) == 1 else None
