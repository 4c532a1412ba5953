"""A grid of thousands of cells: Linux limits an argument to 131,072 bytes, about 1,800 cells."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from snakemake.utils import format as fill

import gather_images
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.image_parts import part_name
from quantwatt.artifacts.manifest import canonical_json, write_json
from quantwatt.config import slices
from quantwatt.report import cells

ROOT = Path(__file__).parents[2]
RULES = "\n".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
LONGEST_ARGUMENT = 131_072  # bytes, of Linux
CELLS = [
    {"model": "tiny-sd3", "method": f"gptq-w{bits}-g{group}", "sampling": f"seed-{seed}"}
    for bits in range(2, 7) for group in range(10) for seed in range(50)
]  # fmt: skip


def shell_of(rule):
    """The shell command of a rule, its placeholders not yet filled in."""
    text = re.search(rf"^rule {rule}:\n(?:(?:    .*)?\n)*?    shell:\n((?:        .*\n?)+)", RULES, flags=re.M)[1]
    return eval(text.strip(), {"run": slices.run})


def test_the_tables_of_2500_cells_start(tmp_path):
    class Values:
        def __init__(self, **values):
            self.__dict__.update(values)

    grid = canonical_json({"cells": CELLS, "metrics": ["fid"], "baseline": "bf16"})
    assert len(grid) > LONGEST_ARGUMENT
    params = Values(results=tmp_path / "results", carbon="", grid=grid)
    outputs = Values(
        summary="s", layers="l", sensitivity="y", pairs="p", formats="f", changes="c", adapters="a", categories="k"
    )
    command = fill(shell_of("tables"), params=params, output=outputs, log=tmp_path / "log")
    script = tmp_path / "script.sh"  # as Snakemake runs a long command
    script.write_text(f"exec {command}\n")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    first = tmp_path / "results/checkpoints/tiny-sd3/gptq-w2-g0/manifest.json"
    assert (tmp_path / "log").read_text() == f"error: {first}: the file does not exist.\n", done.stderr


@pytest.mark.parametrize("rule", ["tables", "figure", "report", "study"])
def test_what_reads_all_cells_takes_them_on_standard_input(rule):
    before, _, behind = shell_of(rule).partition(" --grid - <<< {params.grid:q}")
    assert behind == " > {log} 2>&1" and "{params.grid" not in before and "{input.cells" not in before


def test_no_command_lists_files_whose_number_has_no_limit():
    assert "{input.tables" not in shell_of("sensitivity") and "{input.parts" not in shell_of("gather_images")
    assert "first=ask(inputs.first_images, plan)," in RULES


def test_a_million_images_are_gathered_by_their_range(tmp_path, monkeypatch):
    gathered = []
    monkeypatch.setattr(gather_images, "gather", lambda folder, starts: gathered.extend(starts))
    gather_images.main(["--first", "0", "1000000", "2500", "--output", str(tmp_path / "manifest.json")])
    assert len(gathered) == 400 and [part_name(first) for first in gathered[:2]] == [
        "part-00000.json",
        "part-02500.json",
    ]


def test_a_grid_that_is_none(tmp_path, monkeypatch):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(CELLS))
    with pytest.raises(DataError, match="grid.json: lists no cells"):
        cells.read_grid(path)
    path.write_text("{")
    with path.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        with pytest.raises(DataError, match="standard input: not JSON"):
            cells.read_grid("-")


ASKED = {
    "methods": {"rtn": {"solver": {"name": "rtn"}, "weights": {"bits": 4}}},
    "samplings": {"s": {"seed": 0, "steps": 20, "guidance": 3.0, "images": 8}, "t": {"texts": {"m": "a.txt"}}},
}


@pytest.mark.parametrize(
    ("part", "record", "sentence"),
    [
        ("checkpoint", {"settings": {"solver": {"name": "rtn"}, "weights": {"bits": 4}}}, None),
        (
            "checkpoint",
            {"settings": {"solver": {"name": "rtn"}, "weights": {"bits": 3}}},
            "weights: bits: 3, but .*: 4",
        ),
        ("images", {"seed": 0, "steps": 20, "guidance": 3.0, "images": "left out"}, None),
        (
            "images",
            {"seed": 0, "steps": 4, "guidance": 3.0},
            "was made with steps 4, but the experiment has 20; delete",
        ),
        ("measurement", {"steps": 4}, None),
    ],
)
def test_a_cell_that_was_made_with_other_settings_is_refused(tmp_path, part, record, sentence):
    """Snakemake takes it for this experiment's after --touch, or with --rerun-triggers mtime."""
    cell = {"model": "m", "method": "rtn", "sampling": "s"}
    for name, path in cells.cell_paths(tmp_path, cell, []).items():
        write_json(path, {"status": "ok", "seed": 0, **(record if name == part else {})})
    if sentence is None:
        assert len(cells.read_cells(tmp_path, [cell], [], ASKED)) == 1
    else:
        with pytest.raises(DataError, match=sentence):
            cells.read_cells(tmp_path, [cell], [], ASKED)


def test_a_models_texts_are_its_own(tmp_path):
    cell = {"model": "m", "method": "rtn", "sampling": "t", "kind": "text"}
    for path in cells.cell_paths(tmp_path, cell, []).values():
        write_json(path, {"status": "ok", "seed": None, "texts": "b.txt"})
    with pytest.raises(DataError, match='texts "b.txt", but the experiment has "a.txt"'):
        cells.read_cells(tmp_path, [cell], [], ASKED)
