"""Put what `make gpu-evidence` has found into the project, and make the documentation's table and figure of it.

`--add FOLDER` copies the stages' files to resources/measurements/gpu/BOARD/, after its board. Without it, the section
of docs/kernels.md, resources/readme/gpu.png and the boards' README.md are made anew from the files that are there.
Published figures of others stand beside.
"""

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where quantwatt is

from benchmarks import harness
from benchmarks.gpu import stages
from benchmarks.gpu.denoisers import BASELINE, CONFIGURATIONS, DENOISERS
from benchmarks.gpu.goals import goals
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import PROJECT, atomic_path, read_json
from quantwatt.jobs import command
from quantwatt.report import markdown

HOME = PROJECT / "resources" / "measurements" / "gpu"
BOOK = PROJECT / "resources" / "book"
PAGE, FIGURE = PROJECT / "docs" / "kernels.md", PROJECT / "resources" / "readme" / "gpu.png"
ENERGIES = PROJECT / "resources" / "report" / "page" / "anchors.json"
BEGIN, END = "<!-- gpu-evidence -->\n", "<!-- end of gpu-evidence -->\n"
NOTHING = "**Nothing has run on a GPU yet**: no figure of this project comes from one.\n"
HEADS = ("call", "method", "s an image", "J an image", "time", "energy", "weights", "peak")
SHOWN = ("sd35-large", "flux1-dev")  # denoisers on the page, one image a call
BUNDLE = "embedded.zip"


def add(folder: Path, home: Path = HOME, book: Path = BOOK) -> Path:
    """Copy a folder of stages' files, and the experiment's bundle to those of the book; return the board's folder.

    Raises:
        DataError: there is no evidence of a GPU: a rehearsal, a fake board, or nothing.
    """
    machine = stages.read(folder, "machine")
    if not machine:
        raise DataError(f"{folder}: has no machine.json; run gpu_evidence.py --output {folder}.")
    if machine["device"] != "cuda" or machine["size"] != "true" or machine.get("meter", {}).get("fake"):
        raise DataError(f"{folder}: is a rehearsal, not of a GPU at true size; it is no evidence.")
    board = re.sub(r"[^a-z0-9]+", "-", machine["torch"]["name"].lower()).strip("-")
    (home / board).mkdir(parents=True, exist_ok=True)
    for stage in stages.MODULES:
        if stages.read(folder, stage):
            shutil.copyfile(stages.path_of(folder, stage), stages.path_of(home / board, stage))
    if (folder / BUNDLE).exists():
        shutil.copyfile(folder / BUNDLE, book / f"{board}.zip")
    return home / board


def boards(home: Path = HOME) -> list[Path]:
    """Folders with evidence, by name."""
    return sorted(path.parent for path in home.glob("*/machine.json"))


def cell_rows(rows: list[dict], name: str, images: int, compiled: bool) -> list[dict]:
    """The rows of one cell, in the order of CONFIGURATIONS."""
    place = {"denoiser": name, "images": images, "compiled": compiled}
    found = [row for row in rows if place.items() <= row.items()]
    return sorted(found, key=lambda row: list(CONFIGURATIONS).index(row["configuration"]))


def lines(rows: list[dict]) -> list[str]:
    """A Markdown table of rows of the denoisers' stage, with reasons where there are no figures."""

    def ratio(row, name):
        return markdown.figure(row.get(name), row.get(f"{name}_low"), row.get(f"{name}_high"))

    def cells(row):
        head = "compiled" if row["compiled"] else "eager", row["configuration"]
        if row.get("image_seconds") is None:
            return (*head, row["reason"], *[""] * 5)
        joules = row["image_energy_j"] if row["image_energy_j"] is not None else row["energy_reason"]
        return (*head, markdown.figure(row["image_seconds"]), f"{joules:.4g}" if isinstance(joules, float) else joules,
                ratio(row, "seconds_ratio"), ratio(row, "energy_ratio"), ratio(row, "weights_ratio"),
                ratio(row, "peak_ratio"))  # fmt: skip

    return markdown.table(HEADS, map(cells, rows))


def published(name: str, home: Path = HOME) -> list[str]:
    """Sentences with what others have published of a denoiser."""
    said = [
        f"{each['source'].partition(',')[0]}: {each['energy_j']:,} J"
        + (f", {each['latency_s']} s" if each["latency_s"] else "")
        + f" an image, whole pipeline ({each['device']}; {each['settings']})"
        for each in read_json(ENERGIES)
        if each["model"] == DENOISERS[name].published
    ]
    return said + [
        f"{each['source']}: {each['configuration']} {'compiled' if each['compiled'] else 'eager'}, "
        f"{each['times_as_fast']:.2f} times as fast as bfloat16 ({each['device']})"
        for each in read_json(home / "published.json")
        if each["denoiser"] == name
    ]


def section(home: Path, figure: Path, root: Path) -> str:
    """The page's section: the first table of every board, or that there is none; links are relative to `root`."""
    parts = [
        board_section(board, names=SHOWN, images=(1,)) + f"\n[All of it]({os.path.relpath(board, root)}/README.md).\n"
        for board in boards(home)
    ]
    if parts and figure.exists():
        parts.append(f"\n![Time and energy of every format against bfloat16]({os.path.relpath(figure, root)})\n")
    return "".join(parts) or NOTHING


def board_section(board: Path, names=tuple(DENOISERS), images=(1, 4)) -> str:
    """The tables of a board, with published figures beside."""
    machine, rows = stages.read(board, "machine"), stages.read(board, "denoisers").get("rows", [])
    text = (
        f"*{machine['torch']['name']}, torch {machine['torch']['version']}, driver {machine['meter'].get('driver')}.*\n"
    )
    for name in names:
        for count in images:
            found = [row for compiled in (True, False) for row in cell_rows(rows, name, count, compiled)]
            if not found:
                continue
            text += (
                f"\n{name}, {count} image{'s' if count > 1 else ''} a call, {found[0]['steps']} steps; the denoiser "
            )
            text += "alone, random weights; ratios to bfloat16 in the same mode:\n\n" + "\n".join(lines(found)) + "\n"
        text += "".join(f"\nBeside: {sentence}.\n" for sentence in published(name)) if names is SHOWN else ""
    return text


def draw(rows: list[dict], output: Path) -> None:
    """Energy against time, each over bfloat16 in the same mode, a panel for each denoiser; one image a call."""
    from quantwatt.report.figures import GREY, PALETTE

    names = [name for name in DENOISERS if any(row["denoiser"] == name for row in rows)]
    with harness.figure(output, (9, 3.2 * -(-len(names) // 2))) as figure:
        panels = figure.subplots(-(-len(names) // 2), 2, squeeze=False).flat
        for name, axes in zip(names, panels, strict=False):
            for compiled in (True, False):
                shown = [row for row in cell_rows(rows, name, 1, compiled) if row.get("energy_ratio") is not None]
                for row in shown:
                    colour = PALETTE[list(CONFIGURATIONS).index(row["configuration"]) % len(PALETTE)]
                    axes.scatter(row["seconds_ratio"], row["energy_ratio"], s=24, color=colour,
                                 marker="o" if compiled else "x",
                                 label=row["configuration"] if compiled else None)  # fmt: skip
            axes.axhline(1, color=GREY, lw=0.8, zorder=0)
            axes.axvline(1, color=GREY, lw=0.8, zorder=0)
            axes.set_title(name)
            axes.set_xlabel("time over bfloat16 (circles compiled, crosses eager)", color=GREY)
            axes.set_ylabel("energy over bfloat16", color=GREY)
        figure.legend(*next(iter(figure.axes)).get_legend_handles_labels(), loc="outside lower center", ncols=3)


def write(home: Path = HOME, page: Path = PAGE, figure: Path = FIGURE) -> None:
    """Write each board's README.md, the figure, and the page's section.

    Raises:
        DataError: the page lacks the marks of the section.
    """
    every = []
    for board in boards(home):
        rows = stages.read(board, "denoisers").get("rows", [])
        every += [row for row in rows if row["configuration"] != BASELINE]
        heads = markdown.table(
            ("goal", "found", "met"), goals({stage: stages.read(board, stage) for stage in stages.MODULES})
        )
        save(board / "README.md", f"# {board.name}\n\n" + "\n".join(heads) + "\n\n" + board_section(board))
    if any(row.get("energy_ratio") is not None for row in every):
        draw(every, figure)
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{page}: lacks the lines {BEGIN.strip()} and {END.strip()}.")
    save(page, before + begin + section(home, figure, page.parent) + end + after)


def save(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--add", type=Path, metavar="FOLDER", help="of gpu_evidence.py's --output")
    args = parser.parse_args(argv)
    if args.add:
        print(f"added: {add(args.add)}")
    write()
    print(f"{PAGE}: {', '.join(board.name for board in boards()) or 'no board'}")


if __name__ == "__main__":
    command.run(main)
