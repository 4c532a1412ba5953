"""Suppress messages that libraries log at import about features that quantwatt does not use.

Each message is listed with its logger: other messages of the same logger are still logged.
"""

import logging
import re

HARMLESS = {  # {logger: regular expression that the message's start matches}
    # On CPUs with AVX512-BF16 bitsandbytes tries to download a faster 4-bit product; its built-in product is used.
    "bitsandbytes.backends.cpu.ops": r"Failed to load CPU gemm_4bit_forward from kernels-community",
    # torchao has extensions for other GPUs, versions of Python and builds of torch; no format here needs them.
    "torchao": r"Failed to load \S*/torchao/_C|Skipping import of cpp extensions",
    "torch.utils._pytree": r"<enum '\w+'> is an Enum subclass and is now natively supported",
    # In jobs, see lean_imports.py: the processor of Qwen-Image-Edit reads pictures all the same.
    "transformers.utils.import_utils": r"`\w+ImageProcessor` requires torchvision",
    "diffusers.quantizers.torchao.torchao_quantizer": r"Unable to import `torchao` Tensor objects",
}


class _Harmless(logging.Filter):
    def __init__(self, pattern):
        super().__init__()
        self.pattern = re.compile(pattern)

    def filter(self, record):
        return not self.pattern.match(record.getMessage())


for _name, _pattern in HARMLESS.items():
    logging.getLogger(_name).addFilter(_Harmless(_pattern))
