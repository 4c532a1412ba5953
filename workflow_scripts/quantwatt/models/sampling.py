"""What a script and a model's family read of an experiment's samplings, calibration and sensitivities.

A family reads a `Drawing` or a `Reading`; a script's `Sampling`, `Calibration` or `TextSampling` is one, with the file
of prompts or texts, and passes itself on.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """An entry of an experiment, as far as it is read."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Read a completed entry; keys that are no field are ignored."""
        return cls(**{each.name: settings[each.name] for each in fields(cls) if each.name in settings})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the entry from a JSON object, as `from_settings` does."""
        return cls.from_settings(json.loads(text))

    def to_settings(self) -> dict[str, Any]:
        """Return the inverse of `from_settings`, for a fresh process."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Drawing(_Entry):
    """How an image family generates a batch. None: the default of the family or of the pipeline."""

    steps: int | None = None
    guidance: float | None = None  # 0 and 1: none
    height: int | None = None  # pixels
    width: int | None = None
    negative_prompt: str = ""


@dataclass(frozen=True, kw_only=True)
class Sampling(Drawing):
    """How images of a file of prompts are generated: of a sampling or a sensitivity."""

    prompts: str  # path
    steps: int = field()  # required, unlike a notebook's
    images: int | None = None  # None: one of every prompt
    cycle: bool = False  # repeat the prompts from the first if there are too few
    seed: int = 0  # of image 0
    batch_size: int = 1
    trajectory: int | None = None  # number of values of the latents that are kept behind each step; None: none


@dataclass(frozen=True, kw_only=True)
class Calibration(Sampling):
    """Which denoiser inputs are recorded while the images of a file of prompts are generated."""

    timesteps: int  # strata of the trajectory
    timesteps_per_prompt: int  # strata that are recorded of each


@dataclass(frozen=True, kw_only=True)
class Reading(_Entry):
    """How a text family reads texts."""

    max_length: int  # tokens of a sentence or window
    batch_size: int = 1
    items: int | None = None  # maximum number of sentences or windows; None: all
    padding: str = "longest"  # or "max_length"
    stride: int | None = None  # tokens between the starts of windows; None: max_length
    new_tokens: int = 32  # of one run of the phase `decode`

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Read a completed sampling or calibration, whose `samples` are `items`; keys that are no field are ignored."""
        return super().from_settings({"items": settings.get("samples"), **settings})


@dataclass(frozen=True, kw_only=True)
class TextSampling(Reading):
    """How a file of texts is read: of a sampling or a calibration."""

    texts: str  # path
    seed: ClassVar[None] = None  # no random numbers


def of(settings: Mapping[str, Any]) -> Sampling | TextSampling:
    """Read a completed sampling of images or texts."""
    return TextSampling.from_settings(settings) if "texts" in settings else Sampling.from_settings(settings)


def of_json(text: str) -> Sampling | TextSampling:
    """Read a sampling from a JSON object, as `of` does."""
    return of(json.loads(text))
