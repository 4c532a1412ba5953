"""bitsandbytes' weights as diffusers and transformers store them: NF4 and FP4 blocks, and LLM.int8().

4 bits: weight uint8 [codes / 2, 1] with weight.absmax, weight.quant_map and weight.quant_state.bitsandbytes__nf4 (JSON
as bytes), which Params4bit.from_prequantized reads. 8 bits: weight int8 with SCB.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch

from quantwatt.formats.packing import pack
from quantwatt.inference.exports import NotExpressible, model_file, plain, safetensors, weight_of

if TYPE_CHECKING:
    from quantwatt.formats.codebook import CodebookFormat

PARTS = {"codes", "scale"}
CONV1D = True
FORMATS = ("nf4", "fp4", "bitsandbytes-int8")

file_name, finish, save = model_file, plain, safetensors


def tensors(
    name: str, layer: Mapping[str, Any], state: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """See quantwatt.inference.exports."""
    if layer["activations"]:
        raise NotExpressible("its activations are quantized on a grid that bitsandbytes does not have")
    if layer["weights"]["format"] == "bitsandbytes-int8":
        row_major = torch.tensor(0, dtype=torch.uint8)
        return {f"{name}.weight": state["codes"], f"{name}.SCB": state["scale"], f"{name}.weight_format": row_major}
    any_format, weight = weight_of(layer, state)
    weight_format = cast("CodebookFormat", any_format)
    rows, columns = weight.codes.shape
    if columns % weight_format.group_size:
        raise NotExpressible(f"groups of {weight_format.group_size} do not divide its {columns} inputs")
    from bitsandbytes.functional import QuantState

    quant_state = QuantState(
        absmax=weight.scale.reshape(-1).float(),
        shape=torch.Size((rows, columns)),
        code=weight_format.codebook.clone(),
        blocksize=weight_format.group_size,
        quant_type=layer["weights"]["format"],
        dtype=dtype,
    )
    parts = {f"{name}.weight.{part}": tensor for part, tensor in quant_state.as_dict(packed=True).items()}
    return {f"{name}.weight": pack(weight.codes, 4).reshape(-1, 1), **parts}


def configuration(details: Mapping[str, Any], skipped: list[str]) -> dict[str, Any]:
    """See quantwatt.inference.exports."""
    formats = {layer["weights"]["format"] for layer in details["layers"].values()}
    for other in sorted(formats - set(FORMATS)):
        raise NotExpressible(f"bitsandbytes has no '{other}' weights, only {', '.join(FORMATS)}")
    if len(formats) > 1:
        raise NotExpressible(f"its layers' formats differ ({', '.join(sorted(formats))}), and there is one for all")
    kind = formats.pop()
    thresholds = {layer["weights"].get("threshold", 6.0) for layer in details["layers"].values()}
    if len(thresholds) > 1:
        raise NotExpressible("its layers' thresholds differ, and the format has one threshold for all")
    four_bits = kind != "bitsandbytes-int8"
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": four_bits,
        "load_in_8bit": not four_bits,
        "bnb_4bit_quant_type": kind if four_bits else "fp4",
        "bnb_4bit_compute_dtype": details["model_settings"]["dtype"],
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_use_double_quant": False,
        "llm_int8_threshold": thresholds.pop(),
        "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_skip_modules": skipped,
    }
