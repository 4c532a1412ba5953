"""Running text that ships with Python: topics of the language reference, and docstrings of the standard library.

The text is written to resources/texts/ once and read from there, because other versions of Python have other texts.
"""

import ast
import os
import zlib
from pathlib import Path

PACKAGES = "asyncio collections concurrent email html http importlib json logging unittest urllib xml".split()
SHORTEST = 200  # characters; shorter docstrings are left out
TEST_SHARE = 12  # one document in 12 is a test document


def documents():
    """{name: text} of the running Python: topics as `topic/NAME`, docstrings as `MODULE.py/NAME`."""
    from pydoc_data.topics import topics

    texts = {f"topic/{name}": text for name, text in topics.items()}
    library = Path(os.__file__).parent
    files = sorted([*library.glob("[a-z]*.py"), *(f for name in PACKAGES for f in (library / name).rglob("*.py"))])
    for path in files:
        name = path.relative_to(library).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node) or ""
                if len(text) >= SHORTEST:
                    texts[f"{name}/{getattr(node, 'name', '')}"] = text
    return texts


def split(documents):
    """(training text, test text): whole documents, assigned by a hash of their names.

    A paragraph that occurs in several documents is kept once, and removed from the test text if it is in the training
    text.
    """
    test = [name for name in sorted(documents) if zlib.crc32(name.encode()) % TEST_SHARE == 0]
    seen, parts = set(), []
    for names in ([name for name in sorted(documents) if name not in set(test)], test):
        texts = []
        for name in names:
            paragraphs = [p.rstrip() for p in documents[name].split("\n\n") if p.strip()]
            new = [p for p in dict.fromkeys(paragraphs) if p.strip() not in seen]
            seen.update(p.strip() for p in new)
            texts.append("\n\n".join(new))
        parts.append("\n\n\n".join(filter(None, texts)) + "\n")
    return tuple(parts)
