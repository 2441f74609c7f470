"""Response chunks: never too long for a message between replicas."""

import pickle

from warren.inference import TokenDelta, TokenLogprob, join_deltas
from warren_serve.backend import split_deltas

MAX_GRPC_BYTES = 4 << 20


def test_a_long_answer_with_log_probabilities_is_cut_and_joins_again() -> None:
    alternatives = tuple((token, -1.0 / (token + 1)) for token in range(20))
    logprobs = tuple(TokenLogprob(number, -0.5 / (number + 1), alternatives) for number in range(30_000))
    long = TokenDelta("x" * 90_000, tuple(range(30_000)), logprobs, "length")
    short = TokenDelta("yes", (1, 2), (), "stop")
    parts = list(split_deltas(((0, long), (1, short))))
    assert len(parts) > 10
    assert max(len(pickle.dumps(part)) for part in parts) < MAX_GRPC_BYTES / 2
    for index, whole in enumerate((long, short)):
        assert join_deltas([delta for part in parts for choice, delta in part if choice == index]) == whole
    assert list(split_deltas(((0, short), (1, short)))) == [((0, short), (1, short))]
