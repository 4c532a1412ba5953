"""Choose a candidate per layer by integer programs over measured sensitivities, within budgets.

MixDQ (arXiv 2405.17873) budgets average bits: it scores the layers of its two groups (content and quality) separately,
splits the budget between the groups in several ways, solves for several averages, and keeps the choice with the
smallest image error. A budget can also be megabytes, milliseconds or joules of one denoiser call; milliseconds and
joules are measured on this device.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from quantwatt.allocate import integer_program
from quantwatt.allocate.allocations.mixed import FLOAT_BITS, bits_of
from quantwatt.allocate.integer_program import Infeasible, Unsolved
from quantwatt.artifacts.dtypes import BYTES
from quantwatt.artifacts.errors import DataError
from quantwatt.config.objectives import group_of, metric_of
from quantwatt.config.programs import OF_DEVICE, is_swept, names_of, sides

# Ratios of the content group's average bits to the quality group's: lowest, highest, count (from MixDQ's code).
SPLITS = {"weights": (0.46, 1.36, 10), "activations": (0.94, 1.09, 20)}
UNITS = {"bits": "bits", "megabytes": "MB", "milliseconds": "ms", "joules": "J"}
EVERY = "all"  # name of the group if all layers have one objective

Layers = Mapping[str, Mapping[str, Any]]  # {name: description} of the model manifest
Table = Mapping[str, Mapping[str, Mapping[str, Any]]]  # {layer: {candidate: its row}}


class BudgetInfeasible(DataError):
    """No choice meets a budget of time or energy on this device; the message names the nearest feasible budget."""


def solve(
    layers: Layers,
    table: Table,
    measured: Table | None,
    method: Mapping[str, Any],
    method_name: str,
    dtype: str,
) -> list[dict[str, Any]]:
    """Return all choices of all programs of a method.

    Args:
        layers: {name: {"in_features", "out_features", "group"}} from the model manifest.
        table: {layer: {candidate: {"ssim", ..., "inputs", "megabytes"}}} from the sensitivity table.
        measured: {layer: {candidate or "baseline": {"milliseconds", "joules"}}} from the cost table, or None.
        dtype: name of the model's dtype.
    Returns:
        [{"program", "number", "target", "split", "cost", "unit", "scores": {group: sum}, "layers": {layer: candidate,
        or None if the layer is protected}}]; the choices of a program all differ.
    Raises:
        DataError: no choice meets a budget, a layer has no candidate that was scored and measured, or the solver did
            not solve a program.
        BudgetInfeasible: likewise, for budgets of time or energy on this device.
    """
    results = []
    for index, program in enumerate(method["allocation"]["programs"]):
        where = f"methods.{method_name}.allocation.programs.{index}"
        problem = AllocationProblem(layers, table, measured, program, method["allocation"]["candidates"], dtype, where)
        choices = problem.sweep() if is_swept(program) else [problem.within()]
        different = {tuple(choice["layers"].items()): choice for choice in reversed(choices)}
        for number, choice in enumerate(reversed(different.values())):
            results.append({"program": index, "number": number, **choice})
    return results


class AllocationProblem:
    """One program of a method: the candidates of each layer with their scores and costs."""

    def __init__(
        self,
        layers: Layers,
        table: Table,
        measured: Table | None,
        program: Mapping[str, Any],
        candidates: Mapping[str, Mapping[str, Any]],
        dtype: str,
        where: str,
    ):
        self.program, self.candidates, self.where = program, candidates, where
        self.objective, self.unit = program["objective"], next(unit for unit in UNITS if unit in program["budget"])
        self.side = sides(program, candidates)[0]
        self.group = {name: self._group(name, layers[name]) for name in table}
        self.layers, self.table, self.measured, self.dtype = layers, table, measured or {}, dtype
        self.scores = {name: self._scores(name) for name in table}
        self.costs = {name: {c: self._cost(name, c) for c in self.scores[name]} for name in table}
        self.protected = self._protected()
        self.free = [name for name in table if name not in self.protected]
        self._leave_out_unmeasured()

    def _group(self, name, layer):
        if not isinstance(self.objective, dict) and not isinstance(self.program["candidates"], dict):
            return EVERY
        return group_of(name, layer, self.where)

    def _scores(self, name):
        """Return {candidate: score, larger is better} of the candidates with a finite score."""
        metric = metric_of(self.objective, name, self.layers[name], self.where)
        sign = -1 if metric == "noise" else 1
        values = {candidate: self.table[name][candidate][metric] for candidate in self._names_for(name)}
        return {candidate: sign * value for candidate, value in values.items() if value is not None}

    def _names_for(self, name):
        """Return the names of a layer's candidates."""
        named = self.program["candidates"]
        return named[self.group[name]] if isinstance(named, dict) else named

    def _share(self, name):
        """Return a layer's weight in average bits: its number of weights, or of input elements."""
        layer = self.layers[name]
        if self.side == "weights":
            return layer["in_features"] * layer["out_features"]
        return next(iter(self.table[name].values()))["inputs"]

    def _share_of(self, names):
        return sum(map(self._share, names))

    def _cost(self, name, candidate):
        if self.unit == "bits":
            return self._share(name) * bits_of(self.candidates[candidate], self.side)
        if self.unit == "megabytes":
            return self.table[name][candidate]["megabytes"]
        return self.measured[name][candidate][self.unit]

    def _baseline(self, name):
        """Return a layer's cost in the unquantized model."""
        if self.unit == "megabytes":
            layer = self.layers[name]
            return layer["in_features"] * layer["out_features"] * BYTES[self.dtype] / 1e6
        return self.measured[name]["baseline"][self.unit]

    def _leave_out_unmeasured(self):
        kept = ", ".join(f"{side}: null" for side in sides(self.program, self.candidates))
        wanted = f"both a score and {self.unit}" if self.unit in OF_DEVICE else "a finite score"
        for name in self.free:
            costs = self.costs[name]
            self.costs[name] = {candidate: cost for candidate, cost in costs.items() if cost is not None}
            self.scores[name] = {candidate: self.scores[name][candidate] for candidate in self.costs[name]}
            if not self.costs[name]:
                raise self._failure(
                    f"{self.where}: layer {name} has no candidate with {wanted}; add one that leaves it in 16 bit "
                    f"({{{kept}}})."
                )

    def _protected(self):
        """Return the most sensitive layers of each group, by their widest candidate; they stay in 16 bit."""
        members, chosen = {}, set()
        for name, group in self.group.items():
            members.setdefault(group, []).append(name)
        for names in members.values() if self.program["protect"] else ():
            count = max(1, round(self.program["protect"] * len(names)))
            chosen |= set(sorted(names, key=self._at_most_bits)[:count])
        return chosen

    def _at_most_bits(self, name):
        """Return the score of the candidate with most bits; -inf if even that candidate breaks the model."""
        widest = max(self._names_for(name), key=lambda candidate: bits_of(self.candidates[candidate], self.side))
        return self.scores[name].get(widest, -math.inf)

    def within(self) -> dict[str, Any]:
        """Return the best choice within a budget of megabytes, time or energy."""
        budget = self.program["budget"][self.unit]
        if self.program["budget"]["of"] == "baseline":
            whole = [self._baseline(name) for name in self.free]
            if None in whole:
                raise self._failure(
                    f"{self.where}.budget: the baseline has no {self.unit} here; give an absolute budget."
                )
            budget *= sum(whole)
        try:
            layers = self._best(self.free, budget)
        except Infeasible as error:
            raise self._failure(
                f"{self.where}.budget: no choice of {self._names()} for {len(self.free)} layers stays within "
                f"{budget:.6g} {UNITS[self.unit]}; the nearest feasible budget is {error.nearest:.6g} "
                f"{UNITS[self.unit]}{self._relative(error.nearest, budget)}."
            ) from error
        return self._choice(layers, budget, None)

    def _failure(self, sentence):
        """Return the error to raise: a budget of time or energy may be feasible on another device, others nowhere."""
        return (BudgetInfeasible if self.unit in OF_DEVICE else DataError)(sentence)

    def _relative(self, nearest, budget):
        if self.program["budget"]["of"] != "baseline":
            return ""
        return f" ({nearest / budget * self.program['budget'][self.unit]:.4g} of the baseline's)"

    def sweep(self) -> list[dict[str, Any]]:
        """Return the best choices for several average bits and splits between the groups; infeasible ones are skipped.

        As in MixDQ's code, averages and splits count only unprotected layers; protected layers come on top.
        """
        top, below = self.program["budget"]["bits"], self.program["below"]
        choices = []
        for target in np.linspace(top, top - below, self.program["targets"])[::-1]:  # a single target is the budget
            for split, averages in self._splits(target):
                try:
                    layers = {}
                    for group, names in self._groups().items():
                        layers |= self._at(names, averages[group])
                except Infeasible:
                    continue
                choices.append(self._choice(layers, float(target), split))
        if not choices:
            raise DataError(self._no_average(top))
        return choices

    def _groups(self):
        """Return {group: its unprotected layers}; all layers are one group unless groups have separate objectives."""
        groups = {}
        for name in self.free:
            groups.setdefault(self.group[name] if isinstance(self.objective, dict) else EVERY, []).append(name)
        return groups

    def _splits(self, average):
        """Return [(ratio content/quality, {group: average bits})], the ways to split an average between the groups."""
        groups = self._groups()
        if len(groups) == 1:
            return [(None, dict.fromkeys(groups, average))]
        content, quality = self._share_of(groups["content"]), self._share_of(groups["quality"])
        custom = self.program["split"]
        low, high, count = (custom["low"], custom["high"], custom["count"]) if custom else SPLITS[self.side]
        ratio, averages = content / quality, []
        for split in np.linspace(low, high, count):
            of_quality = average * (1 + ratio) / (split * ratio + 1)
            averages.append((float(split), {"quality": of_quality, "content": split * of_quality}))
        return averages

    def _at(self, names, average):
        """Return the best choice for some layers with average bits within the tolerance of `average`."""
        share, tolerance = self._share_of(names), self.program["tolerance"]
        return self._best(names, (average + tolerance) * share, (average - tolerance) * share)

    def _best(self, names, high, low=0.0):
        scores, costs = ({name: numbers[name] for name in names} for numbers in (self.scores, self.costs))
        try:
            return integer_program.solve(scores, costs, high, low)
        except Unsolved as error:
            raise DataError(f"{self.where}: the program of {len(names)} layers is unsolved: {error}.") from error

    def _no_average(self, target):
        """Explain why no average or split is feasible, with the nearest feasible average."""
        try:
            self._at(self.free, target)
        except Infeasible as error:
            return (
                f"{self.where}.budget.bits: no choice of {self._names()} for {len(self.free)} layers averages "
                f"{target:.6g} bits or up to {self.program['below']:.6g} below; the nearest average is "
                f"{error.nearest / self._share_of(self.free):.4g}."
            )
        return (
            f"{self.where}.split: no split of {target:.6g} bits between content and quality layers is feasible; "
            f"widen the split or the tolerance. Without a split, {target:.6g} bits are feasible."
        )

    def _names(self):
        return ", ".join(names_of(self.program))

    def _choice(self, layers, target, split):
        cost = integer_program.total(self.costs, layers)
        if self.unit == "bits":  # the average over all layers, including protected ones
            whole, kept = self._share_of(self.group), self._share_of(self.protected)
            cost = (cost + FLOAT_BITS * kept) / whole
        scores = {}
        for name, candidate in layers.items():
            group = self.group[name] if isinstance(self.objective, dict) else EVERY
            scores[group] = scores.get(group, 0.0) + self.scores[name][candidate]
        return {
            "target": target,
            "split": split,
            "cost": cost,
            "unit": self.unit,
            "scores": scores,
            "layers": {name: layers.get(name) for name in self.table},
        }
