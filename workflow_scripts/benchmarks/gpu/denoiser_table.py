"""Seconds, joules and memory of whole denoisers in every format, in turns with bfloat16, eager and compiled.

Each configuration is a worker process that holds the model. Workers prepare side by side, as compiling takes a minute
of CPU time each; then they take turns, block after block, every second round in reverse. The ratio of a configuration
to bfloat16 is that of the blocks of the same round. The same model in a second bfloat16 process is the control.
"""

import concurrent.futures
import os
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks import harness
from benchmarks.gpu.denoisers import AGAIN, BASELINE, CONFIGURATIONS, DENOISERS
from quantwatt import intervals
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import finite
from quantwatt.measuring import instruments

SESSIONS = (  # (denoiser, images a call), the most telling first
    ("sd35-large", 1), ("sd35-medium", 1), ("flux1-dev", 1), ("sd35-large", 4), ("sd35-medium", 4), ("sdxl", 1),
    ("flux1-dev", 4), ("z-image", 1), ("qwen-image", 1), ("sdxl", 4),
)  # fmt: skip
MODES = (True, False)  # compiled, eager
ROUNDS, LEAST_ROUNDS = {True: 6, False: 4}, 3  # {compiled: rounds}; a rehearsal has the least
BLOCK_S = {"true": 2.0, "tiny": 0.05}
LEAST_S = {"true": 120.0, "tiny": 1.0}  # of a session that is begun
PREPARING = 0.6  # share of the time left that may go into preparing
PATIENCE_S = 180.0  # a worker that is not prepared in as much time is a result; in less, it is tried again
SHARE = {"integer8": 0.5, "4": 0.28, "16": 1.0}  # of bfloat16's memory, to plan which workers fit side by side
BESIDE_MB = 4000  # of a worker for each image: its CUDA context and intermediate tensors

Turns = dict[str, list[dict[str, Any]]]  # {configuration: its blocks, one of each round}


def key(name: str, images: int, compiled: bool) -> str:
    return f"{name}, {images} image{'s' if images > 1 else ''}, {'compiled' if compiled else 'eager'}"


def run(record) -> None:
    """The stage: sessions while there is time; what is in the record's file already is not measured again."""
    record.keep(rows=record.found.get("rows", []), cells=record.found.get("cells", {}))
    sessions = [each for each in SESSIONS if not record.denoisers or each[0] in record.denoisers]
    for name, images in sessions:
        wanted = [mode for mode in MODES if record.found["cells"].get(key(name, images, mode)) != "complete"]
        if wanted and record.left() < LEAST_S[record.size]:
            record.partial(f"the time was over before {key(name, images, wanted[0])}")
            return
        if wanted:
            session(record, name, images, wanted)
    if "cut" in record.found["cells"].values():
        record.partial("the time was over within a session")


def session(record, name: str, images: int, modes: list[bool]) -> None:
    """Measure all configurations of one denoiser at one number of images, as many side by side as memory holds."""
    complete = dict.fromkeys(modes, True)
    names = [each for each in CONFIGURATIONS if each == BASELINE or each in (record.configurations or CONFIGURATIONS)]
    free_bytes = instruments.available_bytes(record.device) if record.size == "true" else None
    parts = groups(names, DENOISERS[name].parameters, images, free_bytes)
    for index, names in enumerate(parts):
        commands = {
            each: [sys.executable, "-m", "benchmarks.gpu.denoiser_worker", name, record.size, each, record.device,
                   record.meter]
            for each in names
        }  # fmt: skip
        variables = record.scripts_path() | {"TORCHINDUCTOR_COMPILE_THREADS": str(max(2, (os.cpu_count() or 1) // 4))}
        with harness.workers(commands, variables, ending_s=5) as ask:
            late: dict[str, dict[str, Any]] = {}
            for compiled in modes:
                prepared = prepare(record, ask, images, compiled, late)
                ready = {each: ask[each] for each in names if prepared[each]["status"] == "ok"}
                turns, whole = take_turns(record, ready, images, compiled)
                complete[compiled] &= whole and not any(answer.get("hurried") for answer in prepared.values())
                done = complete[compiled] and index == len(parts) - 1
                keep(record, (name, images, compiled), rows_of(prepared, turns), done)


def groups(names: list[str], billions: float, images: int, free_bytes: int | None) -> list[list[str]]:
    """Configurations that fit into the memory side by side; each group has the baseline, and the first the control."""
    if free_bytes is None:
        return [names]
    others = [name for name in names if name != BASELINE]
    others.sort(key=lambda name: name != AGAIN)
    needed, found = megabytes(BASELINE, billions, images), []
    group, used = [BASELINE], needed
    for name in others:
        more = megabytes(name, billions, images)
        if used + more > free_bytes / 1e6 and len(group) > 1:
            found.append(group)
            group, used = [BASELINE], needed
        group, used = [*group, name], used + more
    return [*found, group]


def megabytes(configuration: str, billions: float, images: int) -> float:
    """About how much memory a worker takes."""
    weights, _ = CONFIGURATIONS[configuration]
    kind = "16" if weights is None else "4" if weights.get("bits") == 4 else "integer8"
    return 2000 * billions * SHARE[kind] + BESIDE_MB * (1 + images / 4)


def prepare(
    record, ask: Mapping[str, Any], images: int, compiled: bool, late: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Let all workers prepare at once; a worker that takes too long is a configuration that failed.

    Args:
        late: {configuration: answer} of workers that were ended because they took too long, which is added to.
    """
    limit_s = max(record.left() * PREPARING, 1.0)
    pool = concurrent.futures.ThreadPoolExecutor(len(ask))
    task = {"do": "prepare", "images": images, "compiled": compiled}
    begun = {pool.submit(run, **task): name for name, run in ask.items() if name not in late}
    done, waiting = concurrent.futures.wait(begun, limit_s)
    pool.shutdown(wait=False, cancel_futures=True)
    too_long = {"status": "failed", "reason": f"it was not prepared (built, compiled, tuned) within {limit_s:.0f} s",
                "hurried": limit_s < PATIENCE_S}  # fmt: skip
    for each in waiting:
        ask[begun[each]].end(0)  # else it would disturb those that are measured
        late[begun[each]] = too_long
    answers = late | {begun[each]: answer_of(each) for each in done}
    for name, answer in answers.items():
        print(f"{name}: {answer}", file=sys.stderr)
    return {name: answers[name] for name in ask}


def answer_of(future) -> dict[str, Any]:
    try:
        return future.result()
    except DataError as ended:
        return {"status": "failed", "reason": str(ended)}


def take_turns(record, ask: Mapping[str, Any], images: int, compiled: bool) -> tuple[Turns, bool]:
    """(blocks of every worker, whether all rounds were measured); a round is measured if its time is left."""
    turns: Turns = {name: [] for name in ask}
    round_s = len(ask) * (BLOCK_S[record.size] + 0.3)
    if record.left() < LEAST_ROUNDS * round_s:
        return turns, False
    for index in range(LEAST_ROUNDS if record.size == "tiny" else ROUNDS[compiled]):
        if index >= LEAST_ROUNDS and record.left() < 1.2 * round_s:
            return turns, False
        start = time.perf_counter()
        for name in list(ask)[:: 1 if index % 2 == 0 else -1]:
            if turns[name] and turns[name][-1]["status"] != "ok":
                continue
            try:
                task = {"do": "turn", "images": images, "compiled": compiled, "block_s": BLOCK_S[record.size]}
                turns[name].append(ask[name](**task))
            except DataError as ended:
                turns[name].append({"status": "failed", "reason": str(ended)})
        round_s = time.perf_counter() - start
    return turns, True


def rows_of(prepared: Mapping[str, dict[str, Any]], turns: Turns) -> list[dict[str, Any]]:
    """A row for each configuration: medians of its blocks, and ratios to bfloat16 with their intervals.

    Seconds, joules and megabytes are of one call of the denoiser.
    """
    rows = []
    for name, answer in prepared.items():
        blocks = turns.get(name, [])
        failed = next((block for block in blocks if block["status"] != "ok"), None)
        row = {"configuration": name, **answer, **({} if failed is None else failed)}
        if blocks and failed is None:
            last, joules = blocks[-1], [block["energy_j"] for block in blocks]
            row |= {"rounds": len(blocks), "seconds": statistics.median(block["seconds"] for block in blocks),
                    "energy_j": None if None in joules else statistics.median(joules),
                    "watts": None if None in joules else statistics.median(block["watts"] for block in blocks),
                    **{each: last[each] for each in ("energy_reason", "meter", "estimated")}}  # fmt: skip
            row |= ratios(blocks, turns.get(BASELINE, []), answer, prepared.get(BASELINE, {}))
        rows.append(row)
    return rows


def ratios(blocks, baseline, memory, baseline_memory) -> dict[str, Any]:
    """{"seconds_ratio", "energy_ratio", each with "_low" and "_high"; "weights_ratio", "peak_ratio"} to bfloat16."""
    found: dict[str, Any] = {}
    paired = [pair for pair in zip(blocks, baseline, strict=False) if pair[1]["status"] == "ok"]
    for quantity, name in (("seconds", "seconds_ratio"), ("energy_j", "energy_ratio")):
        pairs = [(mine[quantity], other[quantity]) for mine, other in paired]
        values = (None, None, None)
        if pairs and not any(value is None or value <= 0 for pair in pairs for value in pair):
            mine, others = ([[value] for value in side] for side in zip(*pairs, strict=True))
            values = intervals.ratio_of_turns(mine, others)
        for end, value in zip(("", "_low", "_high"), values, strict=True):
            found[name + end] = None if value is None else finite(value)
    if baseline_memory.get("status") == "ok":
        for quantity in ("weights", "peak"):
            found[f"{quantity}_ratio"] = memory[f"{quantity}_mb"] / baseline_memory[f"{quantity}_mb"]
    return found


def keep(record, cell: tuple[str, int, bool], rows: list[dict[str, Any]], complete: bool) -> None:
    """Replace a cell's rows of the same configurations, and note whether the cell is complete."""
    name, images, compiled = cell
    place = {"denoiser": name, "images": images, "compiled": compiled}
    denoiser = DENOISERS[name]
    image = denoiser.steps * denoiser.calls / images  # calls of an image
    for row in rows:
        if row.get("seconds") is not None:
            row["image_seconds"] = image * row["seconds"]
            row["image_energy_j"] = None if row["energy_j"] is None else image * row["energy_j"]
    new = {row["configuration"] for row in rows}
    kept = [row for row in record.found["rows"]
            if not (place.items() <= row.items() and row["configuration"] in new)]  # fmt: skip
    cells = record.found["cells"] | {key(*cell): "complete" if complete else "cut"}
    record.keep(rows=kept + [{**place, "steps": denoiser.steps, **row} for row in rows], cells=cells)
