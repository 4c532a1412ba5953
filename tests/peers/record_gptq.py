"""Record what auto-gptq or gptqmodel makes of a layer, in that library's environment (README.md)."""

import argparse
import json
from importlib import metadata
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
BLOCK_SIZE = 128  # both libraries' default. Dynamic groups are as wide: narrower ones they fit to stale weights.


def settings_of(backend):
    """Every combination that auto-gptq has, and a few for gptqmodel, whose solver descends from it."""
    channel = [(None, act_order, False) for act_order in (False, True)]
    group = [(128, act_order, static) for act_order, static in product((False, True), repeat=2)]
    chosen = [(bits, symmetric, *rest) for bits, symmetric, rest in product((3, 4), (False, True), channel + group)]
    if backend == "gptqmodel":
        chosen = [row for row in chosen if row[0] == 4 and (row[2] is None or row[3])]
    chosen = [(*row, 0.01, False) for row in chosen]
    chosen += [(bits, False, None, True, False, 0.01, False) for bits in (2, 8)]
    chosen += [(4, True, 128, True, True, 0.1, False), (4, False, None, True, False, 0.01, True)]
    keys = ("bits", "symmetric", "group_size", "act_order", "static_groups", "damping", "clip_search")
    return [dict(zip(keys, row, strict=True)) for row in chosen]


def by_auto_gptq(layer, inputs, chosen):
    from auto_gptq.quantization.gptq import GPTQ

    torch.cuda.synchronize = lambda device=None: None  # called on a CPU, too
    task = GPTQ(layer)
    task.quantizer.configure(chosen["bits"], perchannel=True, sym=chosen["symmetric"], mse=chosen["clip_search"])
    task.add_batch(inputs, None)
    return task.fasterquant(
        blocksize=BLOCK_SIZE,
        percdamp=chosen["damping"],
        group_size=chosen["group_size"] or -1,
        actorder=chosen["act_order"],
        static_groups=chosen["static_groups"],
    )


def by_gptqmodel(layer, inputs, chosen):
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    config = QuantizeConfig(
        bits=chosen["bits"],
        group_size=chosen["group_size"] or -1,
        sym=chosen["symmetric"],
        desc_act=chosen["act_order"],
        act_group_aware=False,
        static_groups=chosen["static_groups"],
        damp_percent=chosen["damping"],
        mse=2.4 if chosen["clip_search"] else 0.0,
        fallback=None,
        offload_to_disk=False,
    )
    task = GPTQ(layer, config)
    task.quantizer.configure(perchannel=True)
    task.add_batch(inputs, None)
    values, scale, zero, g_idx, *_ = task.quantize(blocksize=BLOCK_SIZE)
    layer.weight.data = values
    return scale, zero, g_idx


def pack(codes, bits):
    """Two codes of up to 4 bits in a byte, the even column in its low half."""
    return codes if bits > 4 else codes[:, ::2] | codes[:, 1::2] << 4


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=["auto-gptq", "gptqmodel"])
    backend = parser.parse_args().backend
    torch.set_num_threads(1)
    layers = load_file(HERE / "layers.safetensors")
    weight, inputs = layers["gptq.weight"].float(), layers["gptq.inputs"].float()
    solve = by_auto_gptq if backend == "auto-gptq" else by_gptqmodel
    recorded, settings = {}, settings_of(backend)
    for index, chosen in enumerate(settings):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight.clone()
        scale, zero, g_idx = solve(layer, inputs, chosen)
        group = g_idx.long()
        codes = torch.round(layer.weight.data / scale[:, group]) + zero[:, group]
        assert torch.allclose((codes - zero[:, group]) * scale[:, group], layer.weight.data)
        recorded[f"{index}.codes"] = pack(codes.to(torch.uint8), chosen["bits"]).contiguous()
        recorded[f"{index}.scale"] = scale.float().contiguous()
        recorded[f"{index}.zero"] = zero.to(torch.uint8).contiguous()
        if chosen["act_order"] and chosen["group_size"]:
            recorded[f"{index}.g_idx"] = g_idx.to(torch.uint8)
    versions = {name: metadata.version(name) for name in (backend, "torch", "transformers")}
    save_file(
        recorded,
        HERE / f"{backend.replace('-', '_')}.safetensors",
        {"settings": json.dumps(settings), "versions": json.dumps(versions)},
    )


if __name__ == "__main__":
    main()
