"""What the stages wrote about each cell, read from fixed places.

The cells are listed by the caller, so a stale folder under results/ can never enter a table.
"""

from dataclasses import dataclass, field
from pathlib import Path

from quantwatt.manifest import DataError, read_json


@dataclass(frozen=True)
class Cell:
    """Everything that the stages wrote about one (model, method, sampling), as parsed JSON."""

    model: str
    method: str
    sampling: str
    checkpoint: dict
    images: dict
    measurement: dict
    scores: dict = field(default_factory=dict)  # {METRIC: dict}

    @property
    def failure(self):
        """(status, reason) of the first stage that did not end in "ok"; ("ok", None) where all did."""
        for record in (self.checkpoint, self.images, self.measurement):
            if record["status"] != "ok":
                return record["status"], record.get("reason")
        return "ok", None


def cell_paths(results, cell, metrics):
    """`{part: path}` of the files of a cell `{"model", "method", "sampling"}`; scores are keyed `scores/METRIC`."""
    results = Path(results)
    trio = Path(cell["model"]) / cell["method"] / cell["sampling"]
    outputs = "predictions" if cell.get("kind") == "text" else "images"
    return {
        "checkpoint": results / "checkpoints" / cell["model"] / cell["method"] / "manifest.json",
        "images": results / outputs / trio / "manifest.json",
        "measurement": results / "measurements" / trio / "measurement.json",
        **{f"scores/{metric}": results / "scores" / trio / f"{metric}.json" for metric in metrics},
    }


def read_cells(results, cells, metrics):
    """Read the files of every cell.

    Args:
        results: the experiment's folder, results/EXPERIMENT.
        cells: list of `{"model", "method", "sampling"}`.
        metrics: list of names such as "fid" or "psnr".
    Returns:
        list of Cell, in the order given.
    Raises:
        DataError: a file is missing or malformed, or belongs to another cell, or two methods were given other prompts.
    """
    found = []
    for cell in cells:
        parts = {name: read_json(path) for name, path in cell_paths(results, cell, metrics).items()}
        for name, path in cell_paths(results, cell, metrics).items():
            _check(path, parts[name], cell)
        parts["images"].pop("images", None)  # what vouches for 50,000 of them takes 40 MB
        scores = {metric: parts.pop(f"scores/{metric}") for metric in metrics}
        found.append(Cell(cell["model"], cell["method"], cell["sampling"], **parts, scores=scores))
    _check_same_prompts(found)
    return found


def _check(path, record, cell):
    if not isinstance(record, dict) or "status" not in record:
        raise DataError(f"{path}: has no status; delete it and run again.")
    for key in ("model", "method", "sampling"):
        if record.get(key, cell[key]) != cell[key]:
            raise DataError(f"{path}: belongs to {key} {record[key]!r}, not {cell[key]!r}; delete it and run again.")


def _check_same_prompts(cells):
    """Paired comparison needs the same prompts and seed in every method of one model and sampling."""
    first = {}
    for cell in cells:
        if cell.images["status"] != "ok":
            continue
        asked = cell.images.get("prompts_sha256") or cell.images.get("texts_sha256")
        drawn = (asked, cell.images["seed"])
        other = first.setdefault((cell.model, cell.sampling), (cell.method, drawn))
        if other[1] != drawn:
            raise DataError(
                f"{cell.model}, {cell.sampling}: {cell.method} was given other prompts or another seed than "
                f"{other[0]}, so they cannot be compared; delete the image set of one and run again."
            )
