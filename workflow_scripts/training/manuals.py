"""Running text that ships with Python: the language reference's topics and the library's docstrings.

It is written to resources/texts/ once, and read from there: another Python has other texts.
"""

import ast
import os
import zlib
from pathlib import Path

PACKAGES = "asyncio collections concurrent email html http importlib json logging unittest urllib xml".split()
SHORTEST = 200  # characters of a docstring worth reading
TEST_SHARE = 12  # one document in so many


def documents():
    """{name: text} of the running Python: topics as `topic/NAME`, docstrings as `MODULE.py/NAME`."""
    from pydoc_data.topics import topics

    found = {f"topic/{name}": text for name, text in topics.items()}
    library = Path(os.__file__).parent
    files = sorted([*library.glob("[a-z]*.py"), *(f for name in PACKAGES for f in (library / name).rglob("*.py"))])
    for path in files:
        name = path.relative_to(library).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node) or ""
                if len(text) >= SHORTEST:
                    found[f"{name}/{getattr(node, 'name', '')}"] = text
    return found


def split(documents):
    """(training text, test text): whole documents, chosen by their names.

    A paragraph that stands in several documents is kept once, and out of the test where training has it.
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
