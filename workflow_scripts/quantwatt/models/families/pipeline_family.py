"""What the families of diffusers pipelines have in common."""

from abc import abstractmethod
from typing import ClassVar

import torch

from quantwatt.models.families import effects, pipelines, recording
from quantwatt.models.family import ImageFamily


class PipelineFamily(ImageFamily):
    """One class of pipelines, whose denoiser has one name and one class."""

    PIPELINE: str  # diffusers' class
    DENOISER: tuple[str, str]  # the pipeline's name of it, and diffusers' class

    def load(self, settings, location, denoiser=None):
        parts = {} if denoiser is None else {self.DENOISER[0]: denoiser}
        return pipelines.load(self.PIPELINE, settings, location, **parts, **self.options(settings))

    def options(self, settings):
        """What else the class of pipelines is loaded with."""
        return {}

    def load_denoiser(self, settings, location):
        return pipelines.load_denoiser(*self.DENOISER, settings, location)

    def meta_denoiser(self, location):
        return pipelines.meta_denoiser(*self.DENOISER, location)

    def denoiser(self, pipeline):
        """The network of a loaded pipeline."""
        return getattr(pipeline, self.DENOISER[0])

    def record(self, pipeline, prompts, seeds, calibration, steps):
        """With guidance the batch holds both branches, unconditional first."""
        return recording.record(pipeline, self.denoiser(pipeline), self.generate, prompts, seeds, calibration, steps)


class LatentDiffusionFamily(PipelineFamily):
    """Encodes a prompt and a negative one, denoises latents, decodes them by an autoencoder."""

    FURTHER_PROMPTS: ClassVar[dict[str, None]] = {}  # of further text encoders, where `encode_prompt` has no default

    def generate(self, pipeline, prompts, seeds, sampling):
        """As of ImageFamily: noise, also what the sampler adds between steps, comes from one CPU generator per prompt.

        Raises:
            DataError: a key of the sampling changes nothing, or the pipeline does not draw what it says.
        """
        with effects.checked(pipeline, self.denoiser(pipeline), sampling, len(prompts)):
            return self._call(pipeline, seeds, sampling, output_type="np", **self._texts(pipeline, prompts, sampling))

    def encoding(self, pipeline):
        """What the text encoders are asked for beside the texts, in a call and alone."""
        return {}

    @abstractmethod
    def decode(self, vae, latents):
        """The pipeline's last part: images [n, 3, height, width] in -1..1 of its latents."""

    def prepare(self, pipeline, batch, seeds, settings):
        texts = self._texts(pipeline, batch, settings)
        return lambda: self._call(pipeline, seeds, settings, output_type="pt", **texts)

    @torch.no_grad()
    def phases(self, pipeline, batch, seeds, settings):
        """{"text", "denoise", "decode"}, each on what the parts before gave."""
        texts, guided = self._texts(pipeline, batch, settings), settings["guidance"] > 1

        @torch.no_grad()
        def text():
            return pipeline.encode_prompt(do_classifier_free_guidance=guided, **self.FURTHER_PROMPTS, **texts)

        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        embeddings = dict(zip(names, text(), strict=True)) | self.encoding(pipeline)

        def denoise():
            return self._call(pipeline, seeds, settings, output_type="latent", **embeddings)

        latents = denoise()

        @torch.no_grad()
        def decode():
            return pipeline.image_processor.postprocess(self.decode(pipeline.vae, latents), output_type="pt")

        return {"text": text, "denoise": denoise, "decode": decode}

    def _texts(self, pipeline, prompts, sampling):
        # An empty negative prompt is encoded, too: zeros in its place, as without one, would have no first token.
        negative = [sampling["negative_prompt"]] * len(prompts)
        return {"prompt": list(prompts), "negative_prompt": negative, **self.encoding(pipeline)}

    def _call(self, pipeline, seeds, sampling, **inputs):
        return pipelines.draw(
            pipeline,
            seeds,
            num_inference_steps=sampling["steps"],
            guidance_scale=sampling["guidance"],
            height=sampling["height"],
            width=sampling["width"],
            **inputs,
        ).images
