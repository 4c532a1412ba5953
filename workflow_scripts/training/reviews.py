"""Short reviews with a sentiment, made by a grammar: the data of the embedded DistilBERT.

What is said of something is a pair of a thing and an opinion. A fifth of all pairs is held out: training sentences have
none of them, test sentences nothing else. Opinions are turned round by negation, and of two that disagree a
conjunction says which counts, so that counting good and bad words is not enough. Test sentences never just say that
something is liked: that is no pair, and training sentences say it too.
"""

import itertools
import zlib

import numpy as np

NEGATIVE, POSITIVE = 0, 1
THINGS = (
    "film plot acting music dialogue ending cast script humour camera hotel room breakfast service view "
    "garden concert singer stage novel chapter hero villain game meal soup waiter dessert"
).split()
OPINIONS = {
    POSITIVE: (
        "good great wonderful charming clever moving fresh funny superb delightful lovely brilliant warm elegant "
        "gripping honest pleasant rich smart graceful"
    ).split(),
    NEGATIVE: (
        "bad awful terrible dull boring clumsy stale lifeless weak tedious ugly shallow cold messy predictable "
        "careless annoying flat silly bland"
    ).split(),
}
LIKED = {
    POSITIVE: ("i loved the {}", "i enjoyed the {}", "the {} won me over", "the {} made my day"),
    NEGATIVE: ("i hated the {}", "i regret the {}", "the {} wore me out", "the {} ruined my day"),
}
SAID = ("the {} was {}", "the {} seemed {}", "the {} felt {}", "i found the {} {}", "they called the {} {}")
DENIED = (
    *("the {} was not {}", "the {} was never {}", "the {} was hardly {}", "the {} was anything but {}"),
    *("i did not find the {} {}", "nobody called the {} {}", "the {} was far from {}"),
)
DOUBTED = ("it is not true that {}", "nobody believes that {}", "few would agree that {}")
AFFIRMED = ("it is true that {}", "everybody believes that {}", "most would agree that {}")
DEGREES = ("very", "really", "rather", "quite", "truly", "so")
CIRCUMSTANCES = (
    *("in the evening", "on the first day", "with my sister", "for the price", "after a long week", "as ever"),
    *("in the second half", "with a large crowd", "by a young team", "in the rain", "this time", "all in all"),
)
# {0} is what is said first, {1} second; the number is the one that counts.
CONTRASTS = (
    ("{0} but {1}", 1),
    ("although {0} , {1}", 1),
    ("{0} , yet {1}", 1),
    ("while {0} , {1}", 1),
    ("{0} even though {1}", 0),
    ("{0} although {1}", 0),
    ("despite what they say , {0} , and {1} only for others", 0),
)
HELD_OUT = 5  # one pair in so many


def is_held_out(thing, opinion):
    """Whether a pair is kept for the test; the same on every machine."""
    return zlib.crc32(f"{thing} {opinion}".encode()) % HELD_OUT == 0


def sentences(n, seed, held):
    """Reviews and their labels.

    Args:
        held: only held-out pairs of thing and opinion; otherwise none of them.
    Returns:
        (n different strings, n labels).
    """
    rng, found = np.random.default_rng(seed), {}
    while len(found) < n:
        label = int(rng.integers(2))
        found.setdefault(f"{_review(rng, label, held)} .", label)
    return list(found), list(found.values())


def words():
    """Every word that a review can hold, sorted."""
    templates = [*sum(LIKED.values(), ()), *SAID, *DENIED, *DOUBTED, *AFFIRMED, *CIRCUMSTANCES, "and ."]
    templates += [text for text, _ in CONTRASTS]
    known = {*THINGS, *itertools.chain(*OPINIONS.values()), *DEGREES}
    return sorted(known | {word for text in templates for word in text.split() if "{" not in word})


def _review(rng, label, held):
    kind = rng.random()
    if kind < 0.45:
        return _clause(rng, label, held)
    if kind < 0.65:
        return f"{_clause(rng, label, held)} and {_clause(rng, label, held)}"
    template, counting = _pick(rng, CONTRASTS)
    labels = [1 - label, label] if counting == 1 else [label, 1 - label]
    return template.format(*(_clause(rng, part, held) for part in labels))


def _clause(rng, label, held):
    kind = rng.random()
    if kind < 0.1:
        return _pick(rng, DOUBTED).format(_plain_clause(rng, 1 - label, held))
    clause = _plain_clause(rng, label, held)
    return _pick(rng, AFFIRMED).format(clause) if kind < 0.2 else clause


def _plain_clause(rng, label, held):
    denied = rng.random() < 0.3
    shown = 1 - label if denied else label
    thing, opinion = _pair(rng, shown, held)
    if rng.random() < 0.15 and not denied and not held:
        text = _pick(rng, LIKED[label]).format(thing)
    else:
        degree = f"{_pick(rng, DEGREES)} " if rng.random() < 0.3 else ""
        text = _pick(rng, DENIED if denied else SAID).format(thing, degree + opinion)
    return f"{text} {_pick(rng, CIRCUMSTANCES)}" if rng.random() < 0.3 else text


def _pair(rng, shown, held):
    while True:
        thing, opinion = _pick(rng, THINGS), _pick(rng, OPINIONS[shown])
        if is_held_out(thing, opinion) == held:
            return thing, opinion


def _pick(rng, options):
    return options[int(rng.integers(len(options)))]
