"""Make the evidence that only a GPU can give: kernels, sensor, denoisers of true size, solvers, in joules and seconds.

It runs in stages within a time budget; each writes OUTPUT/STAGE.json as it goes, and the same command goes on where the
last one stopped. A stage that fails says why, and the next goes on. Nothing is downloaded: denoisers have random
weights. `--device cpu --size tiny` rehearses all of it without a GPU.

Where neither a network nor the project's environment is at hand, `--wheels FOLDER` downloads beforehand what a machine
lacks that has PyTorch, transformers, accelerate and the usual numerical packages; there it is installed by
  pip install --no-index --no-deps --target SITE FOLDER/*.whl && export PYTHONPATH=SITE
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where quantwatt is

from benchmarks.gpu import stages
from benchmarks.gpu.denoisers import CONFIGURATIONS, DENOISERS
from quantwatt.jobs import command, machine
from quantwatt.measuring.meters import NAMES


def main(argv=None):
    args = parse_arguments(argv)
    if args.wheels:
        from benchmarks.gpu import wheels

        print(wheels.fetch(args.wheels, args.there))
        return None
    machine.require(args.device)
    meter = machine.resolve_meter(args.meter, args.device)
    options = ["--output", str(args.output), "--device", args.device, "--size", args.size, "--meter", meter]
    if args.stage:
        chosen = args.denoisers, args.configurations
        stages.run_stage(stages.Record(args.stage, args.output, args.device, args.size, meter, args.seconds, *chosen))
        return None
    options += ["--denoisers", *args.denoisers, "--configurations", *args.configurations]
    found = stages.run_all(args.stages, args.output, args.minutes, [sys.executable, __file__, *options], args.least_s)
    print(f"{args.output}: " + ", ".join(f"{stage} {status}" for stage, status in found.items()))
    if any(status in ("partial", "not begun") for status in found.values()):
        print("The same command goes on with what is left.")
    failed = [stage for stage, status in found.items() if status == "failed"]
    return f"error: these stages failed, for the reasons above: {', '.join(failed)}." if failed else None


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/gpu-evidence"), help="folder of the stages' files")
    parser.add_argument("--minutes", type=float, default=9, help="after which nothing goes on")
    parser.add_argument("--stages", nargs="+", choices=stages.MODULES, default=list(stages.MODULES))
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--size", default="true", choices=["true", "tiny"], help="tiny: a rehearsal, of no evidence")
    parser.add_argument("--meter", default="auto", choices=["auto", *NAMES])
    parser.add_argument(
        "--wheels", type=Path, metavar="FOLDER", help="download what else a bare machine needs, and end"
    )
    parser.add_argument("--denoisers", nargs="*", default=[], choices=DENOISERS, help="to measure (default: all)")
    parser.add_argument("--configurations", nargs="*", default=[], choices=CONFIGURATIONS, help="likewise, beside bf16")
    parser.add_argument("--there", nargs="*", default=[], metavar="PACKAGE", help="with --wheels: not to be downloaded")
    parser.add_argument("--stage", choices=stages.MODULES, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60, help=argparse.SUPPRESS)
    parser.add_argument("--least-s", type=float, default=stages.LEAST_S, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    command.run(main)
