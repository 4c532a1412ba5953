"""The judge: a small open_clip model trained on scenes, for the CLIP score and the Frechet distance."""

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers import CLIPTokenizer

from quantwatt.data import scenes
from quantwatt.score import attribute_classifier as attributes
from training import loop
from training import tokenizer as captions_tokenizer

RECIPE = loop.Recipe(steps=4000, batch=64, learning_rate=1.5e-3, muon=True, warmup=200, decay=0.6, average=0.997)
EMBEDDING = 64
PREPROCESSING = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}


def configuration(tokenizer: CLIPTokenizer) -> dict:
    """The model configuration in open_clip_config.json."""
    return {
        "embed_dim": EMBEDDING,
        "vision_cfg": {
            "image_size": scenes.IMAGE_SIZE,
            "layers": 4,
            "width": 128,
            "head_width": 32,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": captions_tokenizer.CONTEXT,
            "vocab_size": len(tokenizer),
            "width": 96,
            "heads": 3,
            "layers": 3,
            # Any name here makes open_clip load a transformers tokenizer from the model's folder.
            "hf_tokenizer_name": "judge",
        },
    }


class JudgeInTraining(nn.Module):
    """The judge, and one linear probe for every attribute, shared by the image and the text embeddings.

    With a ranking loss alone, the judge takes very long to learn relations such as "left of": neither encoder gains
    from learning them before the other has. The shared probes teach relations to both; they are not saved.
    """

    def __init__(self, tokenizer: CLIPTokenizer):
        super().__init__()
        config = configuration(tokenizer)
        self.clip = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
        self.readings = nn.ModuleList(nn.Linear(EMBEDDING, len(o)) for o in attributes.CLASSES.values())

    def reading_loss(self, embeddings: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the attributes [n, entries of CLASSES] predicted from embeddings of length 1."""
        losses = [
            functional.cross_entropy(reading(EMBEDDING**0.5 * embeddings), wanted, ignore_index=attributes.UNDEFINED)
            for reading, wanted in zip(self.readings, classes.unbind(1), strict=True)
        ]
        return torch.stack(losses).mean()


def new(tokenizer: CLIPTokenizer, seed: int) -> JudgeInTraining:
    """An untrained judge."""
    torch.manual_seed(seed)
    return JudgeInTraining(tokenizer)


def changed_captions(captions: list[str], seed: int) -> dict[str, list[str | None]]:
    """{attribute: captions with that attribute changed to a wrong value, None where a caption does not have it}."""
    rng = np.random.default_rng(seed)
    changed: dict[str, list[str | None]] = {attribute: [] for attribute in scenes.ATTRIBUTES}
    for text in captions:
        scene = scenes.parse(text)
        for attribute, texts in changed.items():
            has = attribute != "relation" or scene.relation is not None
            texts.append(scenes.caption(scenes.change_attribute(scene, attribute, rng)) if has else None)
    return changed


def train(
    images: np.ndarray,
    captions: list[str],
    tokenizer: CLIPTokenizer,
    checkpoint: Path,
    seed: int,
    recipe: loop.Recipe = RECIPE,
) -> tuple[open_clip.CLIP, float]:
    """Trains on uint8 pictures [n, 64, 64, 3]; returns the judge and the CPU seconds used.

    The loss is CLIP's, with one wrong caption per attribute of every picture as hard negatives, plus a ranking loss
    of the right caption against each of these wrong captions alone. Random negatives differ in so many attributes
    that the judge would never need shapes and relations to distinguish them.
    """
    in_training = new(tokenizer, seed)
    model = in_training.clip
    classes = torch.tensor([attributes.classes_of(scenes.parse(text)) for text in captions])
    ids = captions_tokenizer.encode(tokenizer, captions)
    wrong = changed_captions(captions, seed)
    # [n, attributes, CONTEXT]; where an attribute is missing, the right caption is a placeholder, masked below
    wrong_ids = torch.stack(
        [
            captions_tokenizer.encode(tokenizer, [w or c for w, c in zip(texts, captions, strict=True)])
            for texts in wrong.values()
        ],
        1,
    )

    def loss_of(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        chosen = torch.randint(len(images), (recipe.batch,), generator=generator)
        right, n = ids[chosen], recipe.batch
        candidates = torch.cat([right, wrong_ids[chosen].flatten(0, 1)])  # [n * (1 + attributes), CONTEXT]
        with loop.autocast():
            pictures = model.encode_image(loop.to_tensor(images[chosen.numpy()]), normalize=True).float()
            texts = model.encode_text(candidates, normalize=True).float()
        logits = model.logit_scale.exp() * pictures @ texts.T
        same = (right[:, None] == candidates[None]).all(-1)  # equal captions are not negatives of each other
        wanted, back = same.float(), same[:, :n].float()
        by_picture = functional.cross_entropy(logits, wanted / wanted.sum(1, keepdim=True))
        by_caption = functional.cross_entropy(logits[:, :n].T, back / back.sum(1, keepdim=True))
        rows = torch.arange(n)
        margin = logits.diagonal()[:, None] - logits[:, n:].unflatten(1, (n, -1))[rows, rows]  # [n, attributes]
        changed = ~same[:, n:].unflatten(1, (n, -1))[rows, rows]  # False where an attribute is missing
        ranking = functional.softplus(-margin)[changed].mean()
        read = classes[chosen]
        reading = in_training.reading_loss(pictures, read) + in_training.reading_loss(texts[:n], read)
        ranked, relation = margin > 0, scenes.ATTRIBUTES.index("relation")
        return {
            "loss": (by_picture + by_caption) / 2 + ranking + reading,
            "reading": reading.detach(),
            "ranked": ranked[changed].float().mean(),
            "relations": ranked[:, relation][changed[:, relation]].float().mean(),
        }

    cpu_s = loop.train("judge", in_training, loss_of, recipe, checkpoint, seed)
    return model.eval(), cpu_s


def save(model: open_clip.CLIP, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Writes a folder that open_clip loads as `local-dir:<folder>`, with weights in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": configuration(tokenizer), "preprocess_cfg": PREPROCESSING}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    tokenizer.save_pretrained(folder)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


class Judge:
    """A saved judge, in float32."""

    def __init__(self, folder: Path):
        self.model = open_clip.create_model(f"local-dir:{folder}").float().eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def pictures(self, images: np.ndarray, batch: int = 256) -> torch.Tensor:
        """Embeddings [n, EMBEDDING] of length 1 of uint8 pictures [n, 64, 64, 3]."""
        parts = (loop.to_tensor(images[start : start + batch]) for start in range(0, len(images), batch))
        return torch.cat([self.model.encode_image(part, normalize=True) for part in parts])

    @torch.no_grad()
    def captions(self, texts: list[str]) -> torch.Tensor:
        """Embeddings [n, EMBEDDING] of length 1 of captions."""
        return self.model.encode_text(captions_tokenizer.encode(self.tokenizer, texts), normalize=True)


def ranking(judge: Judge, images: np.ndarray, captions: list[str], seed: int) -> dict[str, float]:
    """{attribute: share of pictures that score the right caption above the one with this attribute wrong}."""
    pictures = judge.pictures(images)
    right = (pictures * judge.captions(captions)).sum(-1)
    accuracy = {}
    for attribute, texts in changed_captions(captions, seed).items():
        which = [i for i, text in enumerate(texts) if text is not None]
        wrong = (pictures[which] * judge.captions([texts[i] for i in which])).sum(-1)
        accuracy[attribute] = float((right[which] > wrong).float().mean())
    return accuracy
