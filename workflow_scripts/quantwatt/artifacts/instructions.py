"""Prompts that say what to make of a picture: of image-to-image and editing pipelines."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self


class Instruction(str):
    """A prompt with the path of its input picture; wherever that does not matter it is the text of the prompt."""

    picture: Path

    def __new__(cls, text: str, picture: str | Path) -> Self:
        """Text and picture of one row of a table of prompts."""
        instruction = super().__new__(cls, text)
        instruction.picture = Path(picture)
        return instruction

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep the picture in copies, and in other processes."""
        return type(self), (str(self), self.picture)


def pictures(prompts: Iterable[str | None]) -> list[Path]:
    """The input pictures of prompts, in their order; [] for prompts without."""
    return [prompt.picture for prompt in prompts if isinstance(prompt, Instruction)]


def described(prompt: str | None) -> dict[str, str]:
    """A prompt's input picture for a manifest: {"picture": file name, "picture_sha256"}; {} for a prompt without."""
    if not isinstance(prompt, Instruction):
        return {}
    content = prompt.picture.read_bytes()
    return {"picture": prompt.picture.name, "picture_sha256": hashlib.sha256(content).hexdigest()}
