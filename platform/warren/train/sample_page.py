"""An HTML page of samples: tokenised text with supervised tokens marked, and preprocessed images."""

import base64
import html
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from warren.data.model_inputs import EncodedSample, Inputs
from warren.data.sample import Sample
from warren.data.template import IGNORED
from warren.storage import Location

_BAD_SHOWN = 100
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
pre,.text{font:13px/1.6 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
article{border:1px solid #bbb;border-radius:6px;padding:1rem;margin:1rem 0}
mark{background:#bfe8c5}.image{background:#ccdcf5;border-radius:3px;padding:0 .3em}
img{max-width:224px;image-rendering:auto;margin:0 .5rem .5rem 0}td{vertical-align:top;padding-right:1rem}"""


@dataclass(frozen=True)
class PreviewedSample:
    """One sample of the page.

    Attributes:
        parts: Runs of text, each with whether it is supervised; None for the tokens of an image.
        images: PNG files, as preprocessed.
        num_supervised_tokens: Those of `num_tokens` that the loss counts.
    """

    key: str
    source: str
    parts: tuple[tuple[str, bool | None], ...]
    images: tuple[bytes, ...]
    num_tokens: int
    num_supervised_tokens: int


def shown_sample(sample: Sample, encoded: EncodedSample, inputs: Inputs, tokenizer: Tokenizer) -> PreviewedSample:
    """Turn ids and labels back into text, in runs that are supervised or not."""
    image_token = inputs.tokens.image_token_id
    pairs = zip(encoded.input_ids.tolist(), encoded.labels.tolist(), strict=True)
    kinds = ((token, None if token == image_token else label != IGNORED) for token, label in pairs)
    parts = []
    for kind, run in itertools.groupby(kinds, key=lambda pair: pair[1]):
        ids = [token for token, _ in run]
        parts.append((f"{len(ids)} image tokens" if kind is None else tokenizer.decode(ids, False), kind))
    images = []
    for image in encoded.images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        images.append(buffer.getvalue())
    learnt = encoded.num_supervised_tokens
    return PreviewedSample(sample.key, sample.source, tuple(parts), tuple(images), len(encoded.input_ids), learnt)


def write_page(
    target: Location, datasets: Sequence[tuple[Sequence[str], Sequence[PreviewedSample], Sequence[tuple[str, str]]]]
) -> None:
    """Write the page as one HTML file.

    Args:
        target: The file.
        datasets: For each dataset its counts as text, the samples to show, and source and reason of unusable ones.
    """
    body = [f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Samples</title><style>{_STYLE}</style>']
    body.append("<p>Text is what the model reads, special tokens included. <mark>Marked text</mark> is what it learns.")
    for lines, shown, bad in datasets:
        body.append(f"<h2>{html.escape(lines[0])}</h2>")
        body.append(f"<pre>{html.escape(chr(10).join(lines[1:]))}</pre>")
        body += [_article(sample) for sample in shown]
        body.append(_table(bad))
    target.put_bytes("\n".join(body).encode(errors="replace"))


def _article(sample: PreviewedSample) -> str:
    images = "".join(
        f'<img alt="" src="data:image/png;base64,{base64.b64encode(image).decode()}">' for image in sample.images
    )
    text = "".join(_part(part, learnt) for part, learnt in sample.parts)
    counts = f"{sample.num_tokens} tokens, {sample.num_supervised_tokens} of them learnt"
    head = f"<b>{html.escape(sample.key)}</b> · {html.escape(sample.source)} · {counts}"
    return f'<article>{head}<div>{images}</div><div class="text">{text}</div></article>'


def _part(text: str, learnt: bool | None) -> str:
    escaped = html.escape(text)
    if learnt is None:
        return f'<span class="image">{escaped}</span>'
    return f"<mark>{escaped}</mark>" if learnt else escaped


def _table(bad: Sequence[tuple[str, str]]) -> str:
    if not bad:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(source)}</td><td>{html.escape(reason)}</td></tr>" for source, reason in bad[:_BAD_SHOWN]
    )
    return f"<h3>Quarantined ({min(len(bad), _BAD_SHOWN)} of {len(bad)} shown)</h3><table>{rows}</table>"
