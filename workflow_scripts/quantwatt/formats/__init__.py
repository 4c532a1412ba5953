"""How weights are stored: a grid of values, and a packing to the format's true bits.

Enters: settings of a format, a weight. Leaves: codes and their grid, packed.
Read first: quantized_weight.py, integer.py.

A format module offers a frozen dataclass of settings `Format` with

    bits                                         bits of one code
    scale_dtype, zero_dtype                      how a group's grid is stored; zero_dtype is None without a zero point
    group_width(columns) -> int                  inputs that share a scale
    fit(values) -> (scale, zero)                 [rows, width] -> [rows, 1] each
    encode(values, scale, zero) -> codes         elementwise, uint8; scale and zero broadcast
    decode(codes, scale, zero) -> values         elementwise, float32
    snap(values, scale, zero) -> values          decode(encode(values)) in fewer steps: what solvers do column by column
    bracket(values, scale, zero) -> (low, high)  codes of the grid points around each value; equal beyond an end
    refit(codes, target, scale, zero) -> (scale, zero)
                                                 least squares grid for codes [rows, width] that stay as they are: a
                                                 float zero point moves, else the scale (and an integer zero point)

Elementwise coding is what makes every solver work with every format: a solver chooses values, one column or one
matrix at a time, and never looks inside the format. Tensors may be on any device; all of one call on the same.

Settings of every format have "bits", too, a constant where there is no choice: budgets, tables and messages read it
there and import no format. Where inputs share a scale in groups, "group_size" is how many.
"""
