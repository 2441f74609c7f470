"""The tokenizer of a Bunny checkpoint, which keeps `<image>` outside its vocabulary."""

import json

from tokenizers import Tokenizer

from warren.data.sample import IMAGE_MARK


def without_image_token(tokenizer_json: str) -> str:
    """Return the tokenizer as Bunny keeps it: `<image>` is dropped where it is the last token."""
    tree = json.loads(tokenizer_json)
    last = Tokenizer.from_str(tokenizer_json).get_vocab_size(with_added_tokens=True) - 1
    tree["added_tokens"] = [t for t in tree["added_tokens"] if (t["content"], t["id"]) != (IMAGE_MARK, last)]
    return json.dumps(tree, indent=2, ensure_ascii=False)
