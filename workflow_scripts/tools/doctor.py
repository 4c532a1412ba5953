"""Check what this machine has and lacks for quantwatt, and for one experiment: a table of findings and remedies.

  .venv/bin/python workflow_scripts/tools/doctor.py --experiment smoke --config device=cuda

`note` marks things that are needed only sometimes. The exit code is 1 if something needed is missing. No token,
password or home folder is printed: the table can go into a bug report.
"""

import argparse
import dataclasses
import json
import platform
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder with quantwatt

from quantwatt.artifacts import manifest
from quantwatt.artifacts.provenance import provenance
from tools import examination
from tools.examination import MISSING, OK

DEFAULTS = {"device": "auto", "meter": "auto", "results": "results", "measuring": {"idle_w": 10, "full_w": 65}}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", metavar="NAME", help="check its models, data and weights, too")
    parser.add_argument("--config", nargs="*", default=[], metavar="KEY=VALUE", help="as Snakemake's")
    parser.add_argument("--json", action="store_true", help="print a list of findings instead of the table")
    args = parser.parse_args(argv)
    config, findings = configuration(args.config, args.experiment)
    findings += examination.examine(general(config))
    if args.experiment:
        findings += examination.examine({"experiment": partial(experiment, args.experiment)})
        if findings[0].status == findings[-1].status == OK:  # the configuration and the experiment
            findings += examination.examine(of_experiment(config, args.experiment))
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        print(*examination.table(findings), sep="\n")
        lacking = examination.lacking(findings)
        print(f"\nMissing: {', '.join(lacking)}." if lacking else "\nNothing that is needed is missing.")
    return 1 if examination.lacking(findings) else 0


def configuration(words, name):
    """(config.yaml merged with `--config`, [its Finding]); DEFAULTS if the configuration is invalid."""
    config = {}

    def check():
        from quantwatt.config.experiment import load_config, sources
        from quantwatt.config.schemas import ConfigurationError

        if wrong := [word for word in words if "=" not in word]:
            return MISSING, f"--config {wrong[0]}: not of the form KEY=VALUE.", "correct it"
        named = [f"experiment={name}"] if name else []
        try:
            config.update(load_config(sources([], [*words, *named], folder=manifest.PROJECT)))
        except ConfigurationError as error:
            return MISSING, str(error), "correct it"
        return OK, f"device {config['device']}, meter {config['meter']}, results in {config['results']}", ""

    findings = examination.examine({"configuration": check})
    return config or DEFAULTS, findings


def general(config):
    from tools.examination import hardware, installation

    checks = {"quantwatt": quantwatt, "Python": installation.python, "environment": installation.environment}
    checks |= {"packages": installation.packages, "torch": installation.torch, "NVIDIA driver": hardware.driver}
    checks |= {"device": partial(hardware.device, config)}
    checks |= {
        f"meter {name}": partial(hardware.meter, name, config) for name in ("nvml", "amdsmi", "rapl", "estimate")
    }
    checks |= {"C compiler": installation.compiler, "CPUs": hardware.processors, "memory": hardware.memory}
    checks |= {"results": partial(hardware.disk, manifest.PROJECT / config["results"])}
    checks |= {name: partial(hardware.disk, folder) for name, folder in hardware.caches().items()}
    return checks | {"network": hardware.network, "SLURM": installation.slurm, "conda": installation.conda}


def quantwatt():
    origin = provenance(())
    return OK, f"{origin['commit'] or 'no commit'}; {origin['system']}, {platform.release()}; {origin['cpu']}", ""


def experiment(name):
    from quantwatt.config.experiment import load_experiment
    from quantwatt.config.schemas import ConfigurationError

    try:
        cells = load_experiment(name)["cells"]
    except ConfigurationError as error:
        return MISSING, str(error), "correct the experiment"
    return OK, f"{name}: {len(cells)} cells", ""


def of_experiment(config, name):
    from quantwatt.config.experiment import load_experiment
    from tools.examination import needs

    return needs.checks(config, load_experiment(name))


if __name__ == "__main__":
    sys.exit(main())
