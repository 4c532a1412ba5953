"""The embedded models as they lie in the repository load as documented and are as good as they need to be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from quantwatt import attributes, scenes
from quantwatt.embedded import flow, judge, muon, tokenizer, training, vae  # before open_clip

MODELS = Path(__file__).parents[2] / "resources" / "models"
PROMPTS = Path(__file__).parents[2] / "resources" / "prompts"


@pytest.fixture(scope="module")
def pipe():
    return flow.load(MODELS / "tiny-sd3")


@pytest.fixture(scope="module")
def critic():
    return judge.Judge(MODELS / "judge")


@pytest.mark.parametrize(("name", "limit_mb"), [("tiny-sd3", 10), ("judge", 3), ("attributes", 1.5)])
def test_models_are_small(name, limit_mb):
    files = [file for file in (MODELS / name).rglob("*") if file.is_file()]
    assert 0 < sum(file.stat().st_size for file in files) / 1e6 <= limit_mb


def test_models_name_no_path():
    for file in MODELS.rglob("*.json"):
        assert '"/' not in file.read_text(), file


def test_tokenizer_knows_every_caption_word(pipe):
    found = pipe.tokenizer
    assert found.eos_token_id == len(found) - 1 and found.eos_token_id != 2
    for text in (PROMPTS / "shapes-test.txt").read_text().splitlines():
        ids = found(text).input_ids
        assert len(ids) == len(text.split()) + 2 <= tokenizer.CONTEXT


def test_autoencoder_reconstructs(pipe):
    images, _ = scenes.dataset(32, seed=81, held=True)
    assert vae.reconstruction_db(pipe.vae, images) >= 30


@pytest.fixture
def one_thread():
    """Threads that wait for each other make small networks very slow where other programs run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_pipeline_draws_what_it_is_asked(pipe, one_thread):
    prompts = (PROMPTS / "shapes-test.txt").read_text().splitlines()[:16]
    images = flow.sample(pipe, prompts, seed=0, steps=10)
    right, _ = attributes.all_right(attributes.load(MODELS / "attributes"), images, prompts)
    assert right.mean() >= 0.8


def test_same_seed_draws_the_same_picture(pipe, one_thread):
    prompts = (PROMPTS / "shapes-test.txt").read_text().splitlines()[:2]
    first, again, other = (flow.sample(pipe, prompts, seed=seed, steps=2) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_linear_layers_divide_into_groups_of_64(pipe):
    linears = [m for m in pipe.transformer.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) > 80
    assert all(linear.in_features % 64 == 0 for linear in linears)


def test_judge_ranks_the_right_caption_first(critic):
    images, captions = scenes.dataset(256, seed=82, held=True)
    for attribute, accuracy in judge.ranking(critic, images, captions, seed=83).items():
        assert accuracy >= 0.93, attribute


def test_judge_is_an_open_clip_model(critic):
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{MODELS / 'judge'}")
    texts = (PROMPTS / "shapes-test.txt").read_text().splitlines()[:4]
    ids = open_clip.get_tokenizer(f"local-dir:{MODELS / 'judge'}")(texts)
    images, _ = scenes.dataset(4, seed=84)
    with torch.no_grad():
        assert torch.allclose(model.encode_text(ids, normalize=True), critic.captions(texts), atol=1e-5)
    prepared = torch.stack([preprocess(Image.fromarray(image)) for image in images])
    assert torch.allclose(prepared, training.to_tensor(images), atol=1e-5)


def test_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path):
    recipe = training.Recipe(steps=8, batch=4, learning_rate=0.01, muon=True, warmup=2)
    target = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))

    class Interrupted(Exception):
        pass

    def run(checkpoint, stop=None):
        torch.manual_seed(1)
        model = torch.nn.Linear(8, 6)

        def loss_of(step, generator):
            if step == stop:
                raise Interrupted
            x = torch.randn(recipe.batch, 8, generator=generator)
            return {"loss": (model(x) - x @ target.T).pow(2).mean()}

        training.train("line", model, loss_of, recipe, checkpoint, seed=0, every=3)
        return model.weight.detach()

    expected = run(tmp_path / "whole.pt")
    with pytest.raises(Interrupted):
        run(tmp_path / "part.pt", stop=5)
    assert torch.equal(run(tmp_path / "part.pt"), expected)


def test_learning_rate_warms_up_holds_and_decays():
    recipe = training.Recipe(steps=100, batch=1, learning_rate=1.0, warmup=10, decay=0.5, final=0.2)
    factors = [training.rate_factor(step, recipe) for step in (0, 9, 40, 75, 100)]
    assert factors == pytest.approx([0.1, 1, 1, 0.6, 0.2])


@pytest.mark.parametrize("shape", [(3, 16, 64), (2, 64, 16)])
def test_orthogonalised_updates_have_singular_values_near_one(shape):
    updates = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(muon.orthogonalise(updates).float())
    assert values.min() > 0.5 and values.max() < 1.3
