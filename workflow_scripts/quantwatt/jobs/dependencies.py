"""The code that a job's result depends on, and its hash, which a rule takes as a parameter.

Snakemake does not see imported modules: without this, editing one would rerun nothing.

The hash is of what the code says and not of its bytes, so that a comment, a docstring or another layout reruns nothing.
Docstrings are shown by --help alone. Everything else counts: a sentence of an exception, too, for it may be recorded as
the reason of a result.

Two places are left out, with what only they import. This room, jobs/: how a job is started, shown and ended changes no
result. And quantwatt/__init__.py, the names for notebooks and the version, which is every job's, so that a release
reruns nothing. What others may use of both is held by tests/unit/test_replay.py.
"""

import ast
import functools
import hashlib
import re
from pathlib import Path

from quantwatt import registry

SCRIPTS = Path(__file__).resolve().parents[2]
UNHASHED = ("quantwatt/jobs", "quantwatt/__init__.py")
NOT_RESULTS = ("x-aliases", "x-shown")  # keys of schemas: hints in messages; words of tables, figures and report

# Of C: blanks and comments, and literals, in which what looks like a comment is none.
BLANK_OR_LITERAL = re.compile(
    r"""(?:[ \t]|//(?:\\\n|[^\n])*|/\*.*?\*/)+|("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')""", re.DOTALL
)


@functools.cache
def digest(script, plugins=(), read=""):
    """A hash of what all files say that `closure` finds, and of what the plugins' schemas declare of them.

    It is equal after a touch, and after a change taken back.

    Args:
        script, plugins: as of `closure`; plugins as a tuple.
        read: what else a script reads of the project, as text.
    Returns:
        hex string, the same under every version of Python.
    """
    names = [f"{path.relative_to(SCRIPTS)} {_read(path)[0]}" for path in closure(script, plugins)]
    names += [f"{plugin} {_declared(plugin)}" for plugin in plugins] + [read]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _declared(plugin):
    """What a plugin's schema says of its module: its keys x-..., but for those that results do not depend on."""
    if not (registry.SCHEMAS / f"{plugin}.schema.json").exists():
        return {}
    said = registry.schema(plugin)
    return {key: said[key] for key in sorted(said) if key.startswith("x-") and key not in NOT_RESULTS}


def closure(script, plugins=()):
    """The files on which a script's result depends.

    They are the script, every module of this package that it imports, directly or not, the plugins it is given, and the
    C source that stands beside one of these under its name; all but UNHASHED.

    Imports are read from the source, wherever they stand; modules that a registry loads by name cannot be seen there
    and are passed as plugins.

    Args:
        script: file name in workflow_scripts/.
        plugins: plugins such as "solvers/gptq", a kind and a name.
    Returns:
        sorted list of paths.
    """
    pending = [SCRIPTS / script, *(_plugin(plugin) for plugin in plugins)]
    found = set()
    while pending:
        path = pending.pop()
        if path not in found and is_hashed(path):
            found.add(path)
            pending += _read(path)[1]
    return sorted(found | {source for path in found if (source := path.with_suffix(".c")).exists()})


def is_hashed(path):
    """Whether a Python file is in none of the places that change no result."""
    return {path, path.parent}.isdisjoint(SCRIPTS / name for name in UNHASHED)


def _plugin(plugin):
    kind, name = plugin.split("/")
    return SCRIPTS.joinpath(*registry.module_name(kind, name).split(".")).with_suffix(".py")


@functools.cache
def _read(path):
    """(hash of what a file says, files of the package that it imports, its own packages among them)."""
    if path.suffix == ".c":
        return _hash(c_without_comments(path.read_text(encoding="utf-8"))), frozenset()
    said, imported = _parsed(path.read_bytes(), str(path))
    files = {file for name in imported for file in _files_of(name)}
    if path.parent != SCRIPTS:  # a module's own packages run first
        files |= _files_of(".".join(path.relative_to(SCRIPTS).with_suffix("").parts))
    return said, frozenset(files - {path})


@functools.cache
def _parsed(source, where):
    """(hash of what a Python source says, names that it imports of this package, of modules or in them).

    What is imported for a type checker alone is never run.
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


def canonical(tree):
    """One text of each syntax tree, without comments, layout and docstrings, under every version of Python.

    `ast.dump` and `ast.unparse` write the same tree in different ways from version to version, and new fields of nodes
    come empty: what is empty is left out here, and so are the empty pieces that Python 3.12 puts into f-strings. `ctx`,
    whether a name is read or assigned, is told by its place.

    Returns:
        (text, the tree's import statements): all in one pass, which takes a third of parsing.
    """
    imports = []

    def written(node):
        if isinstance(node, list):
            return f"[{','.join([written(item) for item in node if not _is_docstring(item)])}]"
        if not isinstance(node, ast.AST):
            return ascii(node)  # which characters repr() shows as they are differs between versions of Unicode
        kind, fields = type(node), []
        if kind is ast.Import or kind is ast.ImportFrom:
            imports.append(node)
        for name in kind._fields:
            value = getattr(node, name, None)
            if kind is ast.JoinedStr:
                value = [part for part in value if getattr(part, "value", None) != ""]
            if value is not None and value != [] and name != "ctx":
                fields.append(f"{name}={written(value)}")
        return f"{kind.__name__}({','.join(fields)})"

    return written(tree), imports


def _is_docstring(node):
    """Whether a node is a statement of nothing but a string."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def c_without_comments(source):
    """A C source without comments, blank lines and more than one blank in a row."""
    code = BLANK_OR_LITERAL.sub(lambda found: found[1] or " ", source)
    return "\n".join(line for line in map(str.strip, code.split("\n")) if line)


def _hash(text):
    return hashlib.sha256(text.encode()).hexdigest()


def _files_of(name):
    files, folder = set(), SCRIPTS
    for part in name.split("."):
        if (folder / f"{part}.py").exists():
            files.add(folder / f"{part}.py")
        folder = folder / part
        if (folder / "__init__.py").exists():
            files.add(folder / "__init__.py")
    return files
