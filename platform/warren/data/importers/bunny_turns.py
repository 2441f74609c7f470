"""Bunny's conversations: `{"from": "human" | "gpt", "value": text}`, as LLaVA's and Bunny-695K's files have them.

Bunny rewrites a conversation before it renders it. Warren does so once, on import: what is stored is what is learnt.
"""

from collections.abc import Mapping, Sequence

from warren.data.sample import IMAGE_MARK, Role, Turn
from warren.errors import BadSampleError

_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant"}


def normalise_turns(conversations: Sequence[Mapping[str, str]], has_image: bool) -> tuple[Turn, ...]:
    """Return the turns that Bunny trains on (`preprocess_multimodal` and the start of `preprocess_bunny`).

    An answer in front of the first question is dropped. With an image, a message that contains image marks loses them
    all, and the spaces around the rest, and gets one mark and a newline in front; so several marks in one message
    become one, while marks in several messages stay several.

    Args:
        conversations: The record's `conversations`.
        has_image: The record has an `image`. Without one Bunny reads `<image>` as plain text; here the mark stays a
            mark, and `Sample.check` refuses the sample because its picture is missing.

    Raises:
        BadSampleError: A message has no `from` or `value`, or `from` is neither human nor gpt.
    """
    turns = [_turn(number, message, has_image) for number, message in enumerate(conversations)]
    return tuple(turns[1:] if turns and turns[0].role == "assistant" else turns)


def _turn(number: int, message: Mapping[str, str], has_image: bool) -> Turn:
    if not isinstance(message.get("value"), str) or message.get("from") not in _ROLES:
        raise BadSampleError(
            f"message {number} has from={message.get('from')!r} and a value of type "
            f"{type(message.get('value')).__name__}; needed: human or gpt, and a text"
        )
    text = message["value"]
    if has_image and IMAGE_MARK in text:
        text = f"{IMAGE_MARK}\n{text.replace(IMAGE_MARK, '').strip()}".strip()
    return Turn(_ROLES[message["from"]], text)
