"""The integer program finds what trying every choice finds, also with ties, and names what is nearest if none fits."""

import itertools
import random

import pytest

from quantwatt.allocate import integer_program
from quantwatt.allocate.integer_program import Infeasible, Unsolved, solve, total


def choices(costs):
    """Every choice of one candidate per layer."""
    for names in itertools.product(*costs.values()):
        yield dict(zip(costs, names, strict=True))


def instance(seed, layers, whole):
    """Scores and costs of some layers with two to four candidates each; whole numbers tie often."""
    draw = random.Random(seed)
    number = (lambda: draw.randint(0, 4)) if whole else (lambda: draw.uniform(0, 4))
    candidates = {f"layer.{i}": [f"w{bits}" for bits in range(2, 4 + draw.randint(0, 2))] for i in range(layers)}
    scores = {layer: {name: number() - 2 for name in names} for layer, names in candidates.items()}
    costs = {layer: {name: float(number()) for name in names} for layer, names in candidates.items()}
    return scores, costs


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_the_best_choice_is_that_of_brute_force(seed, whole):
    scores, costs = instance(seed, layers=6, whole=whole)
    everything = list(choices(costs))
    sums = sorted(total(costs, choice) for choice in everything)
    for low, high in ((0, sums[len(sums) // 3]), (sums[len(sums) // 4], sums[len(sums) // 2]), (0, sums[-1])):
        best = max(total(scores, c) for c in everything if low - 1e-9 <= total(costs, c) <= high + 1e-9)
        found = solve(scores, costs, high, low)
        assert list(found) == list(costs)
        assert low - 1e-4 <= total(costs, found) <= high + 1e-4
        assert total(scores, found) == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_an_infeasible_budget_names_the_nearest(seed):
    _, costs = instance(seed, layers=5, whole=False)
    sums = sorted(total(costs, choice) for choice in choices(costs))
    gap, at = max((after - before, before) for before, after in itertools.pairwise(sums))
    for low, high in ((0, sums[0] - 0.1), (sums[-1] + 0.1, sums[-1] + 1), (at + gap / 3, at + gap / 2)):
        with pytest.raises(Infeasible) as caught:
            solve(costs, costs, high, low)
        assert caught.value.nearest == pytest.approx(min(sums, key=lambda s: max(low - s, s - high)), abs=1e-4)
        assert f"{caught.value.nearest:.6g}" in str(caught.value)


def test_equal_programs_have_equal_choices():
    scores, costs = instance(3, layers=40, whole=True)
    budget = 0.4 * sum(max(own.values()) for own in costs.values())
    first = solve(scores, costs, budget)
    assert all(solve(scores, costs, budget) == first for _ in range(3))


@pytest.mark.parametrize(
    ("status", "words"), [("NOT_SOLVED", f"within {integer_program.LIMIT_S} s"), ("ABNORMAL", "SCIP ended with status")]
)
def test_only_a_proof_makes_a_program_infeasible(monkeypatch, status, words):
    from ortools.linear_solver import pywraplp

    scores, costs = instance(5, layers=3, whole=False)
    monkeypatch.setattr(pywraplp.Solver, "Solve", lambda self, parameters: getattr(self, status))
    with pytest.raises(Unsolved, match=words):
        solve(scores, costs, 100.0)


def test_units_do_not_matter():
    scores, costs = instance(5, layers=6, whole=False)
    small = {layer: {name: 1e-9 * cost for name, cost in own.items()} for layer, own in costs.items()}
    large = {layer: {name: 1e12 * cost for name, cost in own.items()} for layer, own in costs.items()}
    assert solve(scores, costs, 8.0) == solve(scores, small, 8e-9) == solve(scores, large, 8e12)


def test_layers_without_any_cost():
    scores = {"a": {"x": 1.0, "y": 2.0}}
    assert solve(scores, {"a": {"x": 0.0, "y": 0.0}}, 0.0) == {"a": "y"}
    assert integer_program.total(scores, {"a": "y"}) == 2.0
