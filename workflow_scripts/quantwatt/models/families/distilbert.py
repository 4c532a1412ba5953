"""DistilBERT with a classification head (DistilBertForSequenceClassification): one label per sentence."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from quantwatt.data import sources
from quantwatt.jobs.progress import progress
from quantwatt.models import text_pipeline
from quantwatt.models.family import Pipeline, Run, Settings, TextFamily


class Family(TextFamily):
    """Predicts one label per sentence."""

    BLOCKS = "distilbert.transformer.layer"
    STAGES = (r"attention\.[qkv]_lin", r"attention\.out_lin", r"ffn\.lin1", r"ffn\.lin2")
    PADS = True

    def load(self, settings: Settings, location: str | Path, denoiser: torch.nn.Module | None = None) -> Pipeline:
        """Load model and tokenizer."""
        return text_pipeline.load(self.load_denoiser(settings, location) if denoiser is None else denoiser, location)

    def load_denoiser(self, settings: Settings, location: str | Path) -> torch.nn.Module:
        """The whole network on the CPU, in the model's dtype."""
        from transformers import AutoModelForSequenceClassification

        return text_pipeline.stored_model(AutoModelForSequenceClassification, settings, location)

    def meta_denoiser(self, location: str | Path) -> torch.nn.Module:
        """The network's architecture on the meta device."""
        from transformers import AutoModelForSequenceClassification

        model = text_pipeline.empty_model(AutoModelForSequenceClassification, location)
        # Position ids are in no checkpoint: they are constants, not learned.
        positions = torch.arange(model.config.max_position_embeddings).expand(1, -1)
        model.distilbert.embeddings.register_buffer("position_ids", positions, persistent=False)
        return model

    def read(self, path: str | Path) -> tuple[list[str], list[int] | list[str] | None]:
        return sources.read_sentences(path)

    def predict(self, pipeline: Pipeline, texts: Sequence[str], settings: Settings) -> list[dict[str, Any]]:
        """Predict the label of every sentence.

        Args:
            settings: batch_size; max_length, the number of tokens at which a sentence is truncated; items, the largest
                number of sentences (null: all).
        Returns:
            one {"label": int, "logits": [float, ...]} per sentence, in order.
        """
        predictions, size, texts = [], settings["batch_size"], texts[: settings.get("items")]
        for first in progress(range(0, len(texts), size), description="predicting", unit="batch"):
            inputs = _on_device(pipeline, texts[first : first + size], settings)
            logits = pipeline.model(**inputs).logits.float().cpu()  # [batch, labels]
            labels = logits.argmax(-1).tolist()
            predictions += [{"label": k, "logits": row} for k, row in zip(labels, logits.tolist(), strict=True)]
        return predictions

    def batches(
        self, pipeline: Pipeline, texts: Sequence[str], settings: Settings, size: int, count: int
    ) -> list[Sequence[str]]:
        """The first batches of sentences, for timing.

        Raises:
            DataError: there are too few sentences.
        """
        return sources.cut(texts, size, count, "sentences")

    def prepare(self, pipeline: Pipeline, batch: Sequence[str], seeds: Sequence[int] | None, settings: Settings) -> Run:
        """A function without arguments that classifies a batch of sentences, which is tokenized on the device already.

        Sentences are padded to the longest of the batch, or to max_length with `padding: max_length`. In the latter
        case there is always a mask, even without padding, so that batches of any size compute alike. The logits stay on
        the device: the function reads, tokenizes and copies nothing. The seeds are not used.
        """
        inputs = _on_device(pipeline, batch, settings)
        return lambda: pipeline.model(**inputs).logits

    def phases(
        self, pipeline: Pipeline, batch: Sequence[str], seeds: Sequence[int] | None, settings: Settings
    ) -> dict[str, Run]:
        """{phase: function as `prepare` returns}; classification has one phase."""
        return {"forward": self.prepare(pipeline, batch, seeds, settings)}

    def work(self, pipeline: Pipeline, batch: Sequence[str], settings: Settings) -> dict[str, int]:
        """The work of one call of `prepare`'s function: items, and their tokens without and with padding."""
        mask = _tokenized(pipeline, batch, settings).attention_mask
        return {"items": len(mask), "tokens": int(mask.sum()), "padded_tokens": mask.numel()}

    def record(self, pipeline: Pipeline, texts: Sequence[str], calibration: Settings) -> dict[str, torch.Tensor]:
        """The network's inputs for calibration sentences.

        Args:
            calibration: samples, the largest number of sentences; max_length in tokens.
        Returns:
            {"input_ids": [samples, tokens], "attention_mask": [samples, 1, 1, tokens] bool, False where padded}.
        """
        tokens = _tokenized(pipeline, texts[: calibration["samples"]], calibration)
        return {"input_ids": tokens.input_ids, "attention_mask": _mask(tokens)}

    def real_tokens(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See Family; observers ignore padded tokens."""
        return inputs["attention_mask"][:, 0, 0]


def _tokenized(pipeline, texts, settings):
    # Always pad on the right: positions are counted from the left, so with padding on the left a sentence's prediction
    # would depend on its batch.
    return pipeline.tokenizer(
        list(texts), padding=settings.get("padding", "longest"), padding_side="right", truncation=True,
        max_length=pipeline.tokens(settings["max_length"]), return_tensors="pt",
    )  # fmt: skip


def _mask(tokens):
    """[samples, 1, 1, tokens] bool: the model takes this shape unchanged instead of building a mask at every call."""
    return tokens.attention_mask.bool()[:, None, None]


def _on_device(pipeline, texts, settings):
    tokens = _tokenized(pipeline, texts, settings)
    plain = tokens.attention_mask.all() and settings.get("padding", "longest") == "longest"
    mask = None if plain else _mask(tokens).to(pipeline.device)
    return {"input_ids": tokens.input_ids.to(pipeline.device), "attention_mask": mask}
