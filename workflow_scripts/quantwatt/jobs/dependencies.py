"""The local modules that a script imports, and their hash, which a rule takes as a parameter.

Snakemake does not see imported modules: without this, editing one would rerun nothing.
"""

import ast
import functools
import hashlib
from pathlib import Path

from quantwatt import registry

SCRIPTS = Path(__file__).resolve().parents[2]
NOT_RESULTS = ("x-aliases", "x-shown")  # keys of schemas: hints in messages; words of tables, figures and report


@functools.cache
def digest(script, plugins=()):
    """A hash of all that a result depends on: equal after a touch, and after a change taken back.

    That is the contents of all files that `closure` finds, and what the plugins' schemas declare of them.

    Args:
        script, plugins: as of `closure`; plugins as a tuple.
    Returns:
        hex string.
    """
    names = [f"{path.relative_to(SCRIPTS)} {_sha256(path)}" for path in closure(script, plugins)]
    names += [f"{plugin} {_declared(plugin)}" for plugin in plugins]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _declared(plugin):
    """What a plugin's schema says of its module: its keys x-..., but for those that results do not depend on."""
    if not (registry.SCHEMAS / f"{plugin}.schema.json").exists():
        return {}
    said = registry.schema(plugin)
    return {key: said[key] for key in sorted(said) if key.startswith("x-") and key not in NOT_RESULTS}


@functools.cache
def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def closure(script, plugins=()):
    """The script, every module of this package that it imports, directly or not, the plugins it is given, and the C
    source that stands beside one of these under its name.

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
        if path not in found:
            found.add(path)
            pending += _local_imports(path)
    return sorted(found | {source for path in found if (source := path.with_suffix(".c")).exists()})


def _plugin(plugin):
    kind, name = plugin.split("/")
    return SCRIPTS.joinpath(*registry.module_name(kind, name).split(".")).with_suffix(".py")


@functools.cache
def _local_imports(path):
    """Files of the package that one file imports, with the __init__.py of every package on the way."""
    files = set()
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            names = []
        for name in names:
            if name.split(".")[0] == "quantwatt":
                files |= _files_of(name)
    if path.parent != SCRIPTS:  # a module's own packages run first
        files |= _files_of(".".join(path.relative_to(SCRIPTS).with_suffix("").parts))
    return frozenset(files - {path})


def _files_of(name):
    files, folder = set(), SCRIPTS
    for part in name.split("."):
        if (folder / f"{part}.py").exists():
            files.add(folder / f"{part}.py")
        folder = folder / part
        if (folder / "__init__.py").exists():
            files.add(folder / "__init__.py")
    return files
