"""Observers: statistics of a layer's inputs for solvers and transforms, accumulated batch by batch.

A solver or transform names the observers that it needs, such as `NEEDS = ("hessian",)`, and receives an `Observers`
with one attribute per name. The inputs themselves are never stored as a whole.
"""

import copy
from collections.abc import Collection
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Self

import torch

from quantwatt.artifacts.errors import DataError

CHUNK = 2048  # tokens per product; limits the size of the float32 copy
TRIANGLE = 256  # columns per block of the symmetric product
SAMPLED_TOKENS = 1024
SAME = 0.02  # largest `FirstToken.deviation` of equal tokens: the kernels of a text encoder vary with the batch size
TINY = torch.finfo(torch.float32).tiny
MOMENTUM = 0.95


@contextmanager
def _bfloat16_products(inputs):
    """Multiply bfloat16 inputs in bfloat16 with sums in float32, if the CPU has instructions for it."""
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
        """Add inputs [tokens, columns]; products are summed in float32."""
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
    """At most SAMPLED_TOKENS evenly spaced input rows, [tokens, columns]: every k-th row; k doubles when full."""

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
    """Running mean of 2·x̃·xᵀ: inputs x̃ of the quantized model and x of the float model, for the same tokens.

    inputs, references: Tokens of x̃ and of x for the same tokens, to compute errors against the float model.
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
    """Number of tokens."""

    def __init__(self, columns: int, device: str | torch.device = "cpu"):
        self.value = 0

    def observe(self, inputs: torch.Tensor, reference: torch.Tensor | None = None) -> None:
        self.value += len(inputs)


class HeldOut:
    """Held-out tokens, which no other observer gets: the layer's inputs, and those of the float model.

    inputs, references: Tokens of both for the same tokens; references are empty if the float model is not observed.
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


class Mean:
    """Mean magnitude of every input column over all tokens, [columns] float32."""

    def __init__(self, columns: int, device: str | torch.device = "cpu"):
        self.sum = torch.zeros(columns, device=device)
        self.tokens = 0

    def observe(self, inputs: torch.Tensor, reference: torch.Tensor | None = None) -> None:
        self.tokens += len(inputs)
        self.sum += inputs.float().abs().sum(dim=0)

    @property
    def value(self) -> torch.Tensor:
        return self.sum / max(self.tokens, 1)


class Range:
    """Running minimum and maximum of every input column, [columns] float32; each batch has the weight 1 - MOMENTUM.

    MixDQ's code keeps one minimum and maximum for the whole tensor. Those of columns can be scaled, split, and ignored
    if not finite; a static grid then takes the widest column, which is never wider than the range of the whole tensor.
    """

    def __init__(self, columns: int, device: str | torch.device = "cpu"):
        self.low = self.high = None

    def observe(self, inputs: torch.Tensor, reference: torch.Tensor | None = None) -> None:
        low, high = inputs.amin(dim=0).float(), inputs.amax(dim=0).float()
        self.low = low if self.low is None else torch.lerp(low, self.low, MOMENTUM)
        self.high = high if self.high is None else torch.lerp(high, self.high, MOMENTUM)


class FirstToken:
    """The first token, [columns] float32, if it is computed separately; it must be equal for all samples.

    No other observer gets the first token, so `observe` receives only the following tokens.

    deviation: largest deviation of a sample's first token from that of the first sample: root mean square over columns
        of the relative differences. A difference is relative to the column's magnitude, or to the median column's if
        that is larger: a few columns are orders of magnitude larger than all others, and must not hide them.
    """

    def __init__(self, columns: int, device: str | torch.device = "cpu"):
        self.value, self.deviation = None, 0.0

    def observe(self, inputs: torch.Tensor, reference: torch.Tensor | None = None) -> None:
        pass

    def see(self, inputs: torch.Tensor) -> None:
        """Add the first tokens of inputs [samples, tokens, columns].

        Raises:
            DataError: the first token differs between samples.
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
    "mean": Mean,
    "range": Range,
    "tokens": Tokens,
    "count": Count,
    "held_out": HeldOut,
    "first_token": FirstToken,
}


class Observers(SimpleNamespace):
    """The observers that plugins need, as attributes (`statistics.hessian.value`); all others are None."""

    hessian: Any = None
    cross: Any = None
    maximum: Any = None
    mean: Any = None
    range: Any = None
    tokens: Any = None
    count: Any = None
    held_out: Any = None
    first_token: Any = None

    @classmethod
    def new(cls, needs: Collection[str], columns: int, device: str | torch.device = "cpu") -> Self:
        """Create empty observers of the kinds in `needs` for inputs with `columns` columns."""
        return cls(**{need: KINDS[need](columns, device) for need in sorted(needs)})

    def observe(
        self, inputs: torch.Tensor, reference: torch.Tensor | None = None, held: torch.Tensor | None = None
    ) -> None:
        """Add inputs [tokens, columns] to all observers.

        Args:
            reference: the float model's inputs for the same tokens, if `cross` is needed.
            held: [tokens] bool, the tokens that only `held_out` observes; None for none.
        """
        if held is not None and held.any():
            held = held.to(inputs.device)
            self.held_out.observe(inputs[held], None if reference is None else reference[held])
            inputs, reference = inputs[~held], None if reference is None else reference[~held]
        for name, observer in vars(self).items():
            if name != "held_out":
                observer.observe(inputs, reference)

    def scaled(self, factor: torch.Tensor | None) -> Self:
        """Return the statistics of inputs multiplied by a positive factor [columns]; None changes nothing."""
        return self if factor is None else type(self)(**{name: _scaled(k, factor) for name, k in vars(self).items()})


def _scaled(kind, factor):
    """Copy an observer and multiply its tensors along every dimension; all dimensions are input columns."""
    scaled = copy.copy(kind)
    for name, part in vars(kind).items():
        if isinstance(part, Tokens):
            setattr(scaled, name, _scaled(part, factor))
        elif isinstance(part, torch.Tensor):
            square = isinstance(kind, (Hessian, Cross))
            setattr(scaled, name, factor[:, None] * part * factor if square else part * factor)
    return scaled
