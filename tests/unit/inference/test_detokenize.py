"""Text as it comes: whole characters, spaces kept, nothing behind a stop string."""

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from warren.inference.detokenize import Detokenizer
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


def _run(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    detokenizer = Detokenizer(tokenizer, stop)
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
    visible = text.lstrip()
    cuts = [visible.find(stop) for stop in stops if stop in visible]
    assert stopped == bool(cuts)
    assert "".join(pieces) == (visible[: min(cuts)] if cuts else visible)


def test_text_that_may_begin_a_stop_string_is_held_back() -> None:
    detokenizer = Detokenizer(BYTE_LEVEL, ("aab",))
    assert [detokenizer.push(token) for token in BYTE_LEVEL.encode("x").ids] == ["x"]
    (a,) = BYTE_LEVEL.encode("a").ids
    assert [detokenizer.push(a) for _ in range(4)] == ["", "", "a", "a"]
    assert detokenizer.flush() == "aa"
    assert not detokenizer.is_stopped
