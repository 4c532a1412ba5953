"""Base classes of the families of diffusers pipelines."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from quantwatt.models import adapters
from quantwatt.models.families import effects, pipelines, recording
from quantwatt.models.family import ImageFamily, Pipeline, Recorded, Run, Settings
from quantwatt.models.sampling import Drawing


class PipelineFamily(ImageFamily):
    """Base of a family with one pipeline class, one denoiser name and one denoiser class."""

    LIBRARIES = ("transformers.modeling_utils",)  # and diffusers, as its classes are loaded
    PIPELINE: str  # diffusers' class
    DENOISER: tuple[str, str]  # the part's name in the pipeline, and diffusers' class

    def load(
        self,
        settings: Settings,
        location: str | Path,
        denoiser: torch.nn.Module | None = None,
        **components: torch.nn.Module,
    ) -> Pipeline:
        parts = components if denoiser is None else {**components, self.DENOISER[0]: denoiser}
        pipeline = pipelines.load(self.PIPELINE, settings, location, **parts, **self.options(settings))
        if denoiser is None:
            adapters.fuse(self.denoiser(pipeline), settings.get("adapters"))
        return pipeline

    def options(self, settings: Settings) -> dict[str, Any]:
        """Further arguments for loading the pipeline."""
        return {}

    def load_denoiser(self, settings: Settings, location: str | Path) -> torch.nn.Module:
        return adapters.fuse(pipelines.load_denoiser(*self.DENOISER, settings, location), settings.get("adapters"))

    def meta_denoiser(self, location: str | Path) -> torch.nn.Module:
        return pipelines.meta_denoiser(*self.DENOISER, location)

    def denoiser_name(self, location: str | Path) -> str:
        return self.DENOISER[0]

    def denoiser(self, pipeline: Pipeline) -> torch.nn.Module:
        return getattr(pipeline, self.DENOISER[0])

    def record(
        self, pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int], drawing: Drawing, steps: set[int]
    ) -> Recorded:
        """See ImageFamily; with guidance the batch holds both branches, the unconditional one first."""
        return recording.record(pipeline, self.denoiser(pipeline), self.generate, prompts, seeds, drawing, steps)


class LatentDiffusionFamily(PipelineFamily):
    """Base of families that encode a prompt and a negative prompt, denoise latents and decode them by a VAE."""

    FURTHER_PROMPTS: ClassVar[dict[str, None]] = {}  # prompts of further encoders that `encode_prompt` requires

    def generate(
        self, pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int], drawing: Drawing
    ) -> np.ndarray:
        """See ImageFamily; all noise, also between steps, comes from one CPU generator per prompt.

        Raises:
            DataError: a key of the sampling changes nothing, or the pipeline does not support it.
        """
        with effects.checked(pipeline, self.denoiser(pipeline), drawing, len(prompts)):
            return self._call(pipeline, seeds, drawing, output_type="np", **self._texts(pipeline, prompts, drawing))

    def encoding(self, pipeline: Pipeline) -> dict[str, Any]:
        """Further arguments of the text encoders, in a pipeline call and in `encode_prompt`."""
        return {}

    @abstractmethod
    def decode(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents, the pipeline's last phase: images [n, 3, height, width] in -1..1."""

    def prepare(self, pipeline: Pipeline, batch: Sequence[str], seeds: Sequence[int], drawing: Drawing) -> Run:
        texts = self._texts(pipeline, batch, drawing)
        return lambda: self._call(pipeline, seeds, drawing, output_type="pt", **texts)

    @torch.no_grad()
    def phases(
        self, pipeline: Pipeline, batch: Sequence[str], seeds: Sequence[int], drawing: Drawing
    ) -> dict[str, Run]:
        """{"text", "denoise", "decode"}; each phase reads outputs of earlier phases, which are computed before."""
        texts, guided = self._texts(pipeline, batch, drawing), (drawing.guidance or 0) > 1

        @torch.no_grad()
        def text():
            return pipeline.encode_prompt(do_classifier_free_guidance=guided, **self.FURTHER_PROMPTS, **texts)

        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        embeddings = dict(zip(names, text(), strict=True)) | self.encoding(pipeline)

        def denoise():
            return self._call(pipeline, seeds, drawing, output_type="latent", **embeddings)

        latents = denoise()

        @torch.no_grad()
        def decode():
            return pipeline.image_processor.postprocess(self.decode(pipeline.vae, latents), output_type="pt")

        return {"text": text, "denoise": denoise, "decode": decode}

    def _texts(self, pipeline, prompts, drawing):
        # An empty negative prompt is encoded, too: without it the pipeline would use zeros, which have no first token.
        negative = [drawing.negative_prompt] * len(prompts)
        return {"prompt": list(prompts), "negative_prompt": negative, **self.encoding(pipeline)}

    def _call(self, pipeline, seeds, drawing, **inputs):
        return pipelines.draw(
            pipeline,
            seeds,
            num_inference_steps=drawing.steps,
            guidance_scale=drawing.guidance,
            height=drawing.height,
            width=drawing.width,
            **inputs,
        ).images
