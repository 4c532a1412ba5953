"""Multiply 8-bit inputs by packed 4-bit weights: a Triton kernel, and its operator in PyTorch.

If TRITON_INTERPRET=1 was set before Triton was first imported, the kernel runs on the CPU, slowly, for tests.
"""

import torch
import triton
import triton.language as tl

BYTES = 64  # largest number of bytes of a packed row in one step: 128 columns
TILES = [  # tokens, rows, warps, stages
    (16, 64, 4, 4),
    (64, 64, 4, 4),
    (64, 128, 4, 3),
    (128, 128, 8, 3),
]


@triton.jit
def kernel(
    inputs, weight, outputs, scale, zero, weight_scale, weight_zero, weight_sums, bias,
    tokens, magnitude, rows, width,
    GROUP: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Compute one tile of outputs [tokens, rows].

    inputs: [2, tokens, width] int8, even and odd columns; weight: [rows, width] uint8, the even column's code in the
    high half; scale, zero: [tokens], zero may be None; weight_scale, weight_zero: [groups, rows]; weight_sums: [rows]
    if `zero` is not None; bias: [rows] or None. GROUP: bytes of a row that share a scale, a multiple of BYTES, or 0.
    magnitude: bit length of the number of tokens, by which the autotuner chooses tiles.
    """
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    byte = tl.arange(0, BYTES)
    has_token, has_row = token < tokens, row < rows
    row_zero = tl.load(weight_zero + row, mask=has_row, other=0)
    totals = tl.zeros((TOKENS, ROWS), dtype=tl.float32 if GROUP else tl.int32)
    for start in range(0, width, BYTES):
        at = start + byte
        has_byte = at < width
        if GROUP:
            row_zero = tl.load(weight_zero + start // GROUP * rows + row, mask=has_row, other=0)
        packed = tl.load(
            weight + row[None, :] * width + at[:, None], mask=has_row[None, :] & has_byte[:, None], other=0
        )
        high = (packed >> 4).to(tl.int8) - row_zero[None, :]
        low = (packed & 15).to(tl.int8) - row_zero[None, :]
        # Beyond the last byte the inputs are loaded as 0, so the weight there does not matter.
        place, there = token[:, None] * width + at[None, :], has_token[:, None] & has_byte[None, :]
        even = tl.load(inputs + place, mask=there, other=0)
        odd = tl.load(inputs + tokens * width + place, mask=there, other=0)
        sums = tl.dot(even, high, out_dtype=tl.int32)
        sums = tl.dot(odd, low, sums, out_dtype=tl.int32)
        if GROUP:
            group_scale = tl.load(weight_scale + start // GROUP * rows + row, mask=has_row, other=0)
            totals += sums.to(tl.float32) * group_scale[None, :]
        else:
            totals += sums
    values = totals.to(tl.float32)
    if not GROUP:
        values *= tl.load(weight_scale + row, mask=has_row, other=0)[None, :]
    if zero is not None:
        token_zero = tl.load(zero + token, mask=has_token, other=0)
        values -= token_zero[:, None] * tl.load(weight_sums + row, mask=has_row, other=0)[None, :]
    values *= tl.load(scale + token, mask=has_token, other=0)[:, None]
    if bias is not None:
        values += tl.load(bias + row, mask=has_row, other=0).to(tl.float32)[None, :]
    place = token[:, None] * rows + row[None, :]
    tl.store(outputs + place, values.to(outputs.dtype.element_ty), mask=has_token[:, None] & has_row[None, :])


tuned = triton.autotune(
    [triton.Config({"TOKENS": t, "ROWS": r}, num_warps=warps, num_stages=stages) for t, r, warps, stages in TILES],
    key=["magnitude", "rows", "width"],
)(kernel)


@torch.library.custom_op("quantwatt::w4a8_product", mutates_args=())
def product(
    inputs: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    weight_zero: torch.Tensor,
    weight_sums: torch.Tensor | None,
    bias: torch.Tensor | None,
    group: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return outputs [tokens, rows] of `dtype`; arguments as for `kernel`, `group` in columns, 0 without groups."""
    (_, tokens, width), rows = inputs.shape, len(weight)
    outputs = inputs.new_empty((tokens, rows), dtype=dtype)
    if outputs.numel() == 0:
        return outputs
    step = BYTES if group == 0 or group % (2 * BYTES) == 0 else BYTES // 2

    def grid(tile):
        return triton.cdiv(tokens, tile["TOKENS"]), triton.cdiv(rows, tile["ROWS"])

    arguments = (inputs, weight, outputs, scale, zero, weight_scale, weight_zero, weight_sums, bias, tokens,
                 tokens.bit_length(), rows, width)  # fmt: skip
    if inputs.is_cuda:
        tuned[grid](*arguments, GROUP=group // 2, BYTES=step)
    else:
        tile = {"TOKENS": TILES[0][0], "ROWS": TILES[0][1]}
        kernel[grid](*arguments, GROUP=group // 2, BYTES=step, **tile)
    return outputs


@product.register_fake
def _(inputs, scale, zero, weight, weight_scale, weight_zero, weight_sums, bias, group, dtype):
    return inputs.new_empty((inputs.shape[1], weight.shape[0]), dtype=dtype)
