"""Count the bytes of a model's tensors, packed tensors included; nothing else of the process is counted."""

from collections.abc import Iterable

import torch


def module_memory_bytes(modules: Iterable[torch.nn.Module]) -> int:
    """Sum the bytes of all tensors that the modules hold as parameters, buffers or attributes; shared memory once."""
    storages = {}
    for module in modules:
        for part in module.modules():
            for tensor in (*part._parameters.values(), *part._buffers.values(), *vars(part).values()):
                if isinstance(tensor, torch.Tensor):
                    storages |= _memory(tensor)
    return sum(storages.values())


def _memory(tensor):
    """{address: bytes} of a tensor, or of the inner tensors of a tensor subclass."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return {address: size for name in names for address, size in _memory(getattr(tensor, name)).items()}
    try:
        storage = tensor.untyped_storage()
    except NotImplementedError:  # oneDNN's opaque layout gives neither address nor padding
        return {id(tensor): tensor.numel() * tensor.element_size()}
    return {storage.data_ptr(): storage.nbytes()}
