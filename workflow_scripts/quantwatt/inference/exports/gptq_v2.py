"""Version 2 of GPTQ's format: zero points are stored unchanged and may be 0. auto-gptq reads only version 1."""

from quantwatt.inference.exports import gptq

PARTS, CONV1D, file_name, finish = gptq.PARTS, gptq.CONV1D, gptq.file_name, gptq.finish


def tensors(name, layer, state, dtype):
    """See quantwatt.inference.exports."""
    return gptq.tensors(name, layer, state, dtype, first_zero=0)


def configuration(details, skipped):
    """See quantwatt.inference.exports."""
    return {**gptq.configuration(details, skipped), "checkpoint_format": "gptq_v2"}
