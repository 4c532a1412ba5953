"""Which classes of diffusers pipelines generate images from prompts, classes or pictures, judged by signatures."""

import dataclasses
import inspect
import re
import sys
from pathlib import Path

from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.models.families.pipelines import IMAGE_FIELDS

# Arguments of a call that the sampling, the seeds or the output type set.
SAID_BY_SAMPLING = {"prompt", "class_labels", "batch_size", "negative_prompt", "num_inference_steps", "height", "width",
                    "generator", "output_type", "return_dict", "self"}  # fmt: skip
# Arguments by which calls that generate something else are detected.
OTHERS = {"num_frames": "videos", "video_length": "videos", "audio_length_in_s": "sound"}
# Image arguments of calls. Such an argument is required if its default is None and its annotation excludes None.
PICTURES = ("image", "mask_image", "control_image", "example_image", "hint", "video", "control_video")
# Names of pipelines that make an image from one input picture, their argument `image`, and a prompt.
FROM_A_PICTURE = re.compile("Img2Img|InstructPix2Pix|Edit|Kontext")
# Names of pipelines that edit an image, though their signatures declare it optional.
CHANGING = re.compile("Img2Img|Inpaint|Edit|Fill|Refiner|Layered|Upscale|Variation")


def of_folder(location: str | Path) -> type:
    """The class of a pipeline's folder, from its model_index.json.

    Raises:
        DataError: the installed diffusers does not have the class.
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


def check(kind: type, location: str | Path) -> None:
    """Refuse a class of pipelines that cannot generate images from prompts, classes or one picture with each prompt.

    Raises:
        DataError: names what the class generates or needs instead.
    """
    if getattr(kind, "_load_connected_pipes", False):
        raise DataError(f"{location}: {kind.__name__} joins several pipelines, and one alone can be quantized.")
    takes, fields = inspect.signature(kind.__call__).parameters, output_fields(kind)
    if others := ["videos" for field in fields if field in ("frames", "videos")] or [
        output for name, output in OTHERS.items() if name in takes
    ]:
        raise DataError(f"{location}: {kind.__name__} draws {others[0]}; quantwatt compares images.")
    if fields and not set(fields) & set(IMAGE_FIELDS):
        raise DataError(f"{location}: {kind.__name__} gives {', '.join(fields)}; quantwatt compares images.")
    if needed := [name for name in takes if is_needed(name, kind) and not takes_picture(name, kind)]:
        raise DataError(
            f"{location}: {kind.__name__} needs '{needed[0]}', and draws nothing from prompts, classes or one picture."
        )


def takes_picture(name: str, kind: type) -> bool:
    """Whether an argument of a class's call is the input picture of a prompt."""
    takes = inspect.signature(kind.__call__).parameters
    return name == "image" and name in takes and FROM_A_PICTURE.search(kind.__name__) is not None


def is_needed(name: str, kind: type) -> bool:
    """Whether a class's call cannot do without an argument that no sampling sets."""
    parameter = inspect.signature(kind.__call__).parameters[name]
    if name in SAID_BY_SAMPLING or parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
        return False
    if parameter.default is parameter.empty:
        return True
    if parameter.default is not None:
        return False
    if CHANGING.search(kind.__name__):
        return name in (*PICTURES, "images")
    return name in PICTURES and not re.search("None|Optional", str(parameter.annotation))


def output_fields(kind: type) -> tuple[str, ...]:
    """Names of the fields of a pipeline call's output, from its return annotation; () without an annotation."""
    returned = inspect.signature(kind.__call__).return_annotation
    names = re.findall(r"\w+Output\b", str(returned))
    classes = [getattr(sys.modules[kind.__module__], name, None) for name in names]
    outputs = [output for output in classes if dataclasses.is_dataclass(output)]
    return tuple(field.name for output in outputs for field in dataclasses.fields(output))
