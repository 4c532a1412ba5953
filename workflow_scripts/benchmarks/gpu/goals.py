"""What the evidence should show, and what it shows."""

import math
from typing import Any

from benchmarks.gpu.denoisers import BASELINE, DENOISERS
from quantwatt.artifacts.manifest import PROJECT, read_json

ANCHORS = PROJECT / "resources" / "report" / "page" / "anchors.json"
YES, NO, OPEN = "yes", "no", "not measured"


def goals(found: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """[(goal, what was found, "yes", "no" or "not measured")].

    Args:
        found: {stage: what its file holds}.
    """
    rows = found["denoisers"].get("rows", [])
    tests, solved = found["tests"].get("counts"), {row["solver"]: row for row in found["solvers"].get("rows", [])}
    held = (
        ("difference of counter and integral, idle and load: 3 % at most", sensor(found["sensor"]), 0, 0.03),
        ("a denoiser against itself, the interval's distance from 1: 1 % at most", itself(found["pairs"]), 0, 0.01),
        ("tests that fail: none", None if tests is None else tests.get("failed", 0), 0, 0),
        ("speed of compiled int8 or float8, sd35-large, over bfloat16's: 1.3 at least", fastest(rows), 1.3, math.inf),
        ("weights of int8 over bfloat16's: 0.55 at most", weights(rows, "int8 dynamic"), 0, 0.55),
        ("weights of W4A8 over bfloat16's: 0.35 at most", weights(rows, "W4A8"), 0, 0.35),
        ("speed of W4A8 over W4A16's, 4,096 tokens: 1 at least", four_bits(found["kernels"]), 1, math.inf),
        ("minutes of GPTQ, sd35-medium: 10 at most", minutes(solved.get("gptq")), 0, 10),
        ("speed of GPTQ over GPTQModel's: 1 at least", against_library(found["solvers"]), 1, math.inf),
        ("difference of bfloat16's joules an image from ML.ENERGY's: 25 % at most", published(rows), 0, 0.25),
    )
    return [goal(*each) for each in held]


def goal(words: str, value: float | None, least: float, most: float) -> tuple[str, str, str]:
    if value is None:
        return words, "", OPEN
    return words, f"{value:.3g}", YES if least <= value <= most else NO


def sensor(stage) -> float | None:
    """The largest difference of counter and integral while nothing or all of the board works."""
    checks = [stage.get("phases", {}).get(name, {}).get("crosscheck") for name in ("idle", "load")]
    return max((abs(check["difference"]) for check in checks if check), default=None)


def itself(stage) -> float | None:
    """How far the interval of the ratio of time, or of energy, reaches from 1."""
    ratios = [ratio for ratio in stage.get("ratios", {}).values() if ratio]
    return max((abs(bound - 1) for ratio in ratios for bound in ratio), default=None)


def cells(rows, denoiser, compiled, key) -> dict[str, Any]:
    """{configuration: value} of one image a call, where there is a value."""
    place = {"denoiser": denoiser, "images": 1, "compiled": compiled}
    return {row["configuration"]: row[key] for row in rows if place.items() <= row.items() and row.get(key) is not None}


def fastest(rows) -> float | None:
    ratios = cells(rows, "sd35-large", True, "seconds_ratio")
    return max((1 / ratio for name, ratio in ratios.items() if name.startswith(("int8", "float8"))), default=None)


def weights(rows, configuration) -> float | None:
    ratios = [cells(rows, "sd35-large", compiled, "weights_ratio").get(configuration) for compiled in (True, False)]
    return next((ratio for ratio in ratios if ratio is not None), None)


def four_bits(stage) -> float | None:
    """The least ratio over shapes."""
    fastest_ms: dict[tuple, float] = {}
    for row in stage.get("rows", []):
        if row["tokens"] == 4096 and row["ms"] is not None and row["format"] in ("W4A8", "W4A16 group 128"):
            key = row["in_features"], row["out_features"], row["format"]
            fastest_ms[key] = min(row["ms"], fastest_ms.get(key, row["ms"]))
    shapes = {key[:2] for key in fastest_ms}
    pairs = [(fastest_ms.get((*shape, "W4A16 group 128")), fastest_ms.get((*shape, "W4A8"))) for shape in shapes]
    return min((w4a16 / w4a8 for w4a16, w4a8 in pairs if w4a16 and w4a8), default=None)


def minutes(row) -> float | None:
    return None if row is None else row["seconds"] / 60


def against_library(stage) -> float | None:
    """The least ratio over layers."""
    seconds: dict[str, dict[str, float]] = {}
    for row in stage.get("layers", []):
        if row["reason"] is None:
            seconds.setdefault(row["layer"], {})[row["implementation"]] = row["hessian_s"] + row["solve_s"]
    ratios = [each["gptqmodel"] / each["quantwatt"] for each in seconds.values() if len(each) == 2]
    return min(ratios, default=None)


def published(rows) -> float | None:
    """The largest relative difference over denoisers, of the eager or the compiled one, whichever is nearer."""
    energies = {each["model"]: each["energy_j"] for each in read_json(ANCHORS)}
    differences = []
    for name, denoiser in DENOISERS.items():
        joules = [cells(rows, name, compiled, "image_energy_j").get(BASELINE) for compiled in (True, False)]
        known = [each for each in joules if each is not None]
        if known and denoiser.published in energies:
            differences.append(min(abs(each / energies[denoiser.published] - 1) for each in known))
    return max(differences, default=None)
