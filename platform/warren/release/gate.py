"""The gate: what a release must reach before it may serve."""

from warren.config import GateConfig
from warren.errors import GateError


def check_gate(gate: GateConfig, metric: str, score: float, num_samples: int) -> None:
    """Let a release pass, or say why not.

    Raises:
        GateError: The score is below the gate's.
    """
    if num_samples == 0 or score < gate.min_score:
        raise GateError(
            f"{metric} is {score:.4f} on {num_samples} samples, the gate asks for {gate.min_score:.4f}: not released"
        )
