"""What solvers and transforms read of a layer's inputs, accumulated batch by batch and never stored whole.

A solver or transform names what it needs, `NEEDS = ("hessian",)`, and receives a `Observers` with one attribute for
each name.
"""

import copy
from collections.abc import Collection
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Self

import torch

from quantwatt.artifacts.errors import DataError

CHUNK = 2048  # tokens in one product: bounds the float32 copy
TRIANGLE = 256  # columns of a block of the symmetric product
SAMPLED_TOKENS = 1024
SAME = 0.02  # deviation, as of `FirstToken`, of vectors that are equal: a batch's size chooses a text encoder's kernels
TINY = torch.finfo(torch.float32).tiny
MOMENTUM = 0.95


@contextmanager
def _bfloat16_products(inputs):
    """Multiply bfloat16 inputs as such, with sums in float32, where the CPU has instructions for it."""
    cpu = inputs.dtype == torch.bfloat16 and inputs.device.type == "cpu"
    if not (cpu and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())):
        yield
        return
    matmul = torch.backends.mkldnn.matmul  # ty: ignore[missing-attribute]  (made when the module is imported)
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


class Hessian:
    """Running mean of 2·x̃·x̃ᵀ over tokens, [columns, columns] float32. Only its lower triangle is computed."""

    def __init__(self, columns: int, device: str | torch.device = "cpu"):
        self.sum = torch.zeros(columns, columns, device=device)
        self.tokens = 0

    def observe(self, inputs: torch.Tensor, reference: torch.Tensor | None = None) -> None:
        """Add inputs [tokens, columns]; sums of products in float32."""
        self.tokens += len(inputs)
        for chunk in inputs.split(CHUNK):
            chunk = chunk.float()
            with _bfloat16_products(inputs):
                for start in range(0, chunk.shape[1], TRIANGLE):
                    rows = slice(start, start + TRIANGLE)
                    self.sum[rows, : rows.stop].addmm_(chunk[:, rows].T, chunk[:, : rows.stop])

    @property
    def value(self) -> torch.Tensor:
        lower = self.sum.tril() * (2 / max(self.tokens, 1))
        return lower + lower.tril(-1).T


class Tokens:
    """An even subset of at most SAMPLED_TOKENS input rows, [tokens, columns]: every k-th, k doubling as they come."""

    def __init__(self, columns: int, device: str | torch.device = "cpu"):
        self.value = torch.empty(0, columns, device=device)
        self.stride, self.seen = 1, 0

    def observe(self, inputs: torch.Tensor, reference: torch.Tensor | None = None) -> None:
        first = -self.seen % self.stride
        self.seen += len(inputs)
        self.value = torch.cat([self.value, inputs[first :: self.stride].float()])
        while len(self.value) > SAMPLED_TOKENS:
            self.value, self.stride = self.value[::2].contiguous(), 2 * self.stride


class Cross:
    """Running mean of 2·x̃·xᵀ: quantized inputs x̃ beside the float model's x for the same tokens.

    inputs, references: Tokens of both, the same tokens, for errors against the float model.
    """

    def __init__(self, columns: int, device: str | torch.device = "cpu"):
        self.sum = torch.zeros(columns, columns, device=device)
        self.inputs, self.references = Tokens(columns, device), Tokens(columns, device)
        self.tokens = 0

    def observe(self, inputs: torch.Tensor, reference: torch.Tensor) -> None:
        """Add inputs and the float model's inputs for the same tokens, both [tokens, columns]."""
        self.tokens += len(inputs)
        self.inputs.observe(inputs)
        self.references.observe(reference)
        for chunk, float_chunk in zip(inputs.split(CHUNK), reference.split(CHUNK), strict=True):
            with _bfloat16_products(inputs):
                self.sum.addmm_(chunk.float().T, float_chunk.float())

    @property
    def value(self) -> torch.Tensor:
        return self.sum * (2 / max(self.tokens, 1))


class Count:
    """How many tokens there were."""

    def __init__(self, columns: int, device: str | torch.device = "cpu"):
        self.value = 0

    def observe(self, inputs: torch.Tensor, reference: torch.Tensor | None = None) -> None:
        self.value += len(inputs)


class HeldOut:
    """Tokens that are in no other statistic: samples of the inputs, and of the float model's for the same tokens.

    inputs, references: Tokens; references are empty where the float model's are not watched.
    """

    def __init__(self, columns: int, device: str | torch.device = "cpu"):
        self.inputs, self.references = Tokens(columns, device), Tokens(columns, device)

    def observe(self, inputs: torch.Tensor, reference: torch.Tensor | None = None) -> None:
        self.inputs.observe(inputs)
        if reference is not None:
            self.references.observe(reference)


class Maximum:
    """Largest magnitude of every input column over all tokens, [columns] float32."""

    def __init__(self, columns: int, device: str | torch.device = "cpu"):
        self.value = torch.zeros(columns, device=device)

    def observe(self, inputs: torch.Tensor, reference: torch.Tensor | None = None) -> None:
        self.value = torch.maximum(self.value, inputs.abs().amax(dim=0).float())


class Range:
    """Running minimum and maximum of every input column, [columns] float32; each batch moves them by 1 - MOMENTUM.

    MixDQ's code runs one pair for the whole tensor. By columns they can be scaled, taken apart, and left out where they
    are not finite; a static grid then takes the widest column, which is never wider than the tensor's own pair.
    """

    def __init__(self, columns: int, device: str | torch.device = "cpu"):
        self.low = self.high = None

    def observe(self, inputs: torch.Tensor, reference: torch.Tensor | None = None) -> None:
        low, high = inputs.amin(dim=0).float(), inputs.amax(dim=0).float()
        self.low = low if self.low is None else torch.lerp(low, self.low, MOMENTUM)
        self.high = high if self.high is None else torch.lerp(high, self.high, MOMENTUM)


class FirstToken:
    """The first token of every sample, [columns] float32, where that is computed apart: one and the same vector.

    It is in no other statistic, so `observe` gets the tokens behind it.

    deviation: the largest of any sample from the first, root mean square over columns, each as a part of its own
        magnitude or, where that is smaller, of the median column's: a few columns are larger by orders than all
        others, and must not hide them.
    """

    def __init__(self, columns: int, device: str | torch.device = "cpu"):
        self.value, self.deviation = None, 0.0

    def observe(self, inputs: torch.Tensor, reference: torch.Tensor | None = None) -> None:
        pass

    def see(self, inputs: torch.Tensor) -> None:
        """Take it from inputs [samples, tokens, columns].

        Raises:
            DataError: it differs between samples.
        """
        first = inputs[:, 0].float()
        self.value = first[0] if self.value is None else self.value
        size = self.value.abs()
        off = (first - self.value) / size.clamp(min=size.median().clamp(min=TINY))  # [samples, columns]
        self.deviation = max(self.deviation, off.square().mean(dim=1).sqrt().amax().item())
        if self.deviation > SAME:
            raise DataError(
                f"its first token differs between prompts, by {self.deviation:.1%}; the transform 'bos' cannot compute "
                "it once."
            )


KINDS = {
    "hessian": Hessian,
    "cross": Cross,
    "maximum": Maximum,
    "range": Range,
    "tokens": Tokens,
    "count": Count,
    "held_out": HeldOut,
    "first_token": FirstToken,
}


class Observers(SimpleNamespace):
    """The statistics that some plugins need, as attributes, `statistics.hessian.value`; None where they do not."""

    hessian: Any = None
    cross: Any = None
    maximum: Any = None
    range: Any = None
    tokens: Any = None
    count: Any = None
    held_out: Any = None
    first_token: Any = None

    @classmethod
    def new(cls, needs: Collection[str], columns: int, device: str | torch.device = "cpu") -> Self:
        """Empty statistics of the kinds in `needs` for inputs of `columns` columns."""
        return cls(**{need: KINDS[need](columns, device) for need in sorted(needs)})

    def observe(
        self, inputs: torch.Tensor, reference: torch.Tensor | None = None, held: torch.Tensor | None = None
    ) -> None:
        """Add inputs [tokens, columns], and the float model's inputs for the same tokens where `cross` is needed.

        Args:
            held: [tokens] bool, which of them only `held_out` sees; None for none.
        """
        if held is not None and held.any():
            held = held.to(inputs.device)
            self.held_out.observe(inputs[held], None if reference is None else reference[held])
            inputs, reference = inputs[~held], None if reference is None else reference[~held]
        for name, kind in vars(self).items():
            if name != "held_out":
                kind.observe(inputs, reference)

    def scaled(self, factor: torch.Tensor | None) -> Self:
        """The statistics of inputs multiplied by a positive factor [columns]; None leaves them."""
        return self if factor is None else type(self)(**{name: _scaled(k, factor) for name, k in vars(self).items()})


def _scaled(kind, factor):
    """A copy with every tensor multiplied along each of its dimensions, all of which are columns of the input."""
    scaled = copy.copy(kind)
    for name, part in vars(kind).items():
        if isinstance(part, Tokens):
            setattr(scaled, name, _scaled(part, factor))
        elif isinstance(part, torch.Tensor):
            square = isinstance(kind, (Hessian, Cross))
            setattr(scaled, name, factor[:, None] * part * factor if square else part * factor)
    return scaled
