"""Configuration of a mixture: several datasets, and the share of each in an epoch."""

from typing import ClassVar

from pydantic import Field, model_validator

from warren.config.layered_config import Config, Replaces, alternatives
from warren.config.names import DatasetReference


class MixtureComponent(Config):
    """One dataset of a mixture, and its share of an epoch: passes, samples, or a weight relative to the others.

    Without any of the three, an epoch takes the dataset once.
    """

    replaces: ClassVar[Replaces] = alternatives("epochs", "samples", "weight")

    name: DatasetReference
    epochs: float | None = Field(default=None, gt=0)
    samples: int | None = Field(default=None, gt=0)
    weight: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_share(self) -> "MixtureComponent":
        if sum(share is not None for share in (self.epochs, self.samples, self.weight)) > 1:
            raise ValueError("give at most one of 'epochs', 'samples' and 'weight'")
        return self


def check_mixture(dataset: str | None, datasets: tuple[MixtureComponent, ...]) -> None:
    """Check that a stage names one dataset, or a valid mixture.

    Raises:
        ValueError: It names both or none, a dataset twice, or weights for some datasets only.
    """
    if (dataset is None) == (not datasets):
        raise ValueError("give exactly one of 'dataset' and 'datasets'")
    names = [component.name for component in datasets]
    if len(set(names)) != len(names):
        raise ValueError("datasets: name each dataset once; to repeat one, give it 'epochs'")
    if len({component.weight is None for component in datasets}) > 1:
        raise ValueError("datasets: give a 'weight' to all of them or to none; a weight is relative to the others")
