"""Dynamic quantization of a layer's input: symmetric integers, one scale per token or per tensor."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ActivationFormat:
    """bits: 2 to 8; granularity: "token" (one scale per row of the input) or "tensor"."""

    bits: int
    granularity: str = "token"

    @classmethod
    def from_settings(cls, settings):
        return None if settings is None else cls(settings["bits"], settings["granularity"])

    def encode(self, inputs):
        """Integers and their scale.

        Args:
            inputs: [tokens, columns], any floating type.
        Returns:
            (codes [tokens, columns] int8, scale [tokens, 1] or [1, 1] float32).
        """
        values = inputs.float()
        largest = (
            values.abs().amax(dim=1, keepdim=True) if self.granularity == "token" else values.abs().amax()[None, None]
        )
        limit = 2 ** (self.bits - 1) - 1
        scale = largest.clamp(min=torch.finfo(torch.float32).tiny) / limit
        return torch.round(values / scale).clamp_(-limit, limit).to(torch.int8), scale

    def fake_quantize(self, inputs):
        """The values that the integers stand for, in the input's type and shape."""
        codes, scale = self.encode(inputs.reshape(-1, inputs.shape[-1]))
        return (codes.float() * scale).to(inputs.dtype).reshape(inputs.shape)
