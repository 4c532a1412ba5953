"""Known irrelevant messages of libraries stay out of logs; all other messages get through."""

import logging

import pytest

from quantwatt.jobs import library_messages


@pytest.mark.parametrize(
    ("logger", "message", "shown"),
    [
        ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward from kernels-community: No module named"
         " 'kernels'. Please make sure you already `pip install kernels`", False),
        ("bitsandbytes.backends.cpu.ops", "Failed to load the CPU library", True),
        ("torchao", "Failed to load /a/torchao/_C_cutlass_90a.abi3.so: Could not load this library", False),
        ("torchao", "Skipping import of cpp extensions due to incompatible torch version.", False),
        ("torchao", "Failed to load /a/weights.safetensors", True),
        ("torch.utils._pytree", "<enum 'KernelPreference'> is an Enum subclass and is now natively supported", False),
        ("torch.utils._pytree", "something else", True),
        ("diffusers.quantizers.torchao.torchao_quantizer", "Unable to import `torchao` Tensor objects.", False),
        ("diffusers.quantizers.torchao.torchao_quantizer", "torchao quantized model is only serializable", True),
    ],
)  # fmt: skip
def test_only_messages_without_consequence_are_kept_out(logger, message, shown):
    assert logger in library_messages.HARMLESS
    record = logging.LogRecord(logger, logging.WARNING, "x.py", 1, message, (), None)
    assert bool(logging.getLogger(logger).filter(record)) is shown


def test_loading_a_pipeline_says_nothing(capfd):
    from quantwatt.config import experiment
    from quantwatt.models.families import load_family

    settings = experiment.load_experiment("embedded")["models"]["tiny-sd3"]
    capfd.readouterr()
    load_family("sd3").load(settings, experiment.ROOT / settings["path"])
    assert capfd.readouterr() == ("", "")
