"""The metrics of a step: tokens, times, waits for data, stalls for checkpoints, and the skew between ranks.

A step's time runs from the end of the step before it to its own end, so that no time is lost between two steps. Its
parts are waiting for data, training, and stalling for a checkpoint.
"""

import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from warren.data.batch import BatchPart
from warren.train.flops import FlopsCount, peak_tflops
from warren.train.ranks import Ranks
from warren.train.step_metrics import SpeedMetrics

_SUMS = 5  # tokens, squared lengths, images, checksums of keys, checkpoint stall
_TERA = 1e12


class StepMeter:
    """Measures one rank's steps. The sum of all ranks' `counts` is what `finish` takes.

    Args:
        flops: The operations of the model's parts.
        configured_peak_tflops: The peak of one rank's device; None takes the data sheet's where it is known.
    """

    def __init__(self, ranks: Ranks, flops: FlopsCount, configured_peak_tflops: float | None) -> None:
        self._ranks, self._flops, self._configured_peak_tflops = ranks, flops, configured_peak_tflops
        self._ended = time.perf_counter()
        self._wait_s = self._stall_s = self._arrived_s = 0.0
        self._tokens = self._attended = self._images = self._keys_sum = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        began = time.perf_counter()
        yield
        self._wait_s += time.perf_counter() - began

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Count the time inside as a stall for a checkpoint; it belongs to the next step."""
        began = time.perf_counter()
        yield
        self._stall_s += time.perf_counter() - began

    def count(self, part: BatchPart, forward_done: float) -> None:
        """Count what this rank trained on, and record when its last forward ended."""
        lengths = [micro_batch.lengths.astype("int64") for micro_batch in part.micro_batches]
        self._tokens = sum(int(each.sum()) for each in lengths)
        self._attended = sum(int((each**2).sum()) for each in lengths)
        self._images = sum(len(micro_batch.pixels) for micro_batch in part.micro_batches)
        self._keys_sum = sum(zlib.crc32(key.encode()) for key in part.keys)
        self._arrived_s = forward_done - self._ended

    def counts(self) -> list[float]:
        """Return this rank's counts. Each rank has its own places for times, so that a sum over ranks gathers them."""
        waits, arrivals = ([0.0] * self._ranks.world_size for _ in range(2))
        waits[self._ranks.rank], arrivals[self._ranks.rank] = self._wait_s, self._arrived_s
        return [self._tokens, self._attended, self._images, self._keys_sum, self._stall_s, *waits, *arrivals]

    def finish(self, part: BatchPart, totals: Sequence[float], device: torch.device) -> SpeedMetrics:
        """End the step and return its metrics; all but the step's time are the same on every rank."""
        tokens, attended, images, keys_sum, stalls = totals[:_SUMS]
        waits = totals[_SUMS : _SUMS + self._ranks.world_size]
        arrivals = totals[_SUMS + self._ranks.world_size :]
        now = time.perf_counter()
        step_s = now - self._ended
        # The next step begins here, so that what lies between two steps is counted, too.
        self._ended, self._wait_s, self._stall_s = now, 0.0, 0.0
        flops = self._flops.step(images, tokens, attended, part.num_supervised_tokens)
        per_rank_s = step_s * self._ranks.world_size * _TERA
        metrics: SpeedMetrics = {
            "tokens": int(tokens),
            "images": int(images),
            "keys_sum": int(keys_sum),
            "time": time.time(),
            "step_s": step_s,
            "data_wait_s": max(waits),
            "checkpoint_stall_s": stalls / self._ranks.world_size,
            "rank_skew_s": max(arrivals) - min(arrivals),
            "slowest_rank": arrivals.index(max(arrivals)),
            "samples_per_s": part.num_samples / step_s,
            "tokens_per_s": tokens / step_s,
            "tflops_per_s": (flops.vision + flops.text) / per_rank_s,
            "tflops_per_s_text": flops.text / per_rank_s,
        }
        peak = peak_tflops(device, self._configured_peak_tflops)
        if peak is not None:
            metrics["mfu"] = metrics["tflops_per_s"] / peak
            metrics["mfu_text"] = metrics["tflops_per_s_text"] / peak
        return metrics
