"""The grammar of reviews and the manuals: training data of the embedded text models, and what is held out."""

import itertools

from training import manuals, reviews


def pairs(text):
    """Pairs of thing and opinion, as they stand next to each other."""
    words, found, thing = text.split(), [], None
    opinions = {*reviews.OPINIONS[reviews.POSITIVE], *reviews.OPINIONS[reviews.NEGATIVE]}
    for word in words:
        if word in reviews.THINGS:
            thing = word
        elif word in opinions:
            found.append((thing, word))
    return found


def test_training_and_test_share_no_pair():
    train, test = (reviews.sentences(3000, 1, held)[0] for held in (False, True))
    assert not [text for text in test if not pairs(text)]  # a sentence without a pair could stand in both
    assert not set(train) & set(test)
    train, test = ({pair for text in texts for pair in pairs(text)} for texts in (train, test))
    assert not train & test
    assert all(reviews.is_held_out(*pair) for pair in test)
    everything = [(t, o) for t in reviews.THINGS for o in itertools.chain(*reviews.OPINIONS.values())]
    assert 0.15 < sum(reviews.is_held_out(*pair) for pair in everything) / len(everything) < 0.25


def test_sentences_are_a_function_of_their_seed_and_differ():
    texts, labels = reviews.sentences(500, 3, held=False)
    assert reviews.sentences(500, 3, held=False) == (texts, labels)
    assert len(set(texts)) == 500 and set(labels) == {0, 1}
    assert reviews.sentences(500, 4, held=False)[0] != texts


def test_every_word_is_known():
    known = set(reviews.words())
    assert {word for text in reviews.sentences(3000, 5, held=False)[0] for word in text.split()} <= known


FLIPS = ("not", "never", "hardly", "nobody", "anything", "did", "far", "few")


def read(text):
    """A reader written against the templates: the clause that counts, turned round once per negation."""
    text = text.removesuffix(" .")
    if text.startswith("despite what they say , "):
        text = text.removeprefix("despite what they say , ").rsplit(" , and ", 1)[0]
    elif text.startswith(("although ", "while ")):
        text = text.split(" , ", 1)[1]
    elif " even though " in text or " although " in text:
        text = text.split(" even though ")[0].split(" although ")[0]
    elif ", yet " in text or " but " in text:
        text = text.replace(" anything but ", " far ").split(", yet ")[-1].split(" but ")[-1]
    text = text.split(" and ")[0].replace("did not", "did").replace("made my day", "loved").replace("won me", "loved")
    words = text.split()
    good = any(word in reviews.OPINIONS[reviews.POSITIVE] or word in ("loved", "enjoyed") for word in words)
    return int(good) ^ sum(word in FLIPS for word in words) % 2


def test_labels_are_what_the_sentences_say():
    texts, labels = reviews.sentences(3000, 6, held=False)
    wrong = [(text, label) for text, label in zip(texts, labels, strict=True) if read(text) != label]
    assert not wrong, wrong[:5]


def test_manuals_are_split_by_documents_and_share_no_paragraph():
    texts = {f"topic/{i}": f"Title {i}\n\nBody of {i}.\n\nThe same everywhere." for i in range(100)}
    train, test = manuals.split(texts)
    assert "The same everywhere." in train and "The same everywhere." not in test
    titles = [{line for line in part.splitlines() if line.startswith("Title")} for part in (train, test)]
    assert len(titles[0] | titles[1]) == 100 and not titles[0] & titles[1] and 3 < len(titles[1]) < 20
    assert train.count("The same everywhere.") == 1


def test_manuals_hold_topics_and_docstrings():
    documents = manuals.documents()
    for name in ("topic/if", "argparse.py/ArgumentParser"):
        assert len(documents[name]) >= manuals.SHORTEST
