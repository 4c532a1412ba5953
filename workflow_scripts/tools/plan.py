"""Estimate how many jobs an experiment still takes, and how long, from earlier runs on this machine.

Times are taken from the benchmark files of earlier runs. They are scaled by images and steps for generating, by images
for features and scores, and by jobs for the other rules.
"""

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder with quantwatt

from quantwatt.artifacts import image_parts, layout
from quantwatt.artifacts.manifest import read_json
from quantwatt.config.experiment import load_config, load_experiment, sources, values
from quantwatt.config.schemas import ConfigurationError
from quantwatt.jobs import command
from quantwatt.jobs.fingerprints import ROOT

SCALED = ("generate", "features", "score")  # rules whose time grows with the number of images


def planned(config):
    """Jobs that Snakemake would run now.

    Args:
        config: the settings of `--config`, a mapping.
    Returns:
        list of (rule, benchmark file or None, GPUs).
    """
    from snakemake.api import SnakemakeApi
    from snakemake.settings.enums import Quietness
    from snakemake.settings.types import ConfigSettings, OutputSettings, ResourceSettings

    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow = api.workflow(
            ResourceSettings(cores=1), ConfigSettings(config=config), snakefile=ROOT / "Snakefile", workdir=ROOT
        )
        workflow.dag().execute_workflow(executor="dryrun")
        jobs = [job for job in workflow._workflow.dag.needrun_jobs(exclude_finished=False) if job.output]
        gpus = {job.rule.name: job.resources.get("gpu", 0) for job in jobs}
        return [(job.rule.name, job.benchmark and Path(job.benchmark), gpus[job.rule.name]) for job in jobs]


def key_of(benchmark):
    """The key of a benchmark file, from general to specific parts, so that similar jobs share a prefix.

    Args:
        benchmark: its path below `benchmarks/`.
    Returns:
        (kind, names...): the names are model, method, sampling and part for generate; for features and scores they
        begin with the extractor or the metric. Features of reference images are a separate kind.
    """
    kind, *names = Path(benchmark).with_suffix("").parts
    if names[:1] == ["reference"]:
        return (f"reference-{kind}", *names[1:])
    return (kind, names[-1], *names[:-1]) if kind in ("features", "score") else (kind, *names)


def work_of(key, sets):
    """The work that a job's time is proportional to: images x steps, images, or 1; None if it is unknown.

    Args:
        sets: function of (model, method, sampling, part or None) that returns (images, steps), or None.
    """
    kind, *names = key
    if kind not in SCALED:
        return 1
    size = sets(*(names if kind == "generate" else names[1:])[:4])
    return size and (size[0] * size[1] if kind == "generate" else size[0])


def rates(results):
    """{prefix of a key: (seconds, work)} of all earlier runs.

    Args:
        results: folder of all experiments' results.
    """
    totals = defaultdict(lambda: (0.0, 0))
    for benchmark in sorted(Path(results).glob("*/benchmarks/**/*.tsv")):
        folder = Path(results) / benchmark.relative_to(results).parts[0]
        header, *rows = [line.split("\t") for line in benchmark.read_text().splitlines()] or [[]]  # empty: job killed
        key = key_of(benchmark.relative_to(folder / "benchmarks"))
        work = work_of(key, lambda *names, folder=folder: _made(folder, *names))
        for row in rows if work else ():
            for length in range(1, len(key) + 1):
                seconds, done = totals[key[:length]]
                totals[key[:length]] = (seconds + float(row[header.index("s")]), done + work)
    return totals


def _made(folder, model, method, sampling, part="manifest"):
    """(images, steps) of a generated image set or part; None if it does not exist."""
    names = {"model": model, "method": method, "sampling": sampling}
    path = layout.path(folder, "images", names).with_name(f"{part}.json")
    manifest = read_json(path) if path.exists() else {"n_images": 0}
    return (manifest["n_images"], manifest["steps"]) if manifest["n_images"] else None


def seconds_of(key, work, known):
    """Estimate a job's seconds from the most similar earlier jobs; None if there are no similar ones.

    Generating with another model is not similar; for other kinds of jobs the kind alone is enough.
    """
    least = 2 if key[0] == "generate" else 1
    for length in range(len(key), least - 1, -1):
        if key[:length] in known:
            seconds, done = known[key[:length]]
            return seconds / done * work
    return None


def predict(jobs, experiment, images_per_job, results, folder):
    """{rule: {"jobs", "gpu", "hours", "unknown"}}, estimated from earlier runs.

    "unknown" counts the jobs without similar earlier jobs.

    Args:
        jobs: as `planned` returns.
        experiment: as `load_experiment` returns.
        results: folder of all experiments' results; folder: the experiment's folder below it.
    """

    def requested(model, method, sampling, part=None):
        entry = experiment["samplings"][sampling]
        sizes = {image_parts.part_name(p.start): len(p) for p in image_parts.parts(entry, images_per_job)}
        steps = experiment["methods"][method].get("steps", entry["steps"])
        return sizes[f"{part}.json"] if part else entry["images"], steps

    known, rows = rates(results), {}
    for rule, benchmark, gpus in jobs:
        row = rows.setdefault(rule, {"jobs": 0, "gpu": gpus, "hours": 0.0, "unknown": 0})
        row["jobs"] += 1
        seconds = None
        if benchmark:
            key = key_of(benchmark.relative_to(Path(folder) / "benchmarks"))
            seconds = seconds_of(key, work_of(key, requested), known)
        row["unknown"] += seconds is None
        row["hours"] += (seconds or 0.0) / 3600
    return rows


def table(found):
    """The lines to print."""
    lines = [f"{'rule':20} {'jobs':>7} {'hours':>10}"]
    for rule, row in found.items():
        hours = f"{row['hours']:.2f}" if row["unknown"] < row["jobs"] else "?"
        lines.append(f"{rule:20} {row['jobs']:7} {hours:>10}" + (" on a GPU" if row["gpu"] else ""))
    total = sum(row["jobs"] for row in found.values())
    unknown = Counter({rule: row["unknown"] for rule, row in found.items() if row["unknown"]})
    where = [row for row in found.values() if row["gpu"]]
    name = "GPU hours" if where else "hours without a GPU"
    rows = where or found.values()
    if all(row["unknown"] == row["jobs"] for row in rows):
        lines.append(f"{total} jobs. How many {name} they take is not known: there is no earlier run to tell from.")
    else:
        lines.append(
            f"{total} jobs; {sum(row['hours'] for row in rows):.1f} {name}, as earlier runs on this machine took."
        )
        jobs = ", ".join(f"{count} of {rule}" for rule, count in unknown.items() if not where or found[rule]["gpu"])
        lines += [f"Not counted, as no earlier run tells of them: {jobs}."] if jobs else []
    return lines


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--config", nargs="*", default=[], metavar="KEY=VALUE", help="as Snakemake's")
    args = parser.parse_args(argv)
    for word in args.config:
        if "=" not in word:
            raise command.DataError(f"--config {word}: not of the form KEY=VALUE.")
    try:
        words = [*args.config, f"experiment={args.experiment}"]
        settings, config = values(words), load_config(sources([], words, folder=ROOT))
        experiment = load_experiment(args.experiment, "--experiment")
    except ConfigurationError as error:
        raise command.DataError(str(error)) from error
    folder = f"{config['results']}/{args.experiment}"
    print(*table(predict(planned(settings), experiment, config["images_per_job"], config["results"], folder)), sep="\n")


if __name__ == "__main__":
    command.run(main)
