"""Determine the code that a job's result depends on, and its hash, which each rule has as a parameter.

Snakemake does not see imported modules: without this hash, editing a module would rerun nothing.

The hash is computed from the syntax tree and not from the bytes, so that changed comments, docstrings and layout rerun
nothing; docstrings are only shown by --help. Everything else counts, also the message of an exception: it may be
recorded as the reason of a result.

Two places are left out, with the modules that only they import. One is this package, jobs/: how a job is started, shown
and ended does not change its result. The other is quantwatt/__init__.py, with the names for notebooks and the version:
every job imports it, and a release must rerun nothing. tests/unit/test_replay.py checks what other modules may use of
both.
"""

import ast
import functools
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quantwatt import registry
from quantwatt.jobs.parsed_sources import Parsed, ParsedSources

SCRIPTS = Path(__file__).resolve().parents[2]
SOURCES = ".snakemake/parsed-sources.json"  # beside SCRIPTS
VERSION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()  # of what is read from a source
UNHASHED = ("quantwatt/jobs", "quantwatt/__init__.py")
NOT_RESULTS = ("x-aliases", "x-shown")  # keys of schemas: hints in messages; words in tables, figures and report

# In C: blanks and comments; or literals, which are matched because they may contain comment marks.
BLANK_OR_LITERAL = re.compile(
    r"""(?:[ \t]|//(?:\\\n|[^\n])*|/\*.*?\*/)+|("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')""", re.DOTALL
)


@functools.cache
def digest(script: str, plugins: tuple[str, ...] = (), read: str = "") -> str:
    """A hash of the code of all files that `closure` returns, and of the plugins' declarations in their schemas.

    It is unchanged after a touch, and after a change is reverted.

    Args:
        script, plugins: see `closure`; plugins as a tuple.
        read: further contents of the project that the script reads, as text.
    Returns:
        hex string, the same under every version of Python.
    """
    names = [f"{path.relative_to(SCRIPTS)} {_read(path)[0]}" for path in closure(script, plugins)]
    names += [f"{plugin} {_declared(plugin)}" for plugin in plugins] + [read]
    _sources(SCRIPTS).save()
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _declared(plugin):
    """The declarations about a plugin's module in its schema: the keys x-..., except NOT_RESULTS."""
    if not (registry.SCHEMAS / f"{plugin}.schema.json").exists():
        return {}
    schema = registry.schema(plugin)
    return {key: schema[key] for key in sorted(schema) if key.startswith("x-") and key not in NOT_RESULTS}


def closure(script: str, plugins: Iterable[str] = ()) -> list[Path]:
    """The files on which a script's result depends.

    These are the script, the modules of quantwatt that it imports directly or indirectly, the given plugins, and the C
    sources and headers of their packages; all except UNHASHED.

    Imports are collected from the source, at module level and inside functions. Modules that the registry loads by name
    do not appear there and are passed as plugins.

    Args:
        script: file name in workflow_scripts/.
        plugins: plugins such as "solvers/gptq", a kind and a name.
    Returns:
        sorted list of paths.
    """
    pending = [SCRIPTS / script, *(_plugin(plugin) for plugin in plugins)]
    files = set()
    while pending:
        path = pending.pop()
        if path not in files and is_hashed(path):
            files.add(path)
            pending += _read(path)[1]
    packages = [path.parent for path in files if path.name == "__init__.py"]
    return sorted(files | {source for package in packages for source in package.glob("*.[ch]")})


def is_hashed(path: Path) -> bool:
    """Whether a Python file counts for the hash: it is not in UNHASHED."""
    return {path, path.parent}.isdisjoint(SCRIPTS / name for name in UNHASHED)


def _plugin(plugin):
    kind, name = plugin.split("/")
    return SCRIPTS.joinpath(*registry.module_name(kind, name).split(".")).with_suffix(".py")


@functools.cache
def _read(path):
    """(hash of a file's code, files of quantwatt that it imports, including the __init__.py of its packages)."""
    if path.suffix in (".c", ".h"):
        return _hash(c_without_comments(path.read_text(encoding="utf-8"))), frozenset()
    code_hash, imported = _parsed(path.read_bytes(), str(path))
    files = {file for name in imported for file in _files_of(name)}
    if path.parent != SCRIPTS:  # importing a module runs the __init__.py of its packages first
        files |= _files_of(".".join(path.relative_to(SCRIPTS).with_suffix("").parts))
    return code_hash, frozenset(files - {path})


@functools.cache
def _sources(scripts):
    return ParsedSources(scripts.parent / SOURCES, VERSION)


@functools.cache
def _parsed(source, where):
    """What `parse` returns, from the file of those that were parsed before where it is there."""
    sources = _sources(SCRIPTS)
    key = sources.key(source)
    return sources.get(key) or sources.put(key, parse(source, where))


def parse(source: bytes, where: str) -> Parsed:
    """(hash of a Python source's code, names of quantwatt that it imports: modules and names in modules).

    Imports under TYPE_CHECKING are ignored, because they never run.
    """
    tree = ast.parse(source, filename=where)
    of_types = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    unrun = {node for block in of_types for node in block.body}
    text, imports = canonical(tree)
    names = []
    for node in imports:
        if node in unrun:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return _hash(text), [name for name in names if name.split(".")[0] == "quantwatt"]


def canonical(tree: ast.AST) -> tuple[str, list[ast.Import | ast.ImportFrom]]:
    """Serialize a syntax tree without comments, layout and docstrings, equally under every version of Python.

    The output of `ast.dump` and `ast.unparse` differs between versions of Python. New fields of nodes are empty in old
    code: empty fields are left out here, and so are the empty parts that Python 3.12 adds to f-strings. `ctx`, whether
    a name is read or assigned, follows from the position.

    Returns:
        (text, the tree's import statements): both in one pass, which takes a third of the time of parsing.
    """
    imports = []

    def written(node):
        if isinstance(node, list):
            return f"[{','.join([written(item) for item in node if not _is_docstring(item)])}]"
        if not isinstance(node, ast.AST):
            return ascii(node)  # repr() escapes other characters in other versions of Unicode
        kind, fields = type(node), []
        if kind is ast.Import or kind is ast.ImportFrom:
            imports.append(node)
        for name in kind._fields:
            value: Any = getattr(node, name, None)
            if kind is ast.JoinedStr:
                value = [part for part in value if getattr(part, "value", None) != ""]
            if value is not None and value != [] and name != "ctx":
                fields.append(f"{name}={written(value)}")
        return f"{kind.__name__}({','.join(fields)})"

    return written(tree), imports


def _is_docstring(node):
    """Whether a node is a statement that consists of only a string."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def c_without_comments(source: str) -> str:
    """A C source without comments, blank lines and repeated blanks."""
    code = BLANK_OR_LITERAL.sub(lambda match: match[1] or " ", source)
    return "\n".join(line for line in map(str.strip, code.split("\n")) if line)


def _hash(text):
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _files_of(name):
    """The files that an import of a dotted name runs: of its packages, and of it where it is a module."""
    above, _, last = name.rpartition(".")
    folder = SCRIPTS.joinpath(*above.split(".")) if above else SCRIPTS
    found = {path for path in (folder / f"{last}.py", folder / last / "__init__.py") if path.exists()}
    return frozenset(found | _files_of(above)) if above else frozenset(found)
