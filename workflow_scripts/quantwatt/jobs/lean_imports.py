"""Import diffusers and transformers without the parts that they load merely because a library is installed.

Both import bitsandbytes, torchao, scipy, scikit-learn, torchvision, PyTorch's compiler and its distributed tensors.
That takes longer than all the rest, and to draw with a model or to quantize it calls none of them; no option of theirs
turns it off. Here they are imported while these look as if they were not installed, by Python's own means (None in
sys.modules), and record that; what this package computes with, it imports afterwards as ever. The compiler and parts of
scipy are loaded at their first use. Where a release imports something else, that is loaded: a job starts later, and
does the same.

Only jobs do so (`quantwatt.jobs.command.run` allows it): a notebook may ask diffusers for what is left out.
"""

import contextlib
import functools
import gc
import importlib.abc
import importlib.util
import inspect
import sys
from collections.abc import Callable, Generator
from importlib.machinery import ModuleSpec
from pkgutil import resolve_name
from types import ModuleType, SimpleNamespace
from typing import Any

# They read quantized weights, which quantwatt.models.model_folder refuses, process images otherwise and compute losses.
_OF_BOTH = ("bitsandbytes", "torchao", "torchvision", "sklearn")
LEFT_OUT = {
    "transformers": (*_OF_BOTH, "scipy"),
    "diffusers": _OF_BOTH,
    "open_clip": ("bitsandbytes", "torchao", "sklearn"),  # which imports transformers, too
}
OF_SCHEDULERS = ("scipy.integrate", "scipy.stats")  # some of diffusers' schedulers compute with them
COMPILER = "torch._dynamo"
UTILS = f"{COMPILER}.utils"
LIGHT = f"{COMPILER}._trace_wrapped_higher_order_op"  # the compiler's only module that transformers imports itself

allowed: bool = False  # in this process
_lean: set[str] = set()  # the libraries that have been imported here


def load(*names: str) -> None:
    """Import modules or classes of transformers and diffusers, by dotted names, without what they do not need.

    Nothing happens outside of jobs, where the library is imported already, and for other libraries.
    """
    for name in names:
        library = name.partition(".")[0]
        if allowed and library in LEFT_OUT and (library in _lean or library not in sys.modules):
            _lean.add(library)
            with _not_collecting(), _not_distributed(), _absent(library):
                _put_off(library)
                resolve_name(name)


@contextlib.contextmanager
def _not_collecting() -> Generator[None, None, None]:
    """Context without garbage collection, which would look through all that is imported again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


@contextlib.contextmanager
def _absent(library: str) -> Generator[None, None, None]:
    """Context in which what the library does not need is neither found nor imported, though it may be there."""
    modules: dict[str, Any] = sys.modules
    names = LEFT_OUT[library]
    there = {name: modules[name] for name in names if name in modules}
    modules |= dict.fromkeys(names)
    try:
        yield
    finally:
        for name in names:
            del modules[name]
        modules |= there


@contextlib.contextmanager
def _not_distributed() -> Generator[None, None, None]:
    """Context in which this PyTorch looks like one that was built without its distributed part."""
    import torch.distributed

    names = vars(torch.distributed)
    is_available, names["is_available"] = names["is_available"], lambda: False
    try:
        yield
    finally:
        names["is_available"] = is_available


class _Waiting(ModuleType):
    """A package that runs its code when it is asked for an attribute that it does not have, or for a module in it.

    (importlib.util.LazyLoader's runs it for any attribute, and inspect asks each module there is for its file.)
    """

    def __init__(self, name: str, **attributes: Any):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        vars(self).update(vars(importlib.util.module_from_spec(spec)), **attributes)
        self._given, self._finder = attributes, _OfWaiting(self)
        sys.modules[name] = self
        sys.meta_path.insert(0, self._finder)

    def __getattr__(self, name):
        _run(self)
        return getattr(self, name)


class _OfWaiting(importlib.abc.MetaPathFinder):
    """Runs a package's own code before that of a module in it, which it may import itself."""

    def __init__(self, package: _Waiting):
        self.package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not name.startswith(f"{self.package.__name__}.") or name in (LIGHT, UTILS):
            return None
        _run(self.package)
        return ModuleSpec(name, _Loaded(sys.modules[name])) if name in sys.modules else None


class _Loaded(importlib.abc.Loader):
    """Gives the import of a module that is there already this very module."""

    def __init__(self, module: ModuleType):
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


def _run(package):
    """Run the code of a package that waits, without what it was given in the meantime."""
    sys.meta_path.remove(package._finder)
    for name in (*package._given, "_given", "_finder"):
        del vars(package)[name]
    if package.__name__ == COMPILER:
        sys.modules.pop(UTILS, None)
    package.__class__ = ModuleType
    package.__spec__.loader.exec_module(package)
    for mark in _marks if package.__name__ == COMPILER else ():
        mark()


_marks: list[Callable[[], Any]] = []  # what is to be said to the compiler once its code has run


def _put_off(library):
    """Let the compiler wait while it is only asked to mark functions, and what diffusers takes of scipy."""
    import torch

    if COMPILER not in sys.modules:
        names = ("allow_in_graph", "assume_constant_result")  # both return the function itself
        marking = {name: functools.partial(_mark, name) for name in names} | {"disable": _disable}
        # diffusers asks of each network whether it is compiled: none is an instance of a class that nobody has.
        compiled = SimpleNamespace(OptimizedModule=type("OptimizedModule", (), {}))
        vars(torch)["_dynamo"] = _Waiting(COMPILER, **marking, eval_frame=compiled)
        sys.modules[UTILS] = _Utils(UTILS)
    if library == "diffusers" and importlib.util.find_spec("scipy"):
        for name in OF_SCHEDULERS:
            if name not in sys.modules:
                _Waiting(name)


class _Utils(ModuleType):
    """Stands for a module of the compiler that waits: torchvision imports a function of it, and calls it for boxes."""

    def __init__(self, name: str):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        vars(self).update(vars(importlib.util.module_from_spec(spec)))

    @staticmethod
    def is_compile_supported(*arguments: Any) -> bool:
        return _utils().is_compile_supported(*arguments)

    def __getattr__(self, name):
        if name == "__path__":  # which every import asks for: it is no package
            raise AttributeError(name)
        return getattr(_utils(), name)


def _utils() -> Any:
    """The module itself."""
    if type(sys.modules[COMPILER]) is _Waiting:
        _run(sys.modules[COMPILER])
    return importlib.import_module(UTILS)


def _mark(kind, function):
    """Call the compiler's function `kind` once it runs; libraries may keep this one and call it later still."""

    def mark():
        return getattr(sys.modules[COMPILER], kind)(function)

    if type(sys.modules[COMPILER]) is ModuleType:
        return mark()
    _marks.append(mark)
    return function


def _disable(function=None, recursive=True, **options):
    """The compiler's `disable`: a function that it leaves alone, or a decorator that makes one."""
    if function is None:
        return functools.partial(_disable, recursive=recursive, **options)
    called = function

    def mark():
        nonlocal called
        called = sys.modules[COMPILER].disable(function, recursive, **options)
        return called

    if type(sys.modules[COMPILER]) is ModuleType or not inspect.isfunction(function):
        return mark()
    _marks.append(mark)
    return functools.wraps(function)(lambda *args, **kwargs: called(*args, **kwargs))
