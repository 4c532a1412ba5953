"""Edits of the code rerun exactly the jobs whose results they can change."""

import ast
import functools
import hashlib
import re
import shutil
import sys

import plans
import pytest

from quantwatt import registry
from quantwatt.config import slices
from quantwatt.jobs import dependencies
from quantwatt.jobs.dependencies import SCRIPTS


def job(experiment, rule, **names):
    """The script and the plugins of a rule's job, as the workflow takes them."""
    return slices.script(rule), tuple(plans.plan(experiment).plugins(rule, {"model": "tiny-sd3", **names}))


JOBS = {
    "model": job("embedded", "model"),
    "calibrate": job("embedded", "calibrate"),
    "sensitivity": job("embedded-mixdq", "sensitivity_job", model="tiny-sdxl", sensitivity="measured"),
    "layer costs": job("embedded-mixdq", "layer_costs", model="tiny-sdxl", sensitivity="measured"),
    "candidates": job("embedded-mixdq", "candidates", model="tiny-sdxl", method="mixed-w8a8"),
    "allocate": job("embedded", "allocate", method="gptq-w4a8"),
    "quantize gptq": job("embedded", "quantize", method="gptq-w4a8"),
    "quantize brecq": job("embedded-methods", "quantize", method="brecq-w2"),
    "quantize nf4": job("embedded", "quantize", method="nf4"),
    "generate": job("embedded", "generate", method="gptq-w4a8"),
    "generate nf4": job("embedded", "generate", method="nf4"),
    "measure": job("embedded", "measure", method="gptq-w4a8"),
    "features": job("embedded", "features", extractor="judge"),
    "psnr": job("embedded", "score", metric="psnr"),
    "fid": job("embedded", "score", metric="fid"),
    "tables": job("embedded", "tables"),
    "report": job("embedded", "report"),
}
QUANTIZING = {"quantize gptq", "quantize brecq", "quantize nf4"}
COMPUTING = {"generate", "generate nf4", "measure"}  # in the formats of a checkpoint


def edit(name, change):
    def apply(folder):
        path = folder / name
        before = path.read_text()
        path.write_text(change(before))
        assert path.read_text() != before

    return apply


def in_module(name):
    """Another statement in one module of the package."""
    return edit(f"quantwatt/{name}.py", lambda text: f"{text}CHANGED = True\n")


def replaced(name, old, new):
    return edit(f"quantwatt/{name}", lambda text: text.replace(old, new, 1))


def everywhere(change):
    def apply(folder):
        for path in folder.rglob("*.py"):
            path.write_text(change(path.read_text()))

    return apply


def rewritten(text):
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body[0].value.value = "Another one."
    return ast.unparse(tree)


def plumbing(folder):
    for path in (folder / "quantwatt/jobs").glob("*.py"):
        path.write_text(f"{path.read_text()}CHANGED = True\n")


def a_kernel_more(folder):
    shutil.copy(folder / "quantwatt/inference/kernels/unpacked.py", folder / "quantwatt/inference/kernels/newest.py")
    replaced("inference/kernel_choice.py", '["int8_in_c", ', '["newest", "int8_in_c", ')(folder)


def plugins_more(folder):
    """A metric, a solver, a format and a family that nothing names yet."""
    for name in ("score/metrics/psnr", "quantize/solvers/gptq", "formats/nf4", "models/families/sd3"):
        shutil.copy(folder / f"quantwatt/{name}.py", (folder / f"quantwatt/{name}").with_name("newest.py"))


EDITS = {
    "a touch": (lambda folder: [path.touch() for path in folder.rglob("*.py")], set()),
    "a comment in every module": (everywhere(lambda text: f"# first\n{text}# changed\n"), set()),
    "other docstrings and another layout of every module": (everywhere(rewritten), set()),
    "a comment in C": (
        replaced("inference/native/fused.c", "\n#include", "\n// changed\n\n#include /* here */"),
        set(),
    ),
    "signals, progress, GPU locks, sacct, memory": (plumbing, set()),
    "a release": (replaced("__init__.py", '__version__ = "', '__version__ = "1.'), set()),
    "a kernel added": (a_kernel_more, COMPUTING | {"layer costs"}),
    "plugins added": (plugins_more, set()),
    "a solver": (in_module("quantize/solvers/gptq"), {"quantize gptq"}),
    "what two solvers share": (in_module("quantize/solvers/adaround"), {"quantize brecq"}),
    "the walk": (in_module("quantize/sequential"), QUANTIZING),
    "a format": (in_module("formats/nf4"), {"quantize nf4", "generate nf4"}),
    "a kernel": (in_module("inference/kernels/int8_in_c"), {"generate", "measure", "layer costs"}),
    "C": (
        replaced("inference/native/fused.c", "\n#include", "\n#define CHANGED 1\n#include"),
        COMPUTING | {"layer costs"},
    ),
    "a header in C": (
        replaced("inference/native/lines.h", "#pragma", "#define CHANGED 1\n#pragma"),
        COMPUTING | {"layer costs"},
    ),
    "loading": (in_module("inference/checkpoint"), COMPUTING),
    "saving": (in_module("artifacts/checkpoint_files"), QUANTIZING),
    "which failures are results": (in_module("artifacts/failures"), COMPUTING),
    "how manifests are read and written": (in_module("artifacts/manifest"), set(JOBS)),
    "calibrating": (in_module("quantize/calibration"), QUANTIZING | {"calibrate"}),
    "a sentence that a result may record": (
        replaced("inference/kernel_choice.py", "no kernel computes", "nothing computes"),
        COMPUTING | {"layer costs"},
    ),
    "image files": (in_module("artifacts/images"), COMPUTING | {"features", "psnr", "fid"}),
    "a metric": (in_module("score/metrics/psnr"), {"psnr", "sensitivity"}),
    "an extractor": (in_module("score/extractors/judge"), {"features"}),
    "another meter": (in_module("measuring/meters/nvml"), set()),
    "the protocol": (in_module("measuring/protocol"), {"measure", "layer costs", "report"}),
    "the integer program": (in_module("allocate/integer_program"), {"candidates"}),
    "a page of the report": (in_module("report/page/trust"), {"report"}),
    "another family": (in_module("models/families/gpt2"), set()),
}


def digests(folder):
    """{job: digest} of the scripts in a folder."""

    def forget():
        for cached in (dependencies._read, dependencies._files_of):
            cached.cache_clear()

    forget()  # what other tests of this process have read elsewhere
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dependencies, "SCRIPTS", folder)
        found = {job: dependencies.digest.__wrapped__(*of_job) for job, of_job in JOBS.items()}
    forget()
    return found


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """(a copy of the scripts, what its files hold, and its digests)."""
    folder = tmp_path_factory.mktemp("copied") / "workflow_scripts"
    shutil.copytree(SCRIPTS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder, {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}, digests(folder)


@pytest.fixture
def scripts(copied):
    """Such a copy as it was, whatever the test does to it."""
    folder, contents, _ = copied
    yield folder
    for path in folder.rglob("*.*"):
        if path not in contents:
            path.unlink()
        elif path.read_bytes() != contents[path]:
            path.write_bytes(contents[path])


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_makes_anew_what_it_can_change(scripts, copied, name):
    change, expected = EDITS[name]
    change(scripts)
    (_, _, before), after = copied, digests(scripts)
    assert {job for job in JOBS if before[job] != after[job]} == expected
    assert len(set(before.values())) == len(JOBS)


@functools.cache
def hashed():
    """{module of some job, by its path: its syntax tree}."""
    plugins = {
        f"{kind}/{path.stem}"
        for kind, package in registry.PACKAGES.items()
        for path in (SCRIPTS / "quantwatt" / package.replace(".", "/")).glob("*.py")
        if path.stem != "__init__"
    }
    closures = [dependencies.closure(path.name) for path in SCRIPTS.glob("*.py")]
    closures.append(dependencies.closure("quantize.py", sorted(plugins)))
    files = {path for closure in closures for path in closure if path.suffix == ".py"}
    return {str(path.relative_to(SCRIPTS)): ast.parse(path.read_bytes()) for path in sorted(files)}


def used_of(package, tree):
    """What a module uses of a package's modules, such as "gpus.claim", or "gpus" where it only imports that."""
    used, modules = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith(f"{package}."):
            used |= {f"{node.module.removeprefix(f'{package}.')}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            used |= {n.name.removeprefix(f"{package}.") for n in node.names if n.name.startswith(f"{package}.")}
    attributes = {
        id(node.value): f"{modules[node.value.id]}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    }
    names = {id(node): node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in modules}
    used |= {attributes.get(key, modules[name]) for key, name in names.items()}
    return used | (set(modules.values()) - {modules[name] for name in names.values()})


def test_results_use_nothing_of_jobs_that_could_change_them():
    used = set().union(*(used_of("quantwatt.jobs", tree) for tree in hashed().values()))
    silent = {"command.run", "command.end_with_parent", "command.keep_memory", "gpus.claim", "lean_imports.load",
              "machine.require"}  # fmt: skip
    # Beside these: a loop's values pass through its bar; torchvision's schemas are of operators that nothing calls; an
    # unfinished table goes on only under the same code.
    assert used == silent | {"progress.progress", "torchvision_ops", "dependencies.digest"}
    for module, function in (name.split(".") for name in silent):
        tree = ast.parse((SCRIPTS / f"quantwatt/jobs/{module}.py").read_bytes())
        (found,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
        assert not [node for node in ast.walk(found) if isinstance(node, ast.Return) and node.value is not None]


def test_results_use_no_name_of_the_package_itself():
    rooms = {path.stem for path in (SCRIPTS / "quantwatt").iterdir()}
    for name, tree in hashed().items():
        assert {used.split(".")[0] for used in used_of("quantwatt", tree)} <= rooms, name
    package = ast.parse((SCRIPTS / "quantwatt/__init__.py").read_bytes())
    imports = [node for node in ast.walk(package) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert names and names <= sys.stdlib_module_names  # whose import changes nothing


def test_docstrings_and_sources_are_read_by_no_module():
    """--help alone shows a docstring, and nothing asks how a module is written: neither can change a result."""
    for name, tree in hashed().items():
        shown = {
            id(node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "description"
        }
        names = [(node, getattr(node, "attr", getattr(node, "id", None))) for node in ast.walk(tree)]
        assert not [node for node, said in names if said == "__doc__" and id(node) not in shown], name
        asked = {"getdoc", "getsource", "getsourcelines", "get_docstring", "currentframe", "linecache"}
        of_libraries = {"getsource"} if name == "quantwatt/models/architecture.py" else set()  # of their classes alone
        assert asked & {said for _, said in names} == of_libraries, name


PINNED = "82c0e76794d21ffd50aed538920e04f46ddc971bccd36783dfb7e4e1cd2bcac9"  # of the canonical text of
SYNTAX = '''
from __future__ import annotations
import a.b as c, d
from e import *

@decorated(1, *two, key=3, **four)
class Kind(Base, metaclass=Meta):
    """Docstring."""
    field: int = 1_000
    "A docstring of it."

    async def method(self, a, /, b: int = 1, *rest, c=..., **others) -> None:
        """Docstring."""
        async with x as y, z:
            await (lambda q, *, r=2: q @ r)(1)
        return [i async for i in j if i if not k]

def plain(value):
    global total
    match value:
        case [1, *rest] | {"key": None, **others}: pass
        case Kind(field=-1.5j) as found if found is not None: yield from rest
        case _: raise ValueError(f"{value!r:>{width}} {value=} {{}} " f"ä{'b' 'c'}" "\\N{SNOWMAN}\U0001fae8") from None
    try: del value[1:2, ::3]
    except (A, B) as error: total += 0.1 + 1e300 + b"\\xff"[0]
    else: assert (n := 10) < 5 <= 6 != 7, u"why"
    finally: print({**{}, "a": 1}, {1, 2}, (yield), not -n ** 2 // 3 if True else False, {i: j for i, j in k})
'''


def test_a_tree_is_written_alike_under_every_python():
    text, imports = dependencies.canonical(ast.parse(SYNTAX))
    assert [node.lineno for node in imports] == [2, 3, 4]
    assert "Docstring" not in text and "A docstring of it" not in text and text.isascii()
    assert hashlib.sha256(text.encode()).hexdigest() == PINNED


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("a = (1)", "a = 1  # why", True),
        ("f(a, b)", "f(\n    a,\n    b,\n)", True),
        ("def f():\n    'why'\n    return 'a' 'b'", 'def f(): return "ab"', True),
        ("a = []", "a = ['']", False),
        ("a = ['why']", "a = []", False),
        ("a = None", "a = ...", False),
        ("a = 1", "a = True", False),
        ("a = 1", "a = 1.0", False),
        ("a = 'b'", "a = b'b'", False),
        ("def f(a=None): pass", "def f(a): pass", False),
        ("def f(a, /): pass", "def f(*, a): pass", False),
        ("{**a, 'b': c}", "{'b': c, **a}", False),
        ("return", "return None", False),
        ("for a in b: pass", "async def f():\n    async for a in b: pass", False),
        ("f'{a}b'", "f'{a}'", False),
        ("f'{a!r}'", "f'{a}'", False),
    ],
)
def test_trees_are_written_alike_where_they_are(one, other, alike):
    texts = {dependencies.canonical(ast.parse(source))[0] for source in (one, other)}
    assert len(texts) == (1 if alike else 2)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("int a; // why", "int a;\n\n  /* other\n reasons */", True),
        ("int a;", "  int a;  ", True),
        ("int a; // goes on \\\n int b;", "int a;", True),
        ('char *a = "// b";', 'char *a = "// c";', False),
        ('char *a = "\\"/* b */";', 'char *a = "\\"";', False),
        ("char a = '\"'; /* b */ int c;", "char a = '\"'; int c;", True),
        ("int a/**/b;", "int ab;", False),
        ("#define A 1\nint a;", "#define A 1 int a;", False),
    ],
)
def test_c_without_its_comments(one, other, alike):
    assert (dependencies.c_without_comments(one) == dependencies.c_without_comments(other)) == alike


def test_c_includes_no_file_that_a_hash_would_miss():
    for path in [*SCRIPTS.rglob("*.c"), *SCRIPTS.rglob("*.h")]:
        for name in re.findall(r'#include "(.*)"', path.read_text()):
            assert path.with_name(name) in dependencies.closure("generate.py", ["kernels/unpacked"])
