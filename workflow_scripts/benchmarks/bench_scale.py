"""Measure the memory and time of writing, gathering, extracting features of and scoring N images, as N grows.

Images are small and random, written in parts by the writer of the workflow. Features come from the embedded judge, and
scores from score.py. Every stage runs in a separate process, whose CPU time and peak memory are recorded.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where quantwatt is

from benchmarks import harness
from quantwatt.artifacts import image_parts
from quantwatt.artifacts.errors import DataError
from quantwatt.config import metric_entries
from quantwatt.jobs.fingerprints import EMBEDDED, ROOT
from quantwatt.jobs.progress import progress

COUNTS = (1000, 4000, 16_000)
SIZE, BATCH, IMAGES_PER_JOB = 16, 50, 1000
JUDGE = json.dumps({"model": f"local-dir:{ROOT / EMBEDDED / 'judge'}", "pretrained": None})
SETS = ("baseline", "method", "reference")
METRICS = ("fid", "kid", "clip-score", "psnr", "ssim")
RUN = """
import resource, runpy, sys
script, sys.argv = sys.argv[1], sys.argv[1:]
sys.path.insert(0, str(__import__("pathlib").Path(script).parent))
try:
    runpy.run_path(script, run_name="__main__")
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""


def write_part(folder, part, name):
    """Write one part of a set of random images, as generate.py writes a model's images; `name` is one of SETS."""
    import numpy as np

    from quantwatt.artifacts import images

    def batches():
        for first in part[::BATCH]:
            numbers = range(first, min(first + BATCH, part.stop))
            rng = np.random.default_rng([SETS.index(name), first])
            pixels = rng.integers(0, 256, (len(numbers), SIZE, SIZE, 3), dtype=np.uint8)
            yield pixels, [f"a large red circle {number}" for number in numbers], list(numbers)

    fields = {"reference": name} if name == "reference" else {"model": "random", "method": name, "sampling": "s"}
    fields["provenance"] = None
    images.write_images(folder, batches(), fields, part)


def run(script, *arguments):
    """(CPU seconds, peak MB) of a script of workflow_scripts/, run in a separate process.

    Raises:
        DataError: the script failed.
    """
    command = [sys.executable, "-c", RUN, str(Path(__file__).resolve().parents[1] / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise DataError(f"{script} failed: {done.stderr.strip().splitlines()[-1]}")
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), float(peak)


def measure(n, folder):
    """Rows {"images", "stage", "cpu_s", "peak_mb"} of all stages on `n` images; the stages write into `folder`."""
    folder, costs = Path(folder), {}
    parts = image_parts.parts({"images": n, "batch_size": BATCH}, IMAGES_PER_JOB)
    run("fetch_weights.py", "--extractor", "judge", "--settings", JUDGE, "--output", folder / "judge.json")
    for name in SETS:
        written = [
            run("benchmarks/bench_scale.py", "--part", part.start, part.stop, "--name", name, "--output", folder / name)
            for part in parts
        ]
        gathered = run("gather_images.py", "--output", folder / name / "manifest.json", "--first",
                       0, n, len(parts[0]))  # fmt: skip
        extracted = run("features.py", "--images", folder / name / "manifest.json", "--weights", folder / "judge.json",
                        "--output", folder / name / "judge.json")  # fmt: skip
    costs["write"] = (sum(seconds for seconds, _ in written), max(peak for _, peak in written))
    costs |= {"gather": gathered, "features": extracted}
    manifests = ["--images", folder / "method/manifest.json", "--baseline", folder / "baseline/manifest.json"]
    features = ["--features", folder / "method/judge.json", "--baseline-features", folder / "baseline/judge.json"]
    for metric in METRICS:
        inputs = features if metric_entries.features_of(metric) else manifests
        if metric_entries.compares_with_reference(metric):
            inputs = [*inputs, "--reference-features", folder / "reference/judge.json"]
        costs[metric] = run("score.py", "--metric", metric, *inputs, "--output", folder / f"{metric}.json")
    return [
        {"images": n, "stage": stage, "cpu_s": seconds, "peak_mb": peak} for stage, (seconds, peak) in costs.items()
    ]


def table(rows):
    """The lines to print: one line per stage, with CPU seconds and megabytes at each number of images."""
    counts = sorted({row["images"] for row in rows})
    lines = [f"{'stage':12}" + "".join(f"{count:>22,}" for count in counts)]
    for stage in dict.fromkeys(row["stage"] for row in rows):
        by_count = {row["images"]: row for row in rows if row["stage"] == stage}
        cells = [f"{by_count[count]['cpu_s']:.1f} s, {by_count[count]['peak_mb']:.0f} MB" for count in counts]
        lines.append(f"{stage:12}" + "".join(f"{cell:>22}" for cell in cells))
    return lines


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--part", type=int, nargs=2, metavar=("FIRST", "STOP"), help="only write these images")
    parser.add_argument("--name", choices=SETS, default="method", help="with --part: the set that the images belong to")
    parser.add_argument("--output", default="results/benchmarks/scale.json", help="JSON file; with --part, a folder")
    args = parser.parse_args(argv)
    if args.part:
        write_part(args.output, range(*args.part), args.name)
        return
    rows = []
    for n in progress(sorted(args.images), description="image sets", unit="set"):
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(n, folder)
    settings = {"size": SIZE, "images_per_job": IMAGES_PER_JOB, "features": "judge"}
    harness.write(args.output, rows, ("numpy", "torch", "pillow", "clean-fid", "scikit-image"), settings)
    print(*table(rows), sep="\n")


if __name__ == "__main__":
    from quantwatt.jobs import command

    command.run(main)
