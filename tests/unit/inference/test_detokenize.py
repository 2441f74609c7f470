"""Text as it comes: whole characters, spaces kept, nothing behind a stop string."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from warren.inference.detokenize import Detokenizer, TokenBytes
from warren.models import train_tokenizer

BYTE_LEVEL = Tokenizer.from_str(train_tokenizer(["what is there? a blue circle", "naïve 日本"] * 5, 320).json)


def _sentencepiece() -> Tokenizer:
    """Return a tokenizer that falls back to bytes and marks spaces, as Llama's and Gemma's do."""
    words = ["▁a", "▁blue", "circle", "b", "."]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {w: 256 + i for i, w in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token=None))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def _run(
    tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = (), prompt: tuple[int, ...] = (), **options: bool
) -> tuple[list[str], bool]:
    detokenizer = Detokenizer(tokenizer, stop, prompt, **options)
    pieces = []
    for token_id in ids:
        pieces.append(detokenizer.push(token_id))
        if detokenizer.is_stopped:
            break
    pieces.append(detokenizer.flush())
    return pieces, detokenizer.is_stopped


@given(st.text(max_size=40))
def test_the_pieces_are_the_text(text: str) -> None:
    ids = BYTE_LEVEL.encode(text, add_special_tokens=False).ids
    pieces, _ = _run(BYTE_LEVEL, ids)
    expected = BYTE_LEVEL.decode(ids).lstrip()
    assert "".join(pieces) == expected.rstrip("\ufffd") or "".join(pieces) == expected


@given(st.text(alphabet="é日🙂a", min_size=1, max_size=12))
def test_a_character_is_never_cut(text: str) -> None:
    pieces, _ = _run(BYTE_LEVEL, BYTE_LEVEL.encode(text).ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == text


def test_an_unfinished_character_at_the_end_is_dropped() -> None:
    ids = BYTE_LEVEL.encode("a🙂").ids
    pieces, _ = _run(BYTE_LEVEL, ids[:-1])
    assert "".join(pieces) == "a"


@given(st.text(alphabet="é日🙂", min_size=1, max_size=6))
def test_byte_fallback_is_joined(text: str) -> None:
    tokenizer = _sentencepiece()
    ids = [256, 257, *text.encode(), 258]
    pieces, _ = _run(tokenizer, ids)
    assert "".join(pieces) == f"a blue{text}circle"
    assert not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.sampled_from(["a", "b", "ab", " circle", " blue", "é"]), max_size=12), st.data())
def test_stop_strings_end_the_text_wherever_tokens_are_cut(words: list[str], data: st.DataObject) -> None:
    text = "".join(words)
    stops = tuple(data.draw(st.lists(st.text(alphabet="ab cé", min_size=1, max_size=4), max_size=2)))
    ids = BYTE_LEVEL.encode(text).ids
    pieces, stopped = _run(BYTE_LEVEL, ids, stops)
    written = text.removeprefix(" ")  # the template's
    cuts = [written.find(stop) for stop in stops if stop in written]
    assert stopped == bool(cuts)
    assert "".join(pieces) == (written[: min(cuts)] if cuts else written).lstrip()

    pieces, stopped = _run(BYTE_LEVEL, ids, stops, keeps_leading_space=True)
    cuts = [text.find(stop) for stop in stops if stop in text]
    assert stopped == bool(cuts)
    assert "".join(pieces) == (text[: min(cuts)] if cuts else text)


SENTENCE_PIECE = _sentencepiece()
WORDS = {word: 256 + number for number, word in enumerate(["▁a", "▁blue", "circle", "b", "."])}


def test_a_continuation_keeps_the_space_of_its_first_token() -> None:
    blue = BYTE_LEVEL.encode(" blue", add_special_tokens=False).ids
    prompt = tuple(BYTE_LEVEL.encode("there? a").ids)
    options: dict[str, Any] = {"prompt": prompt, "keeps_leading_space": True}
    assert "".join(_run(BYTE_LEVEL, blue, **options)[0]) == " blue"
    assert _run(BYTE_LEVEL, blue, (" blue",), **options) == ([""] * len(blue) + [""], True)
    ids, prompt = [WORDS["▁blue"], WORDS["circle"]], (WORDS["▁a"],)
    assert "".join(_run(SENTENCE_PIECE, ids, (), prompt, keeps_leading_space=True)[0]) == " bluecircle"
    assert _run(SENTENCE_PIECE, ids, (" blue",), prompt, keeps_leading_space=True)[1]


@pytest.mark.parametrize("keeps", [False, True])
def test_white_space_in_front_of_an_answer_can_stop_it(keeps: bool) -> None:
    ids = BYTE_LEVEL.encode("\n\na blue", add_special_tokens=False).ids
    pieces, stopped = _run(BYTE_LEVEL, ids, ("\n",), keeps_leading_space=keeps)
    assert stopped
    assert "".join(pieces) == ""
    assert "".join(_run(BYTE_LEVEL, ids, keeps_leading_space=keeps)[0]) == ("\n\na blue" if keeps else "a blue")


def test_bytes_that_make_a_released_character_invalid_do_not_end_the_answer() -> None:
    """`DecodeStream` of tokenizers raises here, at every token that follows."""
    ids = [WORDS["▁a"], *"é".encode(), 0x80, WORDS["▁blue"], WORDS["circle"]]
    pieces, _ = _run(SENTENCE_PIECE, ids)
    assert pieces[0] == "a"
    assert "".join(pieces).endswith(" bluecircle")


def test_text_in_front_of_an_unfinished_character_is_kept() -> None:
    """`DecodeStream` of tokenizers cannot return it."""
    tokenizer = Tokenizer.from_str(train_tokenizer(["a 日 b 日 c 日"] * 20, 261).json)
    encoding = tokenizer.encode("a 日", add_special_tokens=False)
    assert encoding.tokens[1] == "ĠæĹ", "a space and two bytes of three"
    assert "".join(_run(tokenizer, encoding.ids[:2])[0]) == "a "


def test_the_templates_space_is_not_the_answers() -> None:
    ids = BYTE_LEVEL.encode(" a blue", add_special_tokens=False).ids
    assert "".join(_run(BYTE_LEVEL, ids, (" ",))[0]) == "a"


@given(st.text(alphabet="é日🙂", min_size=2, max_size=9), st.data())
def test_a_prompt_whose_end_begins_inside_a_character_changes_nothing(text: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    prompt, answer = text[:cut].encode(), text[cut:].encode()
    pieces, _ = _run(SENTENCE_PIECE, list(answer), (), tuple(prompt), keeps_leading_space=True)
    assert "".join(pieces).encode() == answer


@given(st.text(max_size=30))
def test_the_bytes_of_tokens_are_the_bytes_of_the_text(text: str) -> None:
    ids = BYTE_LEVEL.encode(text, add_special_tokens=False).ids
    assert b"".join(map(TokenBytes(BYTE_LEVEL), ids)) == text.encode()


def test_the_bytes_of_pieces_keep_their_space_and_parts_of_characters() -> None:
    of = TokenBytes(SENTENCE_PIECE)
    assert [of(WORDS[word]) for word in ("▁blue", "circle")] == [b" blue", b"circle"]
    assert b"".join(map(of, "🙂日".encode())).decode() == "🙂日"
    special = BYTE_LEVEL.token_to_id("<|endoftext|>")
    assert special is not None
    assert TokenBytes(BYTE_LEVEL)(special) == b"<|endoftext|>"
    assert TokenBytes(BYTE_LEVEL)(10**6) == b""


def test_text_that_may_begin_a_stop_string_is_held_back() -> None:
    detokenizer = Detokenizer(BYTE_LEVEL, ("aab",))
    assert [detokenizer.push(token) for token in BYTE_LEVEL.encode("x").ids] == ["x"]
    (a,) = BYTE_LEVEL.encode("a").ids
    assert [detokenizer.push(a) for _ in range(4)] == ["", "", "a", "a"]
    assert detokenizer.flush() == "aa"
    assert not detokenizer.is_stopped
