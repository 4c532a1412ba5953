"""Choose one candidate per layer: maximise the sum of scores within a budget of summed costs, by SciPy's HiGHS.

A multiple-choice knapsack: boolean c[layer, candidate] with sum over candidates c = 1 for every layer; maximise
sum(score * c) subject to low <= sum(cost * c) <= high.

A layer in a range of steps is a layer here. What several of them pay once, as memory for a layer's weights, is a
charge: y[charge] >= c of all that need it, and sum(cost * y) <= high.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

GAP = 1e-6  # optimality gap, relative to the optimum's loss against the best score of every layer
LIMIT_S = 120  # time limit: then the best choice so far is taken; programs of a thousand layers take a second

TIMED_OUT, INFEASIBLE = 1, 2  # values of `status` in the result of SciPy's milp

Layer = Any  # a layer's name, or (name, number of a range of steps)
Numbers = Mapping[Layer, Mapping[str, float]]  # {layer: {candidate: score, cost or loss}}
Charges = Mapping[Layer, Mapping[str, Any]]  # {layer: {candidate: what is paid once by all that name it}}


class Unsolved(Exception):
    """The solver ended without a choice, though a feasible choice may exist; the message gives its end status."""


class Infeasible(Exception):
    """No choice lies within the budget; `nearest` is the feasible summed cost that is nearest to the budget."""

    def __init__(self, nearest: float):
        super().__init__(f"the nearest feasible budget is {nearest:.6g}")
        self.nearest = nearest


def solve(
    scores: Numbers, costs: Numbers, high: float, low: float = 0.0, charges: Charges | None = None
) -> dict[Layer, str]:
    """Return the best choice within a budget.

    Args:
        scores: {layer: {candidate: number}}; their sum is maximised.
        costs: the same layers and candidates; all numbers are at least 0.
        low, high: bounds of the summed cost, kept to within a millionth of the largest possible sum.
        charges: of the same layers and candidates, whose costs are then equal where their charges are, and paid once;
            with charges low is 0.
    Returns:
        {layer: candidate}; equal programs give equal choices, unless the time limit ends the search.
    Raises:
        Infeasible: no choice lies within the bounds.
        Unsolved: no choice was found, and the solver did not prove that none exists.
    """
    best = {layer: max(values.values()) for layer, values in scores.items()}
    losses = {layer: {name: best[layer] - value for name, value in values.items()} for layer, values in scores.items()}
    unit = math.fsum(max(values.values()) for values in costs.values()) or 1.0
    shares = {layer: {name: cost / unit for name, cost in values.items()} for layer, values in costs.items()}
    program = Program(shares, low / unit, high / unit, charges)
    choice = program.minimize(losses)
    if choice is None:
        raise Infeasible(unit * program.nearest())
    return choice


def total(numbers: Numbers, choice: Mapping[Layer, str], charges: Charges | None = None) -> float:
    """Sum the scores or the costs of a choice; with charges each charge once."""
    if charges is None:
        return math.fsum(numbers[layer][candidate] for layer, candidate in choice.items())
    paid = {charges[layer][candidate]: numbers[layer][candidate] for layer, candidate in choice.items()}
    return math.fsum(paid.values())


class Program:
    """Booleans c[layer, candidate], one true per layer, and a slack: how far the summed cost is outside its bounds.

    With charges there is also a number y in 0..1 per charge, between the booleans and the slack.
    """

    def __init__(self, costs: Numbers, low: float, high: float, charges: Charges | None = None):
        self.costs, self.charges = costs, charges
        self.keys = [(layer, name) for layer, values in costs.items() for name in values]
        paid = {} if charges is None else {charges[layer][name]: costs[layer][name] for layer, name in self.keys}
        n, m = len(self.keys), len(paid)
        self.n_charges = m
        layers = np.repeat(np.arange(len(costs)), [len(values) for values in costs.values()])
        ones = coo_array((np.ones(n), (layers, np.arange(n))), shape=(len(costs), n + m + 1))
        priced = np.array([*(self._in_order(costs) if charges is None else np.zeros(n)), *paid.values()])
        within = [[*priced, 1], [*priced, -1]]
        self.constraints = [LinearConstraint(ones, 1, 1), LinearConstraint(within, [low, -np.inf], [np.inf, high])]
        if charges is not None:
            place = {charge: n + i for i, charge in enumerate(paid)}
            pays = [place[charges[layer][name]] for layer, name in self.keys]
            entries = np.repeat([1.0, -1.0], n), (np.tile(np.arange(n), 2), [*pays, *range(n)])
            self.constraints.append(LinearConstraint(coo_array(entries, shape=(n, n + m + 1)), 0, np.inf))

    def _in_order(self, numbers):
        return np.array([numbers[layer][name] for layer, name in self.keys])

    def minimize(self, losses: Numbers) -> dict[Layer, str] | None:
        """Return {layer: candidate} with the smallest summed loss, or None if no choice is within the bounds."""
        ordered = self._in_order(losses)
        relaxed = self._solve(ordered / (ordered.max() or 1), outside=0, whole=False)
        if relaxed is None:
            return None
        # HiGHS also stops at an absolute gap of 1e-6: losses are scaled by a lower bound of the optimum.
        unit = max(ordered @ relaxed, 1e-9 * ordered.max()) or 1
        chosen = self._solve(ordered / unit, outside=0)
        return None if chosen is None else self._choice(chosen)

    def nearest(self) -> float:
        """Return the feasible summed cost that is nearest to the bounds."""
        chosen = self._solve(np.zeros(len(self.keys)), outside=np.inf)
        return total(self.costs, self._choice(chosen), self.charges)

    def _choice(self, chosen):
        return dict(key for key, c in zip(self.keys, chosen, strict=True) if c > 0.5)

    def _solve(self, losses, outside, whole=True):
        """Return [0 or 1 per key] with the smallest summed loss; None if the solver proves that no choice exists.

        Args:
            outside: how far the summed cost may lie outside the bounds; the distance is minimised, too.
            whole: False relaxes the booleans to 0..1.
        Raises:
            Unsolved: as in `solve`, without a choice and without a proof that none exists.
        """
        n, m = len(losses), self.n_charges
        result = milp(
            np.concatenate([losses, np.zeros(m), [1]]),
            integrality=np.append(np.full(n, int(whole)), np.zeros(m + 1)),
            bounds=Bounds(0, np.append(np.ones(n + m), outside)),
            constraints=self.constraints,
            options={"time_limit": LIMIT_S, "mip_rel_gap": GAP},
        )
        if result.x is not None:
            return result.x[:n]
        if result.status == INFEASIBLE:
            return None
        ended = f"no choice was found within {LIMIT_S} s" if result.status == TIMED_OUT else f"HiGHS: {result.message}"
        raise Unsolved(ended)
