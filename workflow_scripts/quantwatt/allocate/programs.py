"""Choose a candidate per layer by integer programs over measured sensitivities, within budgets.

MixDQ (arXiv 2405.17873) budgets average bits: it scores the layers of its two groups (content and quality) separately,
splits the budget between the groups in several ways, solves for several averages, and keeps the choice with the
smallest image error. A budget can also be megabytes, milliseconds or joules of one denoiser call; milliseconds and
joules are measured on this device.

Where layers were tried in ranges of steps, a program chooses for each layer in each range, and a budget is of the whole
drawing: average bits over its steps, milliseconds and joules of one denoiser call a step, and the megabytes of all that
is stored, a layer's weights once for each candidate that it has in any range.
"""

import json
import math
from collections.abc import Mapping, Sequence
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
    tables: Sequence[Table],
    measured: Table | None,
    method: Mapping[str, Any],
    method_name: str,
    dtype: str,
) -> list[dict[str, Any]]:
    """Return all choices of all programs of a method.

    Args:
        layers: {name: {"in_features", "out_features", "group"}} from the model manifest.
        tables: {layer: {candidate: {"ssim", ..., "inputs", "megabytes"}}} of each range of steps, from the sensitivity
            table; a single one where layers were tried in all steps.
        measured: {layer: {candidate or "baseline": {"milliseconds", "joules"}}} from the cost table, or None.
        dtype: name of the model's dtype.
    Returns:
        [{"program", "number", "target", "split", "cost", "unit", "scores": {group: sum}, "ranges": [{layer: candidate,
        or None if the layer is protected}] of each range}]; the choices of a program all differ.
    Raises:
        DataError: no choice meets a budget, a layer has no candidate that was scored and measured, or the solver did
            not solve a program.
        BudgetInfeasible: likewise, for budgets of time or energy on this device.
    """
    results = []
    for index, program in enumerate(method["allocation"]["programs"]):
        where = f"methods.{method_name}.allocation.programs.{index}"
        steps = [entry["steps"] for entry in method["schedule"]] if len(tables) > 1 else [1]
        candidates = method["allocation"]["candidates"]
        problem = AllocationProblem(layers, tables, steps, measured, program, candidates, dtype, where)
        choices = problem.sweep() if is_swept(program) else [problem.within()]
        different = {json.dumps(choice["ranges"]): choice for choice in reversed(choices)}
        for number, choice in enumerate(reversed(different.values())):
            results.append({"program": index, "number": number, **choice})
    return results


class AllocationProblem:
    """One program of a method: the candidates of each layer in each range of steps, with their scores and costs.

    A place is (layer, number of the range); places and their figures are in the order of `places`.
    """

    def __init__(
        self,
        layers: Layers,
        tables: Sequence[Table],
        steps: Sequence[int],
        measured: Table | None,
        program: Mapping[str, Any],
        candidates: Mapping[str, Mapping[str, Any]],
        dtype: str,
        where: str,
    ):
        self.program, self.candidates, self.where = program, candidates, where
        self.objective, self.unit = program["objective"], next(unit for unit in UNITS if unit in program["budget"])
        self.side = sides(program, candidates)[0]
        self.layers, self.tables, self.steps = layers, tables, steps
        self.measured, self.dtype = measured or {}, dtype
        self.places = [(name, index) for index, table in enumerate(tables) for name in table]
        self.group = {place: self._group(place[0], layers[place[0]]) for place in self.places}
        self.scores = {place: self._scores(place) for place in self.places}
        self.costs = {place: {c: self._cost(place, c) for c in self.scores[place]} for place in self.places}
        self.protected = self._protected()
        self.free = [place for place in self.places if place not in self.protected]
        self._leave_out_unmeasured()
        self.charges = None
        if self.unit == "megabytes" and len(tables) > 1:  # a layer in one format is stored once for several ranges
            self.charges = {place: {c: (place[0], c) for c in self.costs[place]} for place in self.free}

    def _group(self, name, layer):
        if not isinstance(self.objective, dict) and not isinstance(self.program["candidates"], dict):
            return EVERY
        return group_of(name, layer, self.where)

    def _row(self, place, candidate):
        name, index = place
        return self.tables[index][name][candidate]

    def _scores(self, place):
        """Return {candidate: score, larger is better} of the candidates with a finite score."""
        metric = metric_of(self.objective, place[0], self.layers[place[0]], self.where)
        sign = -1 if metric == "noise" else 1
        values = {candidate: self._row(place, candidate)[metric] for candidate in self._names_for(place)}
        return {candidate: sign * value for candidate, value in values.items() if value is not None}

    def _names_for(self, place):
        """Return the names of a place's candidates."""
        named = self.program["candidates"]
        return named[self.group[place]] if isinstance(named, dict) else named

    def _share(self, place):
        """Return a place's weight in average bits: its weights, or elements of its input, times its steps."""
        name, index = place
        layer = self.layers[name]
        if self.side == "weights":
            return layer["in_features"] * layer["out_features"] * self.steps[index]
        return next(iter(self.tables[index][name].values()))["inputs"] * self.steps[index]

    def _share_of(self, places):
        return sum(map(self._share, places))

    def _cost(self, place, candidate):
        if self.unit == "bits":
            return self._share(place) * bits_of(self.candidates[candidate], self.side)
        if self.unit == "megabytes":
            return self._row(place, candidate)["megabytes"]
        return self._of_steps(place, self.measured[place[0]][candidate][self.unit])

    def _of_steps(self, place, cost):
        """Return the cost of a place's steps from that of one denoiser call, which may be unknown."""
        return None if cost is None else cost * self.steps[place[1]]

    def _baseline(self):
        """Return the cost of the free places in the unquantized model, or None if it is unknown."""
        if self.unit == "megabytes":
            layers = [self.layers[name] for name in dict(self.free)]
            return sum(layer["in_features"] * layer["out_features"] for layer in layers) * BYTES[self.dtype] / 1e6
        costs = [self._of_steps(place, self.measured[place[0]]["baseline"][self.unit]) for place in self.free]
        return None if None in costs else sum(costs)

    def _leave_out_unmeasured(self):
        kept = ", ".join(f"{side}: null" for side in sides(self.program, self.candidates))
        wanted = f"both a score and {self.unit}" if self.unit in OF_DEVICE else "a finite score"
        for place in self.free:
            costs = self.costs[place]
            self.costs[place] = {candidate: cost for candidate, cost in costs.items() if cost is not None}
            self.scores[place] = {candidate: self.scores[place][candidate] for candidate in self.costs[place]}
            if not self.costs[place]:
                raise self._failure(
                    f"{self.where}: layer {place[0]} has no candidate with {wanted}; add one that leaves it in 16 bit "
                    f"({{{kept}}})."
                )

    def _protected(self):
        """Return the most sensitive places of each group, by their widest candidate; they stay in 16 bit."""
        members, chosen = {}, set()
        for place, group in self.group.items():
            members.setdefault(group, []).append(place)
        for places in members.values() if self.program["protect"] else ():
            count = max(1, round(self.program["protect"] * len(places)))
            chosen |= set(sorted(places, key=self._at_most_bits)[:count])
        return chosen

    def _at_most_bits(self, place):
        """Return the score of the candidate with most bits; -inf if even that candidate breaks the model."""
        widest = max(self._names_for(place), key=lambda candidate: bits_of(self.candidates[candidate], self.side))
        return self.scores[place].get(widest, -math.inf)

    def within(self) -> dict[str, Any]:
        """Return the best choice within a budget of megabytes, time or energy."""
        budget = self.program["budget"][self.unit]
        if self.program["budget"]["of"] == "baseline":
            whole = self._baseline()
            if whole is None:
                raise self._failure(
                    f"{self.where}.budget: the baseline has no {self.unit} here; give an absolute budget."
                )
            budget *= whole
        try:
            chosen = self._best(self.free, budget)
        except Infeasible as error:
            raise self._failure(
                f"{self.where}.budget: no choice of {self._names()} for {self._counted()} stays within "
                f"{budget:.6g} {UNITS[self.unit]}; the nearest feasible budget is {error.nearest:.6g} "
                f"{UNITS[self.unit]}{self._relative(error.nearest, budget)}."
            ) from error
        return self._choice(chosen, budget, None)

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
                    chosen = {}
                    for group, places in self._groups().items():
                        chosen |= self._at(places, averages[group])
                except Infeasible:
                    continue
                choices.append(self._choice(chosen, float(target), split))
        if not choices:
            raise DataError(self._no_average(top))
        return choices

    def _groups(self):
        """Return {group: its unprotected places}; all are one group unless groups have separate objectives."""
        groups = {}
        for place in self.free:
            groups.setdefault(self.group[place] if isinstance(self.objective, dict) else EVERY, []).append(place)
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

    def _at(self, places, average):
        """Return the best choice for some places with average bits within the tolerance of `average`."""
        share, tolerance = self._share_of(places), self.program["tolerance"]
        return self._best(places, (average + tolerance) * share, (average - tolerance) * share)

    def _best(self, places, high, low=0.0):
        scores, costs = ({place: numbers[place] for place in places} for numbers in (self.scores, self.costs))
        try:
            return integer_program.solve(scores, costs, high, low, self.charges)
        except Unsolved as error:
            raise DataError(f"{self.where}: the program of {self._counted()} is unsolved: {error}.") from error

    def _counted(self):
        """Return "24 layers" or "24 layers in 3 ranges of steps": what is free to choose."""
        ranges = f" in {len(self.tables)} ranges of steps" if len(self.tables) > 1 else ""
        return f"{len(dict(self.free))} layers{ranges}"

    def _no_average(self, target):
        """Explain why no average or split is feasible, with the nearest feasible average."""
        try:
            self._at(self.free, target)
        except Infeasible as error:
            return (
                f"{self.where}.budget.bits: no choice of {self._names()} for {self._counted()} averages "
                f"{target:.6g} bits or up to {self.program['below']:.6g} below; the nearest average is "
                f"{error.nearest / self._share_of(self.free):.4g}."
            )
        return (
            f"{self.where}.split: no split of {target:.6g} bits between content and quality layers is feasible; "
            f"widen the split or the tolerance. Without a split, {target:.6g} bits are feasible."
        )

    def _names(self):
        return ", ".join(names_of(self.program))

    def _choice(self, chosen, target, split):
        cost = integer_program.total(self.costs, chosen, self.charges)
        if self.unit == "bits":  # the average over all places, including protected ones
            whole, kept = self._share_of(self.places), self._share_of(self.protected)
            cost = (cost + FLOAT_BITS * kept) / whole
        scores = {}
        for place, candidate in chosen.items():
            group = self.group[place] if isinstance(self.objective, dict) else EVERY
            scores[group] = scores.get(group, 0.0) + self.scores[place][candidate]
        ranges = [{name: chosen.get((name, index)) for name in table} for index, table in enumerate(self.tables)]
        return {
            "target": target,
            "split": split,
            "cost": cost,
            "unit": self.unit,
            "scores": scores,
            "ranges": ranges,
        }
