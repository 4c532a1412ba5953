"""Where a network's weights are: a local file or folder, or files of a Hugging Face repository at a commit.

Weights are safetensors. Pickles are converted once, outside of the workflow, by `tools/convert_weights.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import PROJECT

if TYPE_CHECKING:
    import torch

PATTERNS = ("*.json", "*.txt", "*.safetensors")  # of a repository, at its top
SAFETENSORS = ".safetensors"


def location(settings: Mapping[str, Any], download: bool = False) -> Path:
    """The file or folder of an extractor's weights on this machine.

    Args:
        settings: {"weights": a local path, or with "revision" the name of a repository of the Hugging Face Hub}.
        download: whether to fetch a repository's files that are not in the hub's cache.
    Raises:
        DataError: they are not there, and cannot be downloaded.
    """
    name, revision = settings["weights"], settings.get("revision")
    if revision is None:
        path = PROJECT / name
        if not path.exists():
            raise DataError(f"{name}: there are no such weights.")
        return path
    from huggingface_hub import errors, snapshot_download

    where = f"{name} at {revision[:12]}"
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(PATTERNS), ignore_patterns="*/*", local_files_only=not download
        )
    except errors.GatedRepoError as error:
        raise DataError(f"{where}: gated; accept its licence on the hub, then set HF_TOKEN.") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise DataError(f"{where}: no such repository or commit; check 'weights' and 'revision'.") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        reason = f"the hub cannot be reached ({type(error).__name__})" if download else "it was not fetched"
        raise DataError(f"{where}: not on this machine, and {reason}.") from error
    return Path(folder)


def fetch(settings: Mapping[str, Any]) -> list[Path]:
    """The files of an extractor's weights, downloaded if need be; the first one's folder contains all."""
    path = location(settings, download=True)
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    if not any(file.suffix == SAFETENSORS for file in files):
        raise DataError(f"{path}: there are no safetensors; tools/convert_weights.py makes them of a pickle.")
    return files


def file(settings: Mapping[str, Any]) -> Path:
    """The one safetensors file of an extractor's weights.

    Raises:
        DataError: there is none, or there are several.
    """
    path = location(settings)
    files = sorted(path.glob(f"*{SAFETENSORS}")) if path.is_dir() else [path]
    if len(files) != 1:
        raise DataError(f"{path}: one safetensors file is needed, and there are {len(files)}.")
    return files[0]


def load_into(network: "torch.nn.Module", path: str | Path, prefix: str = "") -> None:
    """Load the weights of a safetensors file that a network has; further ones in the file are left out.

    Args:
        prefix: what the names in the file begin with.
    Raises:
        DataError: the file is no safetensors, or does not have the network's tensors; the first one is named.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: no readable safetensors ({' '.join(str(error).split())}).") from error
    wanted = network.state_dict()
    for name, value in wanted.items():
        found = tensors.get(prefix + name)
        if found is None or found.shape != value.shape:
            instead = "missing" if found is None else f"of {list(found.shape)}"
            raise DataError(f"{path}: {prefix}{name} of {list(value.shape)} is needed, and it is {instead}.")
    network.load_state_dict({name: tensors[prefix + name].to(value.dtype) for name, value in wanted.items()})
