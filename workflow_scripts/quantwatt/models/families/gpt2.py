"""GPT-2 (GPT2LMHeadModel): the likelihood of running text, and greedy decoding."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from quantwatt.artifacts.errors import DataError
from quantwatt.data import sources
from quantwatt.jobs.progress import progress
from quantwatt.models import text_pipeline
from quantwatt.models.family import Pipeline, Run, Settings, TextFamily


class Family(TextFamily):
    """Computes the likelihood of windows of running text, and decodes token by token."""

    BLOCKS = "transformer.h"
    STAGES = (r"attn\.c_attn", r"attn\.c_proj", r"mlp\.c_fc", r"mlp\.c_proj")
    PHASES_APART = ("decode",)  # not included in `prepare`'s run

    def load(self, settings: Settings, location: str | Path, denoiser: torch.nn.Module | None = None) -> Pipeline:
        """Load model and tokenizer."""
        return text_pipeline.load(self.load_denoiser(settings, location) if denoiser is None else denoiser, location)

    def load_denoiser(self, settings: Settings, location: str | Path) -> torch.nn.Module:
        """The whole network on the CPU, in the model's dtype, with linear layers instead of Conv1D."""
        from transformers import AutoModelForCausalLM

        return without_waiting(with_linear_layers(text_pipeline.stored_model(AutoModelForCausalLM, settings, location)))

    def meta_denoiser(self, location: str | Path) -> torch.nn.Module:
        """The network's architecture on the meta device, with linear layers instead of Conv1D."""
        from transformers import AutoModelForCausalLM

        return without_waiting(with_linear_layers(text_pipeline.empty_model(AutoModelForCausalLM, location)))

    def transposed(self, location: str | Path) -> set[str]:
        """See Family: the layers that are Conv1D in transformers."""
        from transformers import AutoModelForCausalLM
        from transformers.pytorch_utils import Conv1D

        model = text_pipeline.empty_model(AutoModelForCausalLM, location)
        return {name for name, module in model.named_modules() if isinstance(module, Conv1D)}

    def read(self, path: str | Path) -> tuple[list[str], None]:
        return sources.read_running_text(path)

    def predict(self, pipeline: Pipeline, texts: Sequence[str], settings: Settings) -> list[dict[str, Any]]:
        """Negative log-likelihood of running text, window by window.

        Args:
            settings: batch_size; max_length and stride of `windows`.
        Returns:
            one {"nll": float, nats summed over the window's tokens, "tokens": their number, "correct": the number of
            tokens that the model predicts} per window, in order.
        """
        ids, new = windows(pipeline, texts, settings)
        predictions, size = [], settings["batch_size"]
        for first in progress(range(0, len(ids), size), description="predicting", unit="batch"):
            batch = ids[first : first + size].to(pipeline.device)  # [windows, tokens]
            logits = pipeline.model(input_ids=batch).logits[:, :-1].float()
            targets = batch[:, 1:]
            nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
            right = logits.argmax(-1) == targets  # [windows, tokens - 1]
            for offset, (losses, hits) in enumerate(zip(nll.cpu(), right.cpu(), strict=True)):
                counted = min(new[first + offset], len(losses))
                total = losses[-counted:].double().sum().item()
                predictions.append({"nll": total, "tokens": counted, "correct": int(hits[-counted:].sum())})
        return predictions

    def batches(
        self, pipeline: Pipeline, texts: Sequence[str], settings: Settings, size: int, count: int
    ) -> list[torch.Tensor]:
        """The first batches of windows, ids [size, tokens], for timing.

        Raises:
            DataError: there are too few windows.
        """
        ids, _ = windows(pipeline, texts, {**settings, "items": size * count})
        return sources.cut(ids, size, count, "windows")

    def prepare(self, pipeline: Pipeline, batch: torch.Tensor, seeds: Sequence[int] | None, settings: Settings) -> Run:
        """A function without arguments that computes the logits of a batch of windows, which is on the device already.

        The logits stay on the device: the function reads, tokenizes and copies nothing. The seeds are not used.
        """
        ids = batch.to(pipeline.device)
        return lambda: pipeline.model(input_ids=ids).logits

    def phases(
        self, pipeline: Pipeline, batch: torch.Tensor, seeds: Sequence[int] | None, settings: Settings
    ) -> dict[str, Run]:
        """{phase: function as `prepare` returns}: `forward` reads whole windows, `decode` writes `new_tokens` tokens.

        Decoding is greedy. It continues the first half of each window, whose keys and values are computed before.
        """
        from transformers import DynamicCache

        model, count = pipeline.model, _new_tokens(pipeline, settings)
        length = max(1, min(batch.shape[1] // 2, pipeline.tokens(settings["max_length"]) - count))
        prompt = batch[:, :length].to(pipeline.device)
        cache = DynamicCache(config=model.config)
        first = model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.argmax(-1)

        def decode():
            token = first  # [windows, 1]
            for _ in range(count):
                token = model(input_ids=token, past_key_values=cache, use_cache=True).logits.argmax(-1)
            cache.crop(-count)  # back to the prompt
            return token

        return {"forward": self.prepare(pipeline, batch, seeds, settings), "decode": decode}

    def work(self, pipeline: Pipeline, batch: torch.Tensor, settings: Settings) -> dict[str, int]:
        """The work of one call of `prepare`'s function: items and their tokens; and the tokens that `decode` writes.

        No window is padded.
        """
        written = len(batch) * _new_tokens(pipeline, settings)
        return {"items": len(batch), "tokens": batch.numel(), "padded_tokens": batch.numel(), "new_tokens": written}

    def record(self, pipeline: Pipeline, texts: Sequence[str], calibration: Settings) -> dict[str, torch.Tensor]:
        """The network's inputs for calibration text.

        Args:
            calibration: samples, the largest number of windows; max_length in tokens.
        Returns:
            {"input_ids": [samples, tokens]}.
        """
        return {"input_ids": windows(pipeline, texts, {**calibration, "items": calibration["samples"]})[0]}


def with_linear_layers(model: Any) -> Any:
    """Replace every Conv1D, whose weight is [in, out], by the equivalent linear layer, in place."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = torch.nn.Linear(module.nx, module.nf, device="meta")
            linear.weight = torch.nn.Parameter(module.weight.detach().T.contiguous(), requires_grad=False)
            linear.bias = torch.nn.Parameter(module.bias.detach(), requires_grad=False)
            model.set_submodule(name, linear)
    # A key-value cache would be among the arguments of a block; decoding passes a cache explicitly.
    model.config.use_cache = False
    return model


def without_waiting(model: Any) -> Any:
    """Disable transformers' checks of every batch, for which the host would wait for the GPU, in place.

    No window is padded and no window holds several texts, so attention needs no mask tensor, only its causal flag
    (transformers builds no mask for an attention implementation without a registered mask function).
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register("sdpa_without_mask", sdpa_attention_forward)
    model.set_attn_implementation("sdpa_without_mask")
    model.config.pad_token_id = None  # else transformers searches the tokens for it
    return model


def windows(pipeline: Pipeline, texts: Sequence[str], settings: Settings) -> tuple[torch.Tensor, list[int]]:
    """Cut running text into windows of equal length; a tail that does not fill a window is left out.

    Args:
        settings: max_length, tokens of a window; stride, tokens from the start of one window to the next (null:
            max_length, so that windows do not overlap); items, the largest number of windows (null: all).
    Returns:
        (ids [windows, tokens], for each window the number of tokens at its end that no earlier window holds). The first
        token of a window has no context and no likelihood.
    Raises:
        DataError: the texts have fewer than two tokens.
    """
    ids = pipeline.tokenizer("\n\n".join(texts), verbose=False).input_ids
    if len(ids) < 2:
        raise DataError(f"the texts give {len(ids)} tokens, and the likelihood of one needs another before it.")
    length = min(pipeline.tokens(settings["max_length"]), len(ids))
    stride = min(settings.get("stride") or length, length)
    starts = range(0, len(ids) - length + 1, stride)[: settings.get("items")]
    cut = torch.tensor([ids[start : start + length] for start in starts])
    return cut, [length] + [stride] * (len(starts) - 1)


def _new_tokens(pipeline, settings):
    return min(settings["new_tokens"], pipeline.tokens(settings["max_length"]) - 1)
