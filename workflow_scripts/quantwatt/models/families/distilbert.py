"""DistilBERT with a classification head (DistilBertForSequenceClassification): one label a sentence."""

import torch

from quantwatt.data import sources
from quantwatt.jobs.progress import progress
from quantwatt.models import text_pipeline
from quantwatt.models.family import TextFamily


class Family(TextFamily):
    """One label a sentence."""

    BLOCKS = "distilbert.transformer.layer"
    STAGES = (r"attention\.[qkv]_lin", r"attention\.out_lin", r"ffn\.lin1", r"ffn\.lin2")
    PADS = True

    def load(self, settings, location, denoiser=None):
        """Model and tokenizer."""
        return text_pipeline.load(self.load_denoiser(settings, location) if denoiser is None else denoiser, location)

    def load_denoiser(self, settings, location):
        """The whole network on the CPU, in the model's type."""
        from transformers import AutoModelForSequenceClassification

        return text_pipeline.stored_model(AutoModelForSequenceClassification, settings, location)

    def meta_denoiser(self, location):
        """The network's architecture on the meta device."""
        from transformers import AutoModelForSequenceClassification

        model = text_pipeline.empty_model(AutoModelForSequenceClassification, location)
        # Positions are in no checkpoint: they are counted, not learned.
        positions = torch.arange(model.config.max_position_embeddings).expand(1, -1)
        model.distilbert.embeddings.register_buffer("position_ids", positions, persistent=False)
        return model

    def read(self, path):
        return sources.read_sentences(path)

    def predict(self, pipeline, texts, settings):
        """What the model says of every sentence.

        Args:
            settings: batch_size; max_length in tokens, beyond which a sentence is cut; items, at most so many sentences
                (null: all).
        Returns:
            one {"label": int, "logits": [float, ...]} a sentence, in order.
        """
        found, size, texts = [], settings["batch_size"], texts[: settings.get("items")]
        for first in progress(range(0, len(texts), size), description="predicting", unit="batch"):
            inputs = _on_device(pipeline, texts[first : first + size], settings)
            logits = pipeline.model(**inputs).logits.float().cpu()  # [batch, labels]
            labels = logits.argmax(-1).tolist()
            found += [{"label": k, "logits": row} for k, row in zip(labels, logits.tolist(), strict=True)]
        return found

    def batches(self, pipeline, texts, settings, size, count):
        """The first batches of sentences, for timing.

        Raises:
            DataError: there are not so many.
        """
        return sources.cut(texts, size, count, "sentences")

    def prepare(self, pipeline, batch, seeds, settings):
        """A function of no arguments that classifies a batch of sentences, which are on the device already.

        They are as long as the longest of them, or all of max_length with `padding: max_length`, and then masked even
        where nothing is padded, so that batches of any size compute alike. The logits stay on the device: nothing is
        read, tokenized or copied while it runs. Nothing is drawn from seeds.
        """
        inputs = _on_device(pipeline, batch, settings)
        return lambda: pipeline.model(**inputs).logits

    def phases(self, pipeline, batch, seeds, settings):
        """{phase: function as of `prepare`}; classifying has one phase."""
        return {"forward": self.prepare(pipeline, batch, seeds, settings)}

    def work(self, pipeline, batch, settings):
        """What one call of `prepare`'s function does: items, and the tokens in them, without padding and with it."""
        mask = _tokenized(pipeline, batch, settings).attention_mask
        return {"items": len(mask), "tokens": int(mask.sum()), "padded_tokens": mask.numel()}

    def record(self, pipeline, texts, calibration):
        """The network's inputs of calibration sentences.

        Args:
            calibration: samples, at most so many sentences; max_length in tokens.
        Returns:
            {"input_ids": [samples, tokens], "attention_mask": [samples, 1, 1, tokens] bool, False where padded}.
        """
        tokens = _tokenized(pipeline, texts[: calibration["samples"]], calibration)
        return {"input_ids": tokens.input_ids, "attention_mask": _mask(tokens)}

    def real_tokens(self, inputs):
        """As of Family, so that statistics see only those."""
        return inputs["attention_mask"][:, 0, 0]


def _tokenized(pipeline, texts, settings):
    # On the right, whatever the tokenizer's files say: positions are counted from the left, so that with padding there
    # what is said of a sentence would depend on its batch.
    return pipeline.tokenizer(
        list(texts), padding=settings.get("padding", "longest"), padding_side="right", truncation=True,
        max_length=pipeline.tokens(settings["max_length"]), return_tensors="pt",
    )  # fmt: skip


def _mask(tokens):
    """[samples, 1, 1, tokens] bool, which the model takes as it is instead of making one at every call."""
    return tokens.attention_mask.bool()[:, None, None]


def _on_device(pipeline, texts, settings):
    tokens = _tokenized(pipeline, texts, settings)
    plain = tokens.attention_mask.all() and settings.get("padding", "longest") == "longest"
    mask = None if plain else _mask(tokens).to(pipeline.device)
    return {"input_ids": tokens.input_ids.to(pipeline.device), "attention_mask": mask}
