"""What a model itself holds in memory: its tensors, packed ones included, however much else its process has loaded."""

from collections.abc import Iterable

import torch


def module_memory_bytes(modules: Iterable[torch.nn.Module]) -> int:
    """Bytes of all tensors that some modules hold, as parameters, buffers or plain attributes; shared memory once."""
    found = {}
    for module in modules:
        for part in module.modules():
            for tensor in (*part._parameters.values(), *part._buffers.values(), *vars(part).values()):
                if isinstance(tensor, torch.Tensor):
                    found |= _memory(tensor)
    return sum(found.values())


def _memory(tensor):
    """{address: bytes} of a tensor, or of the tensors that a library's own kind of tensor is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return {address: size for name in names for address, size in _memory(getattr(tensor, name)).items()}
    try:
        storage = tensor.untyped_storage()
    except NotImplementedError:  # a layout of oneDNN's own, which tells neither address nor padding
        return {id(tensor): tensor.numel() * tensor.element_size()}
    return {storage.data_ptr(): storage.nbytes()}
