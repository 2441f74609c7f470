"""CPU milliseconds an image costs in one reading task, by part, without Ray and without a server.

python benchmarks/data/where_time_goes.py
"""

import statistics
import tempfile
import time
from collections.abc import Callable

import pyarrow.parquet as pq
from bench import PAIRS_PER_ROW_GROUP, PATCHES, SIZE_PX, caption_turns, draw_pairs

from warren.data.batch import Cut, pack_parts, unpack_parts
from warren.data.images import ImageSpec, decode_image, to_square
from warren.data.manifest import Manifest, dataset_folder, write_manifest, write_shard
from warren.data.model_inputs import Inputs, tokenizer_from_json
from warren.data.sample import Sample
from warren.data.stream import DatasetSource, Encoding, StreamSpec
from warren.data.template import TokenSpec
from warren.models import train_tokenizer
from warren.storage import Location

_PAIRS = 256
_ROUNDS = 5


def main() -> None:
    """Print the median of some rounds for each part."""
    pairs = list(draw_pairs(_PAIRS))
    tokenizer = train_tokenizer([caption for _, caption in pairs], 512)
    tokens = TokenSpec(tokenizer.image_token_id, PATCHES, tokenizer.eos_token, tokenizer.pad_token_id)
    inputs = Inputs("plain", tokens, ImageSpec(SIZE_PX, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    samples = [Sample(str(i), (image,), caption_turns(caption), "") for i, (image, caption) in enumerate(pairs)]
    decoded = [decode_image(image) for image, _ in pairs]
    text = tokenizer_from_json(tokenizer.json)
    with tempfile.TemporaryDirectory() as folder:
        root = Location(folder)
        data = dataset_folder(root, "pairs@v1")
        shard = write_shard(data, "shard.parquet", samples, PAIRS_PER_ROW_GROUP)
        manifest = Manifest("pairs", "v1", (shard,), "", "")
        write_manifest(root, manifest)
        encoding = Encoding(inputs, tokenizer.json, 256)
        spec = StreamSpec(
            (DatasetSource(data, manifest, _PAIRS),), encoding, 32, seed=1, window_samples=_PAIRS, epochs=1
        )
        tables = [pack_parts(parts) for read in spec.reads() for parts in spec.reader(Cut(1, 1)).read(read)]
        _show("whole reading task", lambda: [
            pack_parts(parts) for read in spec.reads() for parts in spec.reader(Cut(1, 1)).read(read)
        ])  # fmt: skip
        _show("  encode (decode, resize, tokenise)", lambda: [inputs.encode_sample(s, text, 256) for s in samples])
        _show("    decode JPEG", lambda: [decode_image(image) for image, _ in pairs])
        _show("    resize", lambda: [to_square(image, inputs.image) for image in decoded])
        _show("  read Parquet", lambda: pq.read_table(f"{data}/shard.parquet", page_checksum_verification=True))
        _show("unpack at the training worker", lambda: [list(unpack_parts(table)) for table in tables])


def _show(name: str, part: Callable[[], object]) -> None:
    spent = []
    for _ in range(_ROUNDS):
        start = time.process_time()
        part()
        spent.append(time.process_time() - start)
    print(f"{1e3 * statistics.median(spent) / _PAIRS:7.2f} ms  {name}")


if __name__ == "__main__":
    main()
