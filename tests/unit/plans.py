"""Plans of the experiments that ship with quantwatt, with or without changes, as Snakemake would make them."""

import copy
import functools

import yaml

from quantwatt.config import experiment
from quantwatt.config.plan import Plan
from quantwatt.inference.kernel_choice import KERNELS


@functools.cache
def raw(name):
    return yaml.safe_load((experiment.EXPERIMENTS / f"{name}.yaml").read_text())


def plan_of(name, change=None, device="cpu", meter="estimate", **config):
    """The plan of an experiment, of a changed one where `change` is a function of what its file says."""
    entries = copy.deepcopy(raw(name))
    if change:
        change(entries)
    loaded = experiment.check_experiment(entries, f"{name}.yaml")
    return Plan(experiment.load_config({"experiment": name, **config}), loaded, device, meter, KERNELS[device])


@functools.cache
def plan(name):
    return plan_of(name)


def setting(path, value):
    """A change of an experiment: one key, by its path."""
    *parents, last = path.split("/")

    def change(entries):
        for key in parents:
            entries = entries[int(key) if key.isdigit() else key]
        entries[last] = value

    return change
