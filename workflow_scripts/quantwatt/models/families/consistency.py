"""Consistency models (ConsistencyModelPipeline, UNet2DModel): prompts are class numbers, few steps, no guidance."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from quantwatt.artifacts.errors import DataError
from quantwatt.models import architecture
from quantwatt.models.families import pipelines
from quantwatt.models.families.pipeline_family import PipelineFamily
from quantwatt.models.family import Pipeline, Run, Settings
from quantwatt.models.sampling import Drawing


class Family(PipelineFamily):
    """Generates images of one class per prompt; the pipeline has no other networks."""

    PIPELINE = "ConsistencyModelPipeline"
    DENOISER = ("unet", "UNet2DModel")
    DEFAULTS: ClassVar = {"steps": 1, "guidance": 1.0}

    def load(
        self,
        settings: Settings,
        location: str | Path,
        denoiser: torch.nn.Module | None = None,
        **components: torch.nn.Module,
    ) -> Pipeline:
        """See Family.

        Raises:
            DataError: a schedule of `timesteps` does not fit the model's noise levels.
        """
        pipeline = super().load(settings, location, denoiser, **components)
        levels = pipeline.scheduler.config.num_train_timesteps
        for schedule in settings["timesteps"]:
            if schedule[-1] != 0 or sorted(set(schedule), reverse=True) != schedule or schedule[0] >= levels:
                raise DataError(f"timesteps: {schedule} does not fall from below {levels}, the model's levels, to 0.")
        pipeline.schedules = {len(schedule): schedule for schedule in settings["timesteps"]}
        return pipeline

    def generate(
        self, pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int], drawing: Drawing
    ) -> np.ndarray:
        """See ImageFamily; grey images have equal channels.

        The noise of the first and of every further step comes from one CPU generator per image.

        Args:
            prompts: one class number each, as text.
        Raises:
            DataError: the model does not have the class, or does not take the guidance, size or number of steps.
        """
        return pipelines.arrays(self._call(pipeline, prompts, seeds, drawing))

    def _call(self, pipeline, prompts, seeds, drawing):
        config = pipeline.unet.config
        size, levels = config.sample_size, pipeline.scheduler.config.num_train_timesteps
        steps = drawing.steps or self.DEFAULTS["steps"]
        if drawing.guidance not in (None, 0, 1):
            raise DataError(f"guidance: consistency models have none; set 1, not {drawing.guidance}.")
        for key, asked in (("height", drawing.height), ("width", drawing.width)):
            if asked not in (None, size):
                raise DataError(f"{key}: this model draws {size}x{size} pixels only; set {size}, not {asked}.")
        if steps > levels:
            raise DataError(f"steps: this model has {levels} noise levels, and cannot take {steps} steps.")
        schedule = pipeline.schedules.get(steps)
        return pipelines.draw(
            pipeline,
            seeds,
            batch_size=len(prompts),
            class_labels=_classes(prompts, config.num_class_embeds),
            # Without timesteps from the settings the scheduler spaces the steps evenly over its levels.
            num_inference_steps=None if schedule else steps,
            timesteps=schedule,
            output_type="pt",
        ).images

    def prepare(self, pipeline: Pipeline, batch: Sequence[str], seeds: Sequence[int], drawing: Drawing) -> Run:
        return lambda: self._call(pipeline, batch, seeds, drawing)

    def phases(
        self, pipeline: Pipeline, batch: Sequence[str], seeds: Sequence[int], drawing: Drawing
    ) -> dict[str, Run]:
        """{"denoise"}: the network generates pixels, without text encoder or decoder."""
        return {"denoise": self.prepare(pipeline, batch, seeds, drawing)}

    def skips(self, denoiser: Any) -> dict[str, tuple[int, int]]:
        """See Family: the convolutions are in the residual blocks of the up path.

        Their input concatenates the previous layer's output and, in the later channels, the skip connection.
        """
        ups = [resnet for block in denoiser.up_blocks for resnet in block.resnets]
        names = {module: name for name, module in denoiser.named_modules()}
        last_down = denoiser.mid_block or denoiser.down_blocks[-1]
        above, channels = last_down.resnets[-1].out_channels, {}
        for resnet in ups:
            for layer in filter(None, (resnet.conv1, resnet.conv_shortcut)):
                channels[names[layer]] = (above, layer.in_channels - above)
            above = resnet.out_channels
        return channels

    def blocks(self, denoiser: torch.nn.Module) -> list[str]:
        return architecture.blocks(denoiser)

    def quantizable(self, denoiser: torch.nn.Module) -> list[str]:
        return architecture.quantizable(denoiser)


def _classes(prompts, count):
    """Class numbers of prompts, or None where the model is not conditional."""
    if count is None:
        return None
    for prompt in prompts:
        if not (prompt.strip().isdecimal() and int(prompt) < count):
            raise DataError(f"prompt '{prompt}': not one of this model's classes, the numbers 0 to {count - 1}.")
    return [int(prompt) for prompt in prompts]
