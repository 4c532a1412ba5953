"""GenEval's questions (arXiv 2310.11513) of scenes of shapes: what a prompt asks for, and what is seen.

Count, object, colour and position are asked of both as GenEval asks them of a detector; a scene's size and background
are asked only by "right", which is everything.
"""

from quantwatt.data.scenes import Scene

QUESTIONS = ("right", "count", "object", "colour", "position")
NOT_ASKED = -1  # the answer to a question of a prompt that does not ask for it: 1 is right, 0 is wrong


def answers(asked: Scene, seen: Scene) -> dict[str, int]:
    """{question: 1, 0 or NOT_ASKED} of one image.

    object: the kinds of all objects. colour: each kind has its colour. position: each kind and colour stands where it
    is asked for; of one object it is not asked.
    """
    asked, seen = asked.canonical(), seen.canonical()
    here, there = ([(shape.kind, shape.colour) for shape in scene.objects] for scene in (asked, seen))
    return {
        "right": int(asked == seen),
        "count": int(len(here) == len(there)),
        "object": int(sorted(kind for kind, _ in here) == sorted(kind for kind, _ in there)),
        "colour": int(sorted(here) == sorted(there)),
        "position": NOT_ASKED if asked.relation is None else int(here == there and asked.relation == seen.relation),
    }
