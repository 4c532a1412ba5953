"""Which classes of diffusers pipelines draw images from prompts or classes alone, told from the class itself."""

import dataclasses
import inspect
import re
import sys
from pathlib import Path

from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.models.families.pipelines import IMAGE_FIELDS

# What a call takes from a sampling, from the seeds or for the kind of its output.
SAID_BY_SAMPLING = {"prompt", "class_labels", "batch_size", "negative_prompt", "num_inference_steps", "height", "width",
                    "generator", "output_type", "return_dict", "self"}  # fmt: skip
# Arguments of calls that draw something else.
OTHERS = {"num_frames": "videos", "video_length": "videos", "audio_length_in_s": "sound"}
# Pictures that a call may take. Where its default is None and its type is not "or None", it does not go without.
PICTURES = ("image", "mask_image", "control_image", "example_image", "hint", "video", "control_video")
# Pipelines whose signature calls the picture optional, though they change one.
CHANGING = re.compile("Img2Img|Inpaint|Edit|Fill|Refiner|Layered|Upscale|Variation")


def of_folder(location):
    """The class of a pipeline's folder, from its model_index.json.

    Raises:
        DataError: the folder has none that this diffusers knows.
    """
    import diffusers

    name = manifest.read_json(Path(location) / "model_index.json").get("_class_name")
    if isinstance(name, list):
        raise DataError(f"{location}: its pipeline is code of its own ({name[-1]}), which is never run.")
    kind = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise DataError(
            f"{location}: model_index.json names {name}, which is no pipeline of diffusers {diffusers.__version__}."
        )
    return kind


def check(kind, location):
    """Refuse a class of pipelines that draws no images from prompts or classes alone.

    Raises:
        DataError: says what it draws, or needs.
    """
    takes, fields = inspect.signature(kind.__call__).parameters, output_fields(kind)
    if others := ["videos" for field in fields if field in ("frames", "videos")] or [
        what for name, what in OTHERS.items() if name in takes
    ]:
        raise DataError(f"{location}: {kind.__name__} draws {others[0]}; quantwatt compares images.")
    if fields and not set(fields) & set(IMAGE_FIELDS):
        raise DataError(f"{location}: {kind.__name__} gives {', '.join(fields)}; quantwatt compares images.")
    if needed := [name for name, parameter in takes.items() if _is_needed(name, parameter, kind)]:
        raise DataError(
            f"{location}: {kind.__name__} needs '{needed[0]}', and draws nothing from prompts or classes alone."
        )


def _is_needed(name, parameter, kind):
    if name in SAID_BY_SAMPLING or parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
        return False
    if parameter.default is parameter.empty:
        return True
    if parameter.default is not None:
        return False
    if CHANGING.search(kind.__name__):
        return name in (*PICTURES, "images")
    return name in PICTURES and not re.search("None|Optional", str(parameter.annotation))


def output_fields(kind):
    """Names of the fields of what a pipeline's call returns, as its signature says; () where that says nothing."""
    returned = inspect.signature(kind.__call__).return_annotation
    names = re.findall(r"\w+Output\b", str(returned))
    found = [getattr(sys.modules[kind.__module__], name, None) for name in names]
    outputs = [output for output in found if dataclasses.is_dataclass(output)]
    return tuple(field.name for output in outputs for field in dataclasses.fields(output))
