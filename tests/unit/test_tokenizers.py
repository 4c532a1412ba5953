"""Tokenizers without a vocabulary are refused, whatever is missing; all working tokenizers pass."""

import quantwatt.jobs.torchvision_ops  # noqa: F401  before transformers
from quantwatt.models.sampling import Reading

# isort: split
import json
import shutil

import pytest
import tiny_parts
import tiny_text
import torch

import calibrate
import generate
import model as model_rule
import predict
from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import read_json
from quantwatt.jobs.fingerprints import ROOT
from quantwatt.models import tokenizers
from quantwatt.models.families import gpt2, load_family

MODELS = ROOT / "resources/models"
PROMPTS = ["a large red circle on the left", "a small blue square on a white background"]
SENTENCES = ["the film was not bad", "a dull plot and weak acting"]
CLIP = {"model_type": "clip_text_model", "vocab_size": 162, "max_position_embeddings": 16, "eos_token_id": 161}
SETTINGS = {"family": "diffusers", "dtype": "float32", "arguments": {}}


def pipeline_of(folder, **parts):
    """The folder of a pipeline as far as tokenizers go: {name: (class, source folder or tokenizer, configuration)}."""
    for name, (_, source, reader) in parts.items():
        if hasattr(source, "save_pretrained"):
            source.save_pretrained(folder / name)
        else:
            shutil.copytree(source, folder / name)
        manifest.write_json(folder / name.replace("tokenizer", "text_encoder") / "config.json", reader)
    index = {name: ["transformers", kind] for name, (kind, *_) in parts.items()}
    manifest.write_json(folder / "model_index.json", {"_class_name": "X", "vae": ["diffusers", "V"], **index})
    return folder


@pytest.fixture
def clip(tmp_path):
    return pipeline_of(tmp_path, tokenizer=("CLIPTokenizer", tiny_parts.CLIP_TOKENIZER, CLIP))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """The folder of a T5 tokenizer of a few words."""
    folder = tmp_path_factory.mktemp("t5")
    tiny_parts.t5_tokenizer().save_pretrained(folder)
    return folder


def edit(path, **entries):
    path.write_text(json.dumps({**read_json(path), **entries}))


def as_older_files(folder):
    """The vocabulary in the two files that were usual before tokenizer.json."""
    model = read_json(folder / "tokenizer.json")["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"])]) + "\n")
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("family", "name", "texts"),
    [
        ("sd3", "tiny-sd3", ROOT / "resources/prompts/shapes-test.txt"),
        ("sdxl", "tiny-sdxl", ROOT / "resources/prompts/shapes-calibration.txt"),
        ("consistency", "tiny-consistency", ROOT / "resources/prompts/digits.txt"),
        ("distilbert", "tiny-distilbert", ROOT / "resources/texts/reviews-test.tsv"),
        ("gpt2", "tiny-gpt2", ROOT / "resources/texts/manuals-test.txt"),
    ],
)
def test_the_embedded_models_pass(family, name, texts):
    texts = load_family(family).read(texts)[0] if family in ("distilbert", "gpt2") else texts.read_text().splitlines()
    tokenizers.check({"family": family, "text_encoder_3": False}, MODELS / name, texts)


def test_tokenizers_of_every_kind_pass(tmp_path, t5, clip):
    """BPE in the older files, pieces of sentences, bytes, and letters that nothing merges."""
    from transformers import ByT5Tokenizer, GemmaTokenizer

    as_older_files(clip / "tokenizer")
    tokenizers.check(SETTINGS, clip, [*PROMPTS, ""])
    letters = {piece: i for i, piece in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "▁", *"abcdefghiklnoqrstuw"])}
    several = pipeline_of(
        tmp_path / "several",
        tokenizer=("T5TokenizerFast", t5, {"vocab_size": 21}),
        tokenizer_2=("ByT5Tokenizer", ByT5Tokenizer(), {"vocab_size": 384}),
        tokenizer_3=(
            "GemmaTokenizerFast",
            GemmaTokenizer(vocab=letters, merges=[]),
            {"text_config": {"vocab_size": 64}},
        ),
        tokenizer_4=("CLIPTokenizer", tiny_parts.CLIP_TOKENIZER, {**CLIP, "eos_token_id": 2}),
        tokenizer_5=("PreTrainedTokenizerFast", tiny_parts.CLIP_TOKENIZER, CLIP),
    )
    tokenizers.check(SETTINGS, several, PROMPTS)


def without_merges(folder):
    edit(folder / "tokenizer.json", model={**read_json(folder / "tokenizer.json")["model"], "merges": []})


def older_without_merges(folder):
    as_older_files(folder)
    (folder / "merges.txt").unlink()


def without_end(folder):
    """As a conversion leaves it that forgets what is put around a text."""
    edit(folder / "tokenizer.json", post_processor=None)
    edit(folder.parent / "model_index.json", tokenizer=["transformers", "PreTrainedTokenizerFast"])


def padded_by_a_new_token(folder):
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)


CLIP_FAULTS = {
    "no vocabulary": (lambda f: (f / "tokenizer.json").unlink(), "no words.*tokenizer.json and vocab.json and merges"),
    "no folder": (shutil.rmtree, "folder is missing"),
    "empty": (lambda f: [path.unlink() for path in f.iterdir()], "knows no words"),
    "no merges": (without_merges, "knows no words: of 162 tokens"),
    "vocab.json alone": (older_without_merges, "cannot be loaded"),
    "cut short": (lambda f: (f / "tokenizer.json").write_text('{"version": "1.0", "mod'), "cannot be loaded"),
    "not a tokenizer": (lambda f: (f / "tokenizer.json").write_text('{"model": {"type": "X"}}'), "cannot be loaded"),
    "no configuration": (lambda f: (f / "tokenizer_config.json").unlink(), '1e\\+30 tokens.*"model_max_length": 16'),
    "longer than its encoder": (lambda f: edit(f / "tokenizer_config.json", model_max_length=77), "has 16 positions"),
    "another model's": (lambda f: edit(f.parent / "text_encoder/config.json", vocab_size=100), "tokens up to 159.*100"),
    "another end": (lambda f: edit(f.parent / "text_encoder/config.json", eos_token_id=150), "with token 161.*150"),
    "no end": (without_end, "ends texts with token 1.*looks for 161"),
    "padded by a new token": (padded_by_a_new_token, "pads with token 162.*knows 162"),
}  # fmt: skip


@pytest.mark.parametrize("fault", CLIP_FAULTS)
def test_a_tokenizer_that_knows_no_words_is_refused_in_a_sentence(clip, fault):
    spoil, message = CLIP_FAULTS[fault]
    spoil(clip / "tokenizer")
    with pytest.raises(DataError, match=message) as caught:
        tokenizers.check(SETTINGS, clip)
    said = str(caught.value)
    assert said.startswith(f"{clip / 'tokenizer'}: ") and said.endswith(".") and "\n" not in said


def test_every_tokenizer_of_a_pipeline_is_tried_but_one_that_is_not_loaded(tmp_path, t5):
    good = ("CLIPTokenizer", tiny_parts.CLIP_TOKENIZER, CLIP)
    folder = pipeline_of(
        tmp_path, tokenizer=good, tokenizer_2=good, tokenizer_3=("T5TokenizerFast", t5, {"vocab_size": 21})
    )
    (folder / "tokenizer_3/tokenizer.json").unlink()  # what is left of its vocabulary is a blank
    with pytest.raises(DataError, match="tokenizer_3: the T5TokenizerFast knows no words"):
        tokenizers.check({"family": "sd3", "text_encoder_3": True}, folder)
    tokenizers.check({"family": "sd3", "text_encoder_3": False}, folder, PROMPTS)
    (folder / "tokenizer_2/tokenizer.json").unlink()
    with pytest.raises(DataError, match="tokenizer_2: the CLIPTokenizer knows no words"):
        tokenizers.check({"family": "sd3", "text_encoder_3": False}, folder)


def test_words_added_without_their_embedding_are_refused_where_they_are_used(clip):
    """As of textual inversion, where the tokenizer was saved and the text encoder was not."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(clip / "tokenizer")
    tokenizer.add_tokens(["<cat-toy>"])
    tokenizer.save_pretrained(clip / "tokenizer")
    tokenizers.check(SETTINGS, clip, PROMPTS)
    with pytest.raises(DataError, match="gives token 162 for 'a <cat-toy> on the left', .* knows 162"):
        tokenizers.check(SETTINGS, clip, [*PROMPTS, "a <cat-toy> on the left"])


def test_texts_of_unknown_words_and_texts_that_are_one_are_refused(tmp_path, t5):
    folder = pipeline_of(tmp_path, tokenizer=("T5TokenizerFast", t5, {"vocab_size": 21}))
    tokenizers.check(SETTINGS, folder, [*PROMPTS, "a zebra on the left"])  # some words are always new
    with pytest.raises(DataError, match="does not know the words of 'zwei.*: of all texts, 6 of 6"):
        tokenizers.check(SETTINGS, folder, ["zwei rote Kreise", "zwei blaue Quadrate"])
    with pytest.raises(DataError, match="same tokens for 'red  circle' and 'red circle ', and"):
        tokenizers.check(SETTINGS, folder, ["red  circle", "red circle "])


@pytest.fixture(scope="module")
def text_models(tmp_path_factory):
    return {name: getattr(tiny_text, name)(tmp_path_factory.mktemp(name)) for name in ("distilbert", "gpt2")}


@pytest.fixture
def text_model(text_models, tmp_path):
    return lambda name: shutil.copytree(text_models[name], tmp_path / name)


@pytest.mark.parametrize("name", ["distilbert", "gpt2"])
@pytest.mark.parametrize("left", [[], ["tokenizer_config.json"]])
def test_a_text_model_without_its_vocabulary_is_refused(text_model, name, left):
    folder = text_model(name)
    tokenizers.check({"family": name}, folder, SENTENCES)
    for path in folder.glob("tokenizer*"):
        if path.name not in left:
            path.unlink()
    with pytest.raises(DataError, match=f"{folder}: the tokenizer (cannot be loaded|knows no words)"):
        tokenizers.check({"family": name}, folder, SENTENCES)


def test_padding_is_needed_only_where_texts_are_padded(text_model):
    folder = text_model("distilbert")
    known = read_json(folder / "tokenizer_config.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in known.items() if k != "pad_token"}))
    with pytest.raises(DataError, match='the tokenizer has no padding token.*"pad_token"'):
        tokenizers.check({"family": "distilbert"}, folder)
    tokenizers.check({"family": "gpt2"}, text_model("gpt2"))  # which has none


def test_a_sentence_is_judged_alike_whatever_it_is_padded_with(text_model):
    """Also where the tokenizer's files say that padding is on the left, as some are saved."""
    folder, family = text_model("distilbert"), load_family("distilbert")
    edit(folder / "tokenizer_config.json", padding_side="left")
    pipeline, settings = family.load({"dtype": "float32"}, folder), Reading(batch_size=2, max_length=12)
    with torch.no_grad():
        (short, _), (alone,) = (family.predict(pipeline, texts, settings) for texts in (SENTENCES, SENTENCES[:1]))
    assert torch.allclose(torch.tensor(short["logits"]), torch.tensor(alone["logits"]), atol=1e-5)


def test_text_without_two_tokens_is_a_sentence(text_models):
    family = load_family("gpt2")
    pipeline = family.load({"dtype": "float32"}, text_models["gpt2"])
    for texts in ([""], ["film"]):
        with pytest.raises(DataError, match=f"the texts give {len(texts[0]) > 0:d} tokens"):
            gpt2.windows(pipeline, texts, Reading(max_length=8))


def run(script, **arguments):
    words = {key.replace("_", "-"): value for key, value in arguments.items()}
    script.main([word for key, value in words.items() for word in (f"--{key}", str(value))])


def test_every_stage_tries_the_tokenizer_on_its_own_texts_before_it_loads_a_network(tmp_path, t5):
    """There is no network in these folders."""
    location = pipeline_of(tmp_path / "m", tokenizer=("T5TokenizerFast", t5, {"vocab_size": 21}))
    prompts, output = tmp_path / "prompts.txt", tmp_path / "made/manifest.json"
    prompts.write_text("zwei rote Kreise\nein blaues Quadrat\n")
    described = {"model": "m", "settings": SETTINGS, "location": str(location), "files": {}}
    manifest.write_json(tmp_path / "model.json", described)
    manifest.write_json(
        tmp_path / "checkpoint.json",
        {**described, "status": "ok", "method": "base", "model_settings": SETTINGS, "layers": {}},
    )
    sampling = json.dumps({"prompts": str(prompts), "images": 2, "seed": 0, "batch_size": 2, "steps": 1, "guidance": 1})
    with pytest.raises(DataError, match="words of 'zwei rote Kreise'"):
        run(generate, checkpoint=tmp_path / "checkpoint.json", sampling_name="s", sampling=sampling, output=output)
    entry = json.dumps({"prompts": str(prompts), "steps": 1, "timesteps": 1, "timesteps_per_prompt": 1})
    with pytest.raises(DataError, match="words of 'zwei rote Kreise'"):
        run(calibrate, model=tmp_path / "model.json", calibration=entry, output=output)
    assert not output.exists()


def test_the_model_stage_and_predictions_refuse_a_text_model_without_words(tmp_path, text_model):
    folder, output = text_model("gpt2"), tmp_path / "made/manifest.json"
    for path in folder.glob("tokenizer*"):
        path.unlink()
    settings = {"family": "gpt2", "path": str(folder), "dtype": "float32"}
    with pytest.raises(DataError, match="knows no words"):
        run(model_rule, model="m", settings=json.dumps(settings), output=output)
    texts = tmp_path / "texts.txt"
    texts.write_text("the film was good\n")
    made = {"status": "ok", "model": "m", "method": "base", "model_settings": settings, "location": str(folder)}
    manifest.write_json(tmp_path / "checkpoint.json", {**made, "layers": {}, "files": {}})
    sampling = json.dumps({"texts": str(texts), "batch_size": 2, "max_length": 8, "stride": None})
    with pytest.raises(DataError, match="knows no words"):
        run(predict, checkpoint=tmp_path / "checkpoint.json", sampling_name="s", sampling=sampling, output=output)
    assert not output.exists()
