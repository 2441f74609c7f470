"""Samples that could not be used: written down with their reason, counted against a ceiling."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from warren.data.batch import Quarantined
from warren.errors import QuarantineError
from warren.storage import Location


@dataclass
class Quarantine:
    """Collects unusable samples of one attempt.

    Attributes:
        folder: Where the Parquet files go, beside the run.
        max_fraction: Share of an epoch's samples that may be unusable.
        remedy: What to do when there are more.
    """

    folder: Location
    max_fraction: float
    remedy: str = "mend the dataset or raise max_quarantined_fraction"
    _pending: list[tuple[int, Quarantined]] = field(default_factory=list)
    _seen: dict[str, str] = field(default_factory=dict)

    def add(self, step: int, samples: Sequence[Quarantined], num_samples: int) -> None:
        """Record the unusable samples of one step.

        Raises:
            QuarantineError: There are more than `max_fraction` of `num_samples` by now.
        """
        self._pending += [(step, sample) for sample in samples]
        self._seen.update({sample.key: sample.reason for sample in samples})
        if len(self._seen) > self.max_fraction * num_samples:
            key, reason = next(iter(self._seen.items()))
            raise QuarantineError(
                f"{len(self._seen)} of {num_samples} samples cannot be used so far, more than the allowed "
                f"{self.max_fraction:.2%}; the first is {key!r}: {reason}. Those found so far are in {self.folder}; "
                f"{self.remedy}"
            )

    def write(self, step: int) -> None:
        """Write the samples recorded since the last call as one Parquet file, named by the current step."""
        if not self._pending:
            return
        rows = [{"step": s, "key": q.key, "source": q.source, "reason": q.reason} for s, q in self._pending]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        (self.folder / f"{step:08d}.parquet").put_bytes(buffer.getvalue())
        self._pending.clear()
