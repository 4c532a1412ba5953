"""Draw with a cache on the denoiser: its states end with each drawing, and what it skips is counted."""

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch

from quantwatt import registry
from quantwatt.artifacts.errors import Unsupported
from quantwatt.inference.transformer_blocks import KEEP_TEXT
from quantwatt.models.families import recording
from quantwatt.models.sampling import Drawing


class Place:
    """Where a drawing is: `step` counts from 0, `branch` the denoiser's calls in this step; `asked`: its Drawing."""

    def __init__(self, scheduler: Any):
        self.scheduler = scheduler
        self.begin(Drawing())

    def begin(self, asked: Drawing) -> None:
        self.asked, self.step, self.branch = asked, 0, 0
        self.read: int | None = None  # the timestep, once it is asked for

    def next_step(self) -> None:
        self.step, self.branch, self.read = self.step + 1, 0, None

    def timestep(self) -> int:
        """The scheduler's timestep, which falls from its number of training timesteps to 0."""
        if self.read is None:  # once a step: a GPU is waited for
            timesteps = self.scheduler.timesteps
            self.read = int(timesteps[min(self.step, len(timesteps) - 1)])
        return self.read


class Cache:
    """A cache on the denoiser of a loaded pipeline.

    calls: {"unit": what is counted, "asked": calls of all drawings, "skipped": those that did not compute}.

    Args:
        settings: the method's completed `cache`.
    Raises:
        Unsupported: the cache does not work with this denoiser.
    """

    def __init__(self, pipeline: Any, denoiser: torch.nn.Module, settings: Mapping[str, Any]):
        self.pipeline, self.denoiser, self.settings = pipeline, denoiser, settings
        self.plugin = registry.load("caches", settings["name"])
        if reason := self.plugin.refusal(denoiser, settings):
            raise Unsupported(f"cache {settings['name']}: {type(denoiser).__name__} {reason}.")
        self.place = Place(pipeline.scheduler)
        self.stateful: list[tuple[Any, torch.nn.Module]] = []  # (hook, its module)
        self.made_for: tuple[int | None, float | None] | None = None  # steps and guidance that the hooks were made for
        self.calls = {"unit": self.plugin.UNIT, "asked": 0, "skipped": 0}

    @contextlib.contextmanager
    def drawing(self, asked: Drawing) -> Generator[None, None, None]:
        """Context of one drawing, which begins with empty states.

        Raises:
            Unsupported: the cache cannot draw this.
        """
        self.place.begin(asked)
        if self.made_for != (asked.steps, asked.guidance):
            self._apply()
            self.made_for = (asked.steps, asked.guidance)
        for hook, module in self.stateful:
            hook.reset_state(module)
        try:
            with recording.after_each_step(self.pipeline.scheduler, self.place.next_step):
                yield
        finally:
            for hook, module in self.stateful:  # an earlier drawing's outputs would take memory until the next
                hook.reset_state(module)

    def _apply(self):
        """Put the hooks on the denoiser, in place of those of another drawing."""
        from diffusers.hooks import HookRegistry

        remove_hooks(self.denoiser)
        self.plugin.apply(self.denoiser, self.settings, self.place)
        placed = [
            (hook, module)
            for module in self.denoiser.modules()
            for name, hook in _hooks(module).items()
            if name != KEEP_TEXT
        ]
        for hook, module in placed:
            if module is not self.denoiser:
                hook.fn_ref.forward = self._counting(1, 1, hook.fn_ref.forward)
                hook.fn_ref.original_forward = self._counting(0, -1, hook.fn_ref.original_forward)
        self.stateful = [(hook, module) for hook, module in placed if hook._is_stateful]
        hooks = HookRegistry.check_if_exists_or_initialize(self.denoiser)
        hooks.register_hook(_branches(self.plugin, self.settings, self.place, [hook for hook, _ in placed]), "branches")
        hooks.invalidate_child_registries_cache()

    def _counting(self, asked: int, skipped: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args, **kwargs):
            self.calls["asked"] += asked
            self.calls["skipped"] += skipped
            return forward(*args, **kwargs)

        return counted


def remove_hooks(denoiser: torch.nn.Module) -> None:
    """Take a cache off a denoiser."""
    from diffusers.hooks import HookRegistry

    for module in denoiser.modules():
        for name in reversed(list(_hooks(module))):
            HookRegistry.check_if_exists_or_initialize(module).remove_hook(name, recurse=False)


def _hooks(module):
    """{name: hook} of diffusers' hooks on a module."""
    return module._diffusers_hook.hooks if hasattr(module, "_diffusers_hook") else {}


def _branches(plugin, settings, place, hooks):
    """A hook on the denoiser that tells the branches of guidance apart where the pipeline does not.

    A pipeline that computes both branches as one batch calls the denoiser once in a step. One that calls it for each
    has to say which it is (diffusers' `cache_context`), and many do not; the number of the call in its step says it.
    """
    from diffusers.hooks import ModelHook
    from diffusers.hooks.hooks import StateManager
    from diffusers.models.cache_utils import CacheMixin

    states = [value for hook in hooks for value in vars(hook).values() if isinstance(value, StateManager)]

    class Branches(ModelHook):
        def new_forward(self, module, *args, **kwargs):
            place.branch += 1
            if place.branch > 1 and not plugin.APART:
                raise Unsupported(
                    f"cache {settings['name']}: this pipeline computes the branches of guidance in turns, and the "
                    "cache would give one branch's outputs to the other."
                )
            told = any(state._context is not None for state in states)
            with contextlib.nullcontext() if told else CacheMixin.cache_context(module, f"branch {place.branch}"):
                return self.fn_ref.original_forward(*args, **kwargs)  # ty: ignore[not-callable]

    return Branches()
