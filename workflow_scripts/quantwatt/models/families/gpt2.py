"""GPT-2 (GPT2LMHeadModel): the likelihood of running text, and text token by token."""

import torch

from quantwatt.artifacts.errors import DataError
from quantwatt.data import sources
from quantwatt.jobs.progress import progress
from quantwatt.models import text_pipeline
from quantwatt.models.family import TextFamily


class Family(TextFamily):
    """Likelihoods of windows of running text, and text token by token."""

    BLOCKS = "transformer.h"
    STAGES = (r"attn\.c_attn", r"attn\.c_proj", r"mlp\.c_fc", r"mlp\.c_proj")
    PHASES_APART = ("decode",)  # no part of what `prepare` times

    def load(self, settings, location, denoiser=None):
        """Model and tokenizer."""
        return text_pipeline.load(self.load_denoiser(settings, location) if denoiser is None else denoiser, location)

    def load_denoiser(self, settings, location):
        """The whole network on the CPU, in the model's type, its layers as linear ones."""
        from transformers import AutoModelForCausalLM

        return without_waiting(with_linear_layers(text_pipeline.stored_model(AutoModelForCausalLM, settings, location)))

    def meta_denoiser(self, location):
        """The network's architecture on the meta device, its layers as linear ones."""
        from transformers import AutoModelForCausalLM

        return without_waiting(with_linear_layers(text_pipeline.empty_model(AutoModelForCausalLM, location)))

    def transposed(self, location):
        """Every Conv1D of transformers."""
        from transformers import AutoModelForCausalLM
        from transformers.pytorch_utils import Conv1D

        model = text_pipeline.empty_model(AutoModelForCausalLM, location)
        return {name for name, module in model.named_modules() if isinstance(module, Conv1D)}

    def read(self, path):
        return sources.read_running_text(path)

    def predict(self, pipeline, texts, settings):
        """Negative log-likelihood of running text, window by window.

        Args:
            settings: batch_size; max_length and stride of `windows`.
        Returns:
            one {"nll": float, nats summed over the window's tokens, "tokens": how many, "correct": how many of them
            were the likeliest} a window, in order.
        """
        ids, new = windows(pipeline, texts, settings)
        found, size = [], settings["batch_size"]
        for first in progress(range(0, len(ids), size), description="predicting", unit="batch"):
            batch = ids[first : first + size].to(pipeline.device)  # [windows, tokens]
            logits = pipeline.model(input_ids=batch).logits[:, :-1].float()
            targets = batch[:, 1:]
            nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
            right = logits.argmax(-1) == targets  # [windows, tokens - 1]
            for offset, (losses, hits) in enumerate(zip(nll.cpu(), right.cpu(), strict=True)):
                counted = min(new[first + offset], len(losses))
                total = losses[-counted:].double().sum().item()
                found.append({"nll": total, "tokens": counted, "correct": int(hits[-counted:].sum())})
        return found

    def batches(self, pipeline, texts, settings, size, count):
        """The first batches of windows, ids [size, tokens], for timing.

        Raises:
            DataError: there are not so many.
        """
        ids, _ = windows(pipeline, texts, {**settings, "items": size * count})
        return sources.cut(ids, size, count, "windows")

    def prepare(self, pipeline, batch, seeds, settings):
        """A function of no arguments that computes the logits of a batch of windows, which is on the device already.

        It leaves the logits on the device: nothing is read, tokenized or copied while it runs. Nothing is drawn from
        seeds.
        """
        ids = batch.to(pipeline.device)
        return lambda: pipeline.model(input_ids=ids).logits

    def phases(self, pipeline, batch, seeds, settings):
        """{phase: function as of `prepare`}: `forward` reads whole windows, `decode` writes `new_tokens` tokens.

        Decoding is greedy and goes on from the windows' first half, whose keys and values are computed beforehand.
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

    def work(self, pipeline, batch, settings):
        """What one call of `prepare`'s function does: items, and the tokens in them; and tokens that `decode` writes.

        No window is padded.
        """
        written = len(batch) * _new_tokens(pipeline, settings)
        return {"items": len(batch), "tokens": batch.numel(), "padded_tokens": batch.numel(), "new_tokens": written}

    def record(self, pipeline, texts, calibration):
        """The network's inputs of calibration text.

        Args:
            calibration: samples, at most so many windows; max_length in tokens.
        Returns:
            {"input_ids": [samples, tokens]}.
        """
        return {"input_ids": windows(pipeline, texts, {**calibration, "items": calibration["samples"]})[0]}


def with_linear_layers(model):
    """The model with every Conv1D, whose weight is [in, out], as the linear layer that computes the same; in place."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = torch.nn.Linear(module.nx, module.nf, device="meta")
            linear.weight = torch.nn.Parameter(module.weight.detach().T.contiguous(), requires_grad=False)
            linear.bias = torch.nn.Parameter(module.bias.detach(), requires_grad=False)
            model.set_submodule(name, linear)
    # A cache that one forward pass fills would be in the arguments of a block; generating asks for one by itself.
    model.config.use_cache = False
    return model


def without_waiting(model):
    """The model without what transformers asks of every batch, for which the host would wait for the GPU; in place.

    Nothing is padded here and no window holds several texts, so no mask is made: torch's attention is told that it is
    causal (transformers makes none for a name that has no function for masks).
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register("sdpa_without_mask", sdpa_attention_forward)
    model.set_attn_implementation("sdpa_without_mask")
    model.config.pad_token_id = None  # it would look for it in the tokens
    return model


def windows(pipeline, texts, settings):
    """Running text cut into windows of equal length; a tail that does not fill one is left out.

    Args:
        settings: max_length, tokens of a window; stride, tokens from one to the next (null: max_length, so that they
            do not overlap); items, at most so many windows (null: all).
    Returns:
        (ids [windows, tokens], how many tokens at the end of each no window before it has held). The first token of a
        window has nothing before it, and no likelihood.
    Raises:
        DataError: the texts give no two tokens.
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
