"""The integer program equals exhaustive search, also with ties, and names the nearest budget if none is feasible."""

import itertools
import random

import numpy as np
import pytest
from scipy.optimize import OptimizeResult

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
    ("status", "words"), [(1, f"within {integer_program.LIMIT_S} s"), (4, "HiGHS: a solver's own words")]
)
def test_only_a_proof_makes_a_program_infeasible(monkeypatch, status, words):
    scores, costs = instance(5, layers=3, whole=False)
    ended = OptimizeResult(x=None, status=status, message="a solver's own words")
    monkeypatch.setattr(integer_program, "milp", lambda *_, **__: ended)
    with pytest.raises(Unsolved, match=words):
        solve(scores, costs, 100.0)


def test_the_best_choice_until_the_time_limit_is_taken(monkeypatch):
    scores, costs = instance(5, layers=3, whole=False)
    best, milp = solve(scores, costs, 8.0), integer_program.milp

    def ended(*arguments, **options):
        return milp(*arguments, **options) | {"status": 1}

    monkeypatch.setattr(integer_program, "milp", lambda *a, **k: OptimizeResult(ended(*a, **k)))
    assert solve(scores, costs, 8.0) == best


@pytest.mark.parametrize("layers", [100, 794])
def test_the_best_choice_of_many_layers_is_that_of_dynamic_programming(layers):
    """Whole costs, so that the best sum of scores at every summed cost can be told layer by layer."""
    draw = random.Random(layers)
    costs = {f"layer.{i}": {f"w{bits}": float(bits * draw.choice([1, 4])) for bits in (2, 4, 8)} for i in range(layers)}
    scores = {name: {key: -draw.uniform(0.5, 2) * 4.0 ** -int(key[1:]) for key in own} for name, own in costs.items()}
    high = int(0.5 * sum(max(own.values()) for own in costs.values()))
    best = np.full(high + 1, -np.inf)  # of the layers so far, at each summed cost
    best[0] = 0
    for name, own in costs.items():
        shifted = [np.pad(best, (int(cost), 0), constant_values=-np.inf)[: high + 1] for cost in own.values()]
        best = np.max([s + scores[name][key] for s, key in zip(shifted, own, strict=True)], axis=0)
    found = solve(scores, costs, high)
    assert total(costs, found) <= high * (1 + 1e-9)
    losses = [sum(max(own.values()) for own in scores.values()) - value for value in (best.max(), total(scores, found))]
    assert losses[1] == pytest.approx(losses[0], rel=2 * integer_program.GAP)


@pytest.mark.parametrize("factor", [1e-12, 1e9])
def test_nor_does_the_size_of_scores(factor):
    """HiGHS calls two choices equal whose objectives differ by less than 1e-6."""
    scores, costs = instance(5, layers=6, whole=False)
    resized = {layer: {name: factor * score for name, score in own.items()} for layer, own in scores.items()}
    assert solve(resized, costs, 8.0) == solve(scores, costs, 8.0)


def test_units_do_not_matter():
    scores, costs = instance(5, layers=6, whole=False)
    small = {layer: {name: 1e-9 * cost for name, cost in own.items()} for layer, own in costs.items()}
    large = {layer: {name: 1e12 * cost for name, cost in own.items()} for layer, own in costs.items()}
    assert solve(scores, costs, 8.0) == solve(scores, small, 8e-9) == solve(scores, large, 8e12)


def test_layers_without_any_cost():
    scores = {"a": {"x": 1.0, "y": 2.0}}
    assert solve(scores, {"a": {"x": 0.0, "y": 0.0}}, 0.0) == {"a": "y"}
    assert integer_program.total(scores, {"a": "y"}) == 2.0
