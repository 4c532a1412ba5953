"""One candidate for every layer: the largest sum of scores within a budget of summed costs, by OR-Tools and SCIP.

A multiple-choice knapsack: boolean c[layer, candidate], sum over a layer's candidates of c = 1, maximise the sum of
score * c with low <= sum of cost * c <= high.
"""

import math

GAP = 1e-6  # of the optimum, relative to what it loses against every layer's best score
LIMIT_S = 120  # the best choice found until then is taken; programs of a thousand layers take a second


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
    gains = {layer: {name: value - best[layer] for name, value in own.items()} for layer, own in scores.items()}
    unit = math.fsum(max(own.values()) for own in costs.values()) or 1.0
    shares = {layer: {name: cost / unit for name, cost in own.items()} for layer, own in costs.items()}
    choice = Program(shares, low / unit, high / unit).maximize(gains)
    if choice is None:
        raise Infeasible(unit * Program(shares).nearest(low / unit, high / unit))
    return choice


def total(numbers, choice):
    """The sum of a choice's scores or costs."""
    return math.fsum(numbers[layer][candidate] for layer, candidate in choice.items())


class Program:
    """Booleans c[layer, candidate], one true of each layer, their summed cost within bounds."""

    def __init__(self, costs, low=0.0, high=math.inf):
        from ortools.linear_solver import pywraplp

        self.solver = pywraplp.Solver.CreateSolver("SCIP")
        self.solver.SetTimeLimit(1000 * LIMIT_S)
        self.parameters = pywraplp.MPSolverParameters()
        self.parameters.SetDoubleParam(self.parameters.RELATIVE_MIP_GAP, GAP)
        self.chosen = {
            (layer, name): self.solver.BoolVar(f"{layer} {name}") for layer, own in costs.items() for name in own
        }
        self.costs = {key: costs[key[0]][key[1]] for key in self.chosen}
        for layer, own in costs.items():
            one = self.solver.Constraint(1, 1)
            for name in own:
                one.SetCoefficient(self.chosen[layer, name], 1)
        self._bound(low, high)

    def _bound(self, low, high, extra=None):
        bound = self.solver.Constraint(low, min(high, self.solver.infinity()))
        for key, variable in self.chosen.items():
            bound.SetCoefficient(variable, self.costs[key])
        if extra is not None:
            bound.SetCoefficient(*extra)

    def _solve(self):
        """Whether there is a solution; only a proof counts as a no."""
        status = self.solver.Solve(self.parameters)
        if status in (self.solver.OPTIMAL, self.solver.FEASIBLE):
            return True
        if status == self.solver.INFEASIBLE:
            return False
        timed_out = status == self.solver.NOT_SOLVED
        raise Unsolved(f"no choice was found within {LIMIT_S} s" if timed_out else f"SCIP ended with status {status}")

    def maximize(self, scores):
        """{layer: candidate} of the largest summed score, or None where no choice is within the bounds."""
        objective = self.solver.Objective()
        for (layer, name), variable in self.chosen.items():
            objective.SetCoefficient(variable, scores[layer][name])
        objective.SetMaximization()
        if not self._solve():
            return None
        return {layer: name for (layer, name), variable in self.chosen.items() if variable.solution_value() > 0.5}

    def nearest(self, low, high):
        """The summed cost that lies nearest to [low, high]."""
        gap = self.solver.NumVar(0, self.solver.infinity(), "gap")
        self._bound(low, self.solver.infinity(), (gap, 1))
        self._bound(-self.solver.infinity(), high, (gap, -1))
        self.solver.Objective().SetCoefficient(gap, 1)
        self.solver.Objective().SetMinimization()
        self._solve()
        return math.fsum(self.costs[key] for key, variable in self.chosen.items() if variable.solution_value() > 0.5)
