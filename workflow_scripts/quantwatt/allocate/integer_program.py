"""One candidate for every layer: the largest sum of scores within a budget of summed costs, by SciPy's HiGHS.

A multiple-choice knapsack: boolean c[layer, candidate], sum over a layer's candidates of c = 1, maximise the sum of
score * c with low <= sum of cost * c <= high.
"""

import math

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

GAP = 1e-6  # of the optimum, relative to what it loses against every layer's best score
LIMIT_S = 120  # the best choice found until then is taken; programs of a thousand layers take a second

TIMED_OUT, INFEASIBLE = 1, 2  # as SciPy's milp numbers how it ended


class Unsolved(Exception):
    """The solver ended without a choice, though there may be one; the message says how it ended."""


class Infeasible(Exception):
    """No choice lies within the budget; `nearest` is the summed cost nearest to it that a choice has."""

    def __init__(self, nearest):
        super().__init__(f"the nearest feasible budget is {nearest:.6g}")
        self.nearest = nearest


def solve(scores, costs, high, low=0.0):
    """The best choice within a budget.

    Args:
        scores: {layer: {candidate: number}}, to be as large as possible in sum.
        costs: the same layers and candidates, no number below 0.
        low, high: bounds of the summed cost, kept within a millionth of the largest sum.
    Returns:
        {layer: candidate}; equal programs have equal choices, unless the time limit ends the search.
    Raises:
        Infeasible: no choice lies within the bounds.
        Unsolved: none was found, and it is not known whether there is any.
    """
    best = {layer: max(own.values()) for layer, own in scores.items()}
    losses = {layer: {name: best[layer] - value for name, value in own.items()} for layer, own in scores.items()}
    unit = math.fsum(max(own.values()) for own in costs.values()) or 1.0
    shares = {layer: {name: cost / unit for name, cost in own.items()} for layer, own in costs.items()}
    program = Program(shares, low / unit, high / unit)
    choice = program.minimize(losses)
    if choice is None:
        raise Infeasible(unit * program.nearest())
    return choice


def total(numbers, choice):
    """The sum of a choice's scores or costs."""
    return math.fsum(numbers[layer][candidate] for layer, candidate in choice.items())


class Program:
    """Booleans c[layer, candidate], one true of each layer, and how far their summed cost lies outside its bounds."""

    def __init__(self, costs, low, high):
        self.keys = [(layer, name) for layer, own in costs.items() for name in own]
        self.costs, n = self._in_order(costs), len(self.keys)
        layers = np.repeat(np.arange(len(costs)), [len(own) for own in costs.values()])
        ones = coo_array((np.ones(n), (layers, np.arange(n))), shape=(len(costs), n + 1))
        within = [[*self.costs, 1], [*self.costs, -1]]
        self.constraints = [LinearConstraint(ones, 1, 1), LinearConstraint(within, [low, -np.inf], [np.inf, high])]

    def _in_order(self, numbers):
        return np.array([numbers[layer][name] for layer, name in self.keys])

    def minimize(self, losses):
        """{layer: candidate} of the smallest summed loss, or None where no choice is within the bounds."""
        losses = self._in_order(losses)
        relaxed = self._solve(losses / (losses.max() or 1), outside=0, whole=False)
        if relaxed is None:
            return None
        # HiGHS also stops 1e-6 from the optimum, whatever that is: losses are counted in the least that there can be.
        unit = max(losses @ relaxed, 1e-9 * losses.max()) or 1
        chosen = self._solve(losses / unit, outside=0)
        return None if chosen is None else dict(key for key, one in zip(self.keys, chosen, strict=True) if one > 0.5)

    def nearest(self):
        """The summed cost that lies nearest to the bounds."""
        return math.fsum(self.costs[self._solve(np.zeros(len(self.keys)), outside=np.inf) > 0.5])

    def _solve(self, losses, outside, whole=True):
        """[booleans] of the smallest summed loss, at most `outside` the bounds and as little as can be; None without.

        Raises:
            Unsolved: as of `solve`; only a proof counts as a no.
        """
        found = milp(
            np.append(losses, 1),
            integrality=np.append(np.full(len(losses), int(whole)), 0),
            bounds=Bounds(0, np.append(np.ones(len(losses)), outside)),
            constraints=self.constraints,
            options={"time_limit": LIMIT_S, "mip_rel_gap": GAP},
        )
        if found.x is not None:
            return found.x[:-1]
        if found.status == INFEASIBLE:
            return None
        ended = f"no choice was found within {LIMIT_S} s" if found.status == TIMED_OUT else f"HiGHS: {found.message}"
        raise Unsolved(ended)
