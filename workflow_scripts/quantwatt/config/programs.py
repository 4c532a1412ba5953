"""What a mixed method's entry says of its integer programs: what they choose from, and what they decide on."""

SIDES = ("weights", "activations")
OF_DEVICE = ("milliseconds", "joules")  # budgets of what another device may take less of


def names_of(program):
    """Names of the candidates that a program chooses from, each once."""
    named = program["candidates"]
    every = [name for group in named.values() for name in group] if isinstance(named, dict) else named
    return list(dict.fromkeys(every))


def sides(program, candidates):
    """What a program decides on: "weights", "activations" or both, in this order."""
    return [side for side in SIDES if any(side in candidates[name] for name in names_of(program))]


def is_swept(program):
    """Whether a program may have several choices, of which images decide."""
    return "bits" in program["budget"]


def has_several_choices(method):
    """Whether images decide between choices of a mixed method's programs."""
    return any(is_swept(program) for program in method["allocation"]["programs"])


def needs_costs(method):
    """Whether a mixed method's programs have budgets of what layers take on this device."""
    return any(unit in OF_DEVICE for program in method["allocation"]["programs"] for unit in program["budget"])
