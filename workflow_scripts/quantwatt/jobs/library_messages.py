"""Keeps out of logs what libraries say at import of things that nothing here uses.

Each message is named with its logger: another of the same logger comes through.
"""

import logging
import re

HARMLESS = {  # {logger: what its message begins with, a regular expression}
    # bitsandbytes looks for a faster product in 4 bits at a hub, on CPUs with AVX512-BF16; its own one serves.
    "bitsandbytes.backends.cpu.ops": r"Failed to load CPU gemm_4bit_forward from kernels-community",
    # torchao's extensions for other GPUs, other versions of Python and other builds of torch; no format needs them.
    "torchao": r"Failed to load \S*/torchao/_C|Skipping import of cpp extensions",
    "torch.utils._pytree": r"<enum '\w+'> is an Enum subclass and is now natively supported",
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
