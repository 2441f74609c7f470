"""The gate: the score that a model must reach before it is released."""

from warren.config import GateConfig
from warren.errors import GateError


def check_gate(gate: GateConfig, metric: str, score: float, num_samples: int) -> None:
    """Check a measured score against the gate.

    Raises:
        GateError: The score is below the gate's, or nothing was measured.
    """
    if num_samples == 0 or score < gate.min_score:
        raise GateError(
            f"{metric} is {score:.4f} on {num_samples} samples, the gate asks for {gate.min_score:.4f}: not released; "
            "train further, or lower release.gate.min_score"
        )
