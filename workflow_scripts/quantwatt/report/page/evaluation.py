"""The recorded quality of the embedded models (resources/models/evaluation*.json) as sections of the page."""

from collections.abc import Mapping
from typing import Any

from quantwatt.report.page.numbers import DASH, compact, with_bounds

EVALUATION_TITLES = {  # keys of those files
    "classifier_right_on_renders": "Attribute classifier: share of unseen renders whose every attribute it reads right",
    "generated_right": "The unquantized model: share of its images with every attribute of the prompt right",
    "generated_with": "Those images were generated with",
    "judge_ranks_right_caption_first": "Judge: unseen renders whose caption beats one with this attribute wrong",
    "clip_score": "CLIP score by the judge",
    "generated": "The unquantized model: share of its digits that the classifier reads as asked, distance to real ones",
    **{
        f"generated_in_{steps}": f"The unquantized model, {steps} step{'s' * (steps > 1)}: share of its images with "
        "every attribute of the prompt right, and CLIP score by the judge"
        for steps in (1, 2, 4)
    },
    "first_token": "Token 0 of the prompts' embeddings: its size, against other tokens', and how far prompts change it",
    "parameters": "Parameters",
    "size_mb": "Size (MB)",
    "training": "Training",
}
SHARES = {"classifier_right_on_renders", "generated_right", "judge_ranks_right_caption_first"}  # shown as percentages
EVALUATION_LABELS = {  # keys inside the sections
    "autoencoder_psnr_db": "autoencoder's reconstruction (dB)",
    "psnr_db": "PSNR (dB)",
    "clip_score": "CLIP score",
    "frechet_distance": "Fréchet distance",
    "vae": "autoencoder",
    "flow": "image model",
    "cpu_s": "CPU seconds",
}


def evaluation_sections(evaluations: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Convert JSON mappings to sections of the page; known keys get readable labels.

    Args:
        evaluations: {name: mapping}.
    Returns:
        list of {"title", "rows": [(label, text)], "columns": [label], "table": [(label, [text])]}. Single
        values come first under the title None; a mapping of mappings with equal keys becomes a table. With several
        evaluations, every title starts with the name.
    """
    sections = [(name, part) for name, evaluation in evaluations.items() for part in _sections(evaluation)]
    if len(evaluations) > 1:
        for name, part in sections:
            part["title"] = f"{name}: {part['title']}" if part["title"] else name
    return [part for _, part in sections]


def _sections(evaluation):
    single = {key: value for key, value in evaluation.items() if not isinstance(value, dict)}
    nested = [(key, value) for key, value in evaluation.items() if isinstance(value, dict) and value]
    nested.sort(key=lambda item: item[0] == "training")  # few readers need the training recipes
    return ([_section(None, single)] if single else []) + [_section(key, value) for key, value in nested]


def _section(key, values):
    section = {"title": key and EVALUATION_TITLES.get(key, _label(key)), "rows": [], "columns": [], "table": []}
    keys = [tuple(value) if isinstance(value, dict) else None for value in values.values()]
    if len(keys) > 1 and keys[0] and len(set(keys)) == 1 and len(keys[0]) <= 6:
        section["columns"] = [_label(name) for name in keys[0]]
        section["table"] = [(_label(name), [_plain(v) for v in row.values()]) for name, row in values.items()]
    else:
        plain = _per_cent if key in SHARES else _plain
        section["rows"] = [(_label(name), plain(value)) for name, value in values.items()]
    return section


def _per_cent(value):
    return f"{100 * value:.1f} %"


def _label(key):
    return EVALUATION_LABELS.get(key, str(key).replace("_", " "))


def _plain(value):
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return compact(value)
    if isinstance(value, dict):
        return ", ".join(f"{_label(key)} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        if len(value) == 3 and all(isinstance(v, (int, float)) for v in value):
            return with_bounds(*value)
        return ", ".join(_plain(item) for item in value)
    return str(value)
