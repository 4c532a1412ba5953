"""Store tensors in safetensors files of bounded size, with the index that Hugging Face's libraries use for shards.

Tensors are read one at a time: only the requested tensor is in memory, and no file stays mapped.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from quantwatt.artifacts import manifest

if TYPE_CHECKING:
    import torch

PATTERN = "weights{suffix}.safetensors"  # suffix: empty for a single file, else -00001-of-0000N
INDEX = "weights.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # largest file, unless a single tensor is larger


def write(folder: str | Path, tensors: "Mapping[str, torch.Tensor]", shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Write {name: tensor}, after removing the weight files of an earlier checkpoint in the folder.

    Returns:
        names of the files.
    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    # Not its function for torch's tensors: that imports distributed ones, which takes a second of CPU time.
    from huggingface_hub import split_state_dict_into_shards_factory

    folder = Path(folder)
    split = split_state_dict_into_shards_factory(
        dict(tensors), get_storage_size=_storage_bytes, filename_pattern=PATTERN, max_shard_size=shard_bytes
    )
    for stale in folder.glob(PATTERN.format(suffix="*") + "*"):
        stale.unlink()
    for file, names in split.filename_to_tensors.items():
        manifest.write_tensors(folder / file, {name: tensors[name] for name in names})
    if not split.is_sharded:
        return list(split.filename_to_tensors)
    manifest.write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    return [*split.filename_to_tensors, INDEX]


def _storage_bytes(tensor):
    return tensor.untyped_storage().nbytes()


class Shards:
    """The tensors of weight files, each read on request.

    Args:
        folder: of the files; files: their names, as `write` returned them.
    """

    def __init__(self, folder: str | Path, files: Iterable[str]):
        from safetensors import safe_open

        self.path = {}  # {name of a tensor: its file}
        for path in (Path(folder) / file for file in files if file.endswith(".safetensors")):
            with safe_open(path, framework="pt") as file:
                self.path |= dict.fromkeys(file.keys(), path)

    def read(self, name: str, device: str = "cpu") -> "torch.Tensor":
        """Read one tensor into newly allocated memory.

        The file is opened and closed for every tensor: it is memory-mapped, and its pages that have been read count as
        memory of the process until the file is closed.
        """
        from safetensors import safe_open

        with safe_open(self.path[name], framework="pt") as file:
            return file.get_tensor(name).to(device, copy=True)
