"""The part of conda's command line that Snakemake calls, on py-rattler: for machines without conda.

Solving, linking and putting the prefix into files is rattler's, the library under pixi; the pip section of an
environment's file goes to the new environment's own pip, as conda hands it over. Missing are conda's solver, its
configuration, its locks and its shell hooks.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import rattler
import yaml

ALIAS = os.environ.get("CONDA_CHANNEL_ALIAS", "https://conda.anaconda.org").rstrip("/") + "/"  # as conda reads it
VERSION = "24.7.1"  # the oldest that Snakemake takes


def main(argv):
    if argv == ["--version"]:
        print(f"conda {VERSION}")
    elif argv == ["info", "--json"]:
        print(json.dumps({"conda_prefix": sys.prefix, "platform": str(rattler.Platform.current())}))
    elif argv == ["config", "--get", "channel_priority", "--json"]:
        print(json.dumps({"get": {"channel_priority": "strict"}}))
    elif argv[:2] == ["env", "create"]:
        create(argv[2:])
    elif argv[:1] != ["clean"]:  # nothing is left to be cleaned away
        sys.exit(f"not among the commands that Snakemake gives: conda {' '.join(argv)}")


def create(argv):
    """Make an environment from its file: conda's packages, then pip's."""
    parser = argparse.ArgumentParser(prog="conda env create")
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--prefix", type=Path, required=True)
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--no-default-packages", action="store_true")
    args = parser.parse_args(argv)
    environment = yaml.safe_load(args.file.read_text())
    packages = [package for package in environment["dependencies"] if isinstance(package, str)]
    pip = [line for section in environment["dependencies"] if isinstance(section, dict) for line in section["pip"]]
    asyncio.run(link(packages, environment["channels"], args.prefix))
    if pip:
        command = [args.prefix / "bin/python", "-m", "pip", "install", "--upgrade", *pip]
        subprocess.run(command, check=True)


async def link(packages, channels, prefix):
    """Solve and install packages, such as "python=3.11", from channels by name."""
    named = rattler.ChannelConfig(channel_alias=ALIAS)
    channels = [rattler.Channel(name, named) for name in channels]
    records = await rattler.solve(channels, packages, virtual_packages=rattler.VirtualPackage.detect())
    await rattler.install(records=records, target_prefix=prefix, show_progress=False)


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # threads of rattler's can abort an orderly end
