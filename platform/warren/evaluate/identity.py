"""The identity of an evaluation: every input that can change its result, as one value with a digest."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from warren import __version__
from warren.config import EvaluateConfig

FORMAT = 3
"""Version of the measuring code: raise it when what is asked, how it is judged or what a report holds changes."""

_NO_INPUT = {"max_quarantined_fraction"}  # decides whether a result is accepted, not what it is


@dataclass(frozen=True)
class Identity:
    """The identity of an evaluation: a checkpoint, a dataset, the options and the version of the code.

    Attributes:
        checkpoint: Digest of the model's files.
        dataset: Digest of the dataset's content.
        options: Every field of `EvaluateConfig` that can change the result.
        code: Version of Warren and of its measuring code.
    """

    checkpoint: str
    dataset: str
    options: dict[str, Any]
    code: str = f"warren {__version__}, evaluation {FORMAT}"

    @classmethod
    def of(cls, config: EvaluateConfig, model_digest: str, dataset_digest: str) -> "Identity":
        """Identify an evaluation.

        Args:
            config: What is asked, and how.
            model_digest: Digest of the checkpoint's model files.
            dataset_digest: Digest of the dataset's content.
        """
        options = config.model_dump(mode="json", exclude=_NO_INPUT)
        return cls(model_digest, dataset_digest, options)

    @property
    def name(self) -> str:
        """A folder name that differs where anything differs, for example `exact_match-0d1f5c7a9b3e`."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return f"{self.options['metric']}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"

    @property
    def description(self) -> str:
        """The metric, the dataset, and the options that are not the default, for a sentence."""
        return _described(self.options)

    def differences(self, other: "Identity") -> list[str]:
        """Say how another identity differs, as `limit_samples=100`; empty if it is the same."""
        keys = {**self.options, **other.options}
        differences = [
            f"{key}={other.options.get(key)}" for key in keys if self.options.get(key) != other.options.get(key)
        ]
        if self.checkpoint != other.checkpoint:
            differences.append("other weights at the same step")
        # Under another name other content is no surprise; the name is reported already.
        if self.dataset != other.dataset and self.options["dataset"] == other.options["dataset"]:
            differences.append("the dataset had other content")
        if self.code != other.code:
            differences.append(f"by {other.code}")
        return differences


def _described(options: dict[str, Any]) -> str:
    defaults = EvaluateConfig(dataset="any@v1").model_dump(mode="json")
    named = ("dataset", "metric")
    changed = [f"{k}={v}" for k, v in options.items() if k not in named and defaults.get(k) != v]
    text = f"{options['metric']} on {options['dataset']}"
    return f"{text} ({', '.join(changed)})" if changed else text
