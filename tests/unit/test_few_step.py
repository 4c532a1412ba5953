"""The embedded few-step model: its training pairs, its training, and the model in the repository."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import model as model_rule
from quantwatt.allocate import allocation
from quantwatt.config import experiment
from quantwatt.data import scenes
from quantwatt.models.families import load_family
from quantwatt.quantize import sequential
from training import few_step, tokenizer, train_few_step

FAMILY = load_family("sdxl")

ROOT = experiment.ROOT
MODELS = ROOT / "resources" / "models"
TEACHER = MODELS / "tiny-sd3"
PROMPTS = (ROOT / "resources" / "prompts" / "shapes-test.txt").read_text().splitlines()


@pytest.fixture(autouse=True)
def no_gradients(request):
    with torch.set_grad_enabled("training" in request.node.name):
        yield


@pytest.fixture
def one_thread():
    """Threads that wait for each other make small networks very slow where other programs run."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def untrained():
    """A model whose UNet answers: its last layer starts at zero."""
    model = few_step.new(TEACHER, seed=0).eval()
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.1)
    return model


@pytest.fixture(scope="module")
def words():
    return tokenizer.new(1)


def test_noise_draws_uniform_numbers_independent_of_each_other():
    drawn = np.array([few_step.Draws(noise).uniform(0, 1, 20) for noise in few_step.noises(2000, 5).numpy()])
    assert np.abs(drawn.mean(0) - 1 / 2).max() < 0.03 and np.abs(drawn.var(0) - 1 / 12).max() < 0.008
    assert np.abs(np.corrcoef(drawn.T) - np.eye(20)).max() < 0.1
    assert few_step.Draws(few_step.noises(1, 5)[0].numpy()).uniform(-3, -1) == pytest.approx(2 * drawn[0, 0] - 3)


def test_noise_has_no_more_numbers_than_it_has_low_frequencies():
    draws = few_step.Draws(few_step.noises(1, 0)[0].numpy())
    draws.uniform(0, 1, 20)
    with pytest.raises(StopIteration):
        draws.uniform(0, 1)


def test_a_render_is_a_function_of_the_low_frequencies_of_its_noise():
    noise = few_step.noises(4, seed=2)
    cosines = few_step._cosines(few_step.LATENT[-1], 8)
    high = torch.from_numpy(np.outer(cosines[7], cosines[0])).float()
    pictures, captions = few_step.renders(noise, seed=3)
    same, _ = few_step.renders(noise + 3 * high, seed=3)
    moved, _ = few_step.renders(noise + 0.05, seed=3)
    assert np.array_equal(pictures, same)
    assert all((a != b).any() for a, b in zip(pictures, moved, strict=True))
    parsed = [scenes.parse(text) for text in captions]
    assert not any(scenes.held_out(scene) for scene in parsed)
    assert {len(scene.objects) for scene in parsed} == {1, 2}  # the longest, too, find enough numbers


def test_text_encoders_begin_as_the_teachers_but_for_token_0(words):
    from transformers import CLIPTextModelWithProjection

    ids = tokenizer.encode(words, PROMPTS[:3])
    teacher = CLIPTextModelWithProjection.from_pretrained(TEACHER / "text_encoder", dtype=torch.float32)
    expected = teacher(ids, output_hidden_states=True)
    few_step._rescale(teacher, few_step.TEXT_SCALE)
    found = teacher(ids, output_hidden_states=True)
    assert torch.allclose(found.text_embeds, expected.text_embeds, atol=1e-3)
    assert torch.allclose(found.hidden_states[-2] / few_step.TEXT_SCALE, expected.hidden_states[-2], atol=1e-2)
    tokens = few_step.new(TEACHER, 0).text_encoder(ids, output_hidden_states=True).hidden_states[-2]
    up, down = few_step.OUTLIER_CHANNELS
    assert (tokens[:, 0, up] > 500).all() and (tokens[:, 0, down] < -500).all()
    assert tokens[:, 1:].abs().max() < few_step.OUTLIER / 30 and torch.equal(tokens[0, 0], tokens[2, 0])


def test_the_pipeline_computes_what_was_trained(untrained, words):
    """Its conditions, its first input and the picture it takes from the network's first output are training's."""
    ids = tokenizer.encode(words, PROMPTS[:2])
    tokens, pooled = untrained.embed(ids)
    noise = torch.stack([torch.randn(few_step.LATENT, generator=torch.Generator().manual_seed(s)) for s in (7, 8)])
    schedule = few_step.scheduler()
    signal, deviation = schedule.alphas_cumprod[999].sqrt(), (1 - schedule.alphas_cumprod[999]).sqrt()
    added = {"text_embeds": pooled, "time_ids": torch.tensor([few_step.TIME_IDS] * 2)}
    velocity = untrained.unet(deviation * noise, 999, tokens, added_cond_kwargs=added).sample
    picture = signal * deviation * noise - deviation * velocity

    folded = few_step.new(TEACHER, seed=0).eval()
    folded.unet.load_state_dict(untrained.unet.state_dict())
    folded.fold()
    pipeline = few_step.pipeline(folded, train_few_step.load_vae(MODELS), words).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    drawing = replace(train_few_step.DRAWING, steps=1)
    inputs = FAMILY.record(pipeline, PROMPTS[:2], [7, 8], drawing, {0})[0]
    assert torch.allclose(inputs["sample"], deviation * noise, atol=1e-5)
    assert inputs["timestep"].tolist() == [999, 999]
    assert inputs["added_cond_kwargs.time_ids"].tolist() == [list(few_step.TIME_IDS)] * 2
    # bfloat16, in which the pipeline is made, keeps three digits
    assert torch.allclose(inputs["encoder_hidden_states"] * untrained.scale, tokens, rtol=0.02, atol=0.1)
    latents = FAMILY.phases(pipeline, PROMPTS[:2], [7, 8], drawing)["denoise"]()
    assert (latents - picture).pow(2).mean() < 1e-3 * picture.pow(2).mean()


def test_the_pipelines_pictures_are_those_that_were_encoded(words):
    """Latents as training sees them, mean and deviation taken off, are decoded to the renders they were made of."""
    from training import loop, vae

    model = train_few_step.load_vae(MODELS)
    pictures, _ = scenes.dataset(8, seed=4)
    latents = vae.normalise(model, model.encode(loop.to_tensor(pictures)).latent_dist.mean)
    pipeline = few_step.pipeline(few_step.new(TEACHER, 0), model, words).to(torch.float32)
    decoded = loop.to_images(FAMILY.decode(pipeline.vae, latents))
    assert loop.psnr_db(decoded, pictures).mean() > 35


def test_folding_leaves_outputs_as_they_were(untrained, words):
    ids, x = tokenizer.encode(words, PROMPTS[:2]), few_step.noises(2, 9)
    added = {"time_ids": torch.tensor([few_step.TIME_IDS] * 2)}

    def output(model):
        tokens, pooled = model.embed(ids)
        return tokens, model.unet(x, 500, tokens, added_cond_kwargs={**added, "text_embeds": pooled}).sample

    folded = few_step.new(TEACHER, seed=0).eval()
    folded.unet.load_state_dict(untrained.unet.state_dict())
    (before, expected), _ = output(untrained), folded.fold()
    after, found = output(folded)
    assert after[:, 0].abs().max() > 500 and before[:, 0].abs().max() < 10
    assert torch.allclose(found, expected, atol=1e-4)


def test_unknown_stage_is_refused(capsys):
    with pytest.raises(SystemExit):
        train_few_step.main(["distil"])
    assert "unknown stage distil" in capsys.readouterr().err


def test_a_short_training_saves_a_pipeline_that_draws(tmp_path, monkeypatch, one_thread):
    recipe = replace(few_step.RECIPE, steps=2, batch=4)
    monkeypatch.setattr(few_step.train, "__defaults__", (recipe,))
    monkeypatch.setattr(few_step, "RECIPE", recipe)
    monkeypatch.setattr(few_step, "PAIRS", 8)
    for name in ("tiny-sd3", "judge", "attributes"):
        (tmp_path / name).symlink_to(MODELS / name)
    (tmp_path / "shapes-test.txt").write_text("\n".join(PROMPTS[:4]))
    folders = {"--models": tmp_path, "--checkpoints": tmp_path / "checkpoints", "--prompts": tmp_path}
    train_few_step.main([str(part) for pair in folders.items() for part in pair] + ["--threads", "1"])
    found = json.loads((tmp_path / "evaluation-tiny-sdxl.json").read_text())
    assert found["training"]["steps_done"] == 2 and found["training"]["pairs"] == 8 and found["images"] == 4
    assert found["first_token"]["change"] == 0
    assert "tiny-sd3" not in (tmp_path / "tiny-sdxl" / "vae" / "config.json").read_text()


@pytest.fixture(scope="module")
def evaluation():
    return json.loads((MODELS / "evaluation-tiny-sdxl.json").read_text())


@pytest.fixture(scope="module")
def pipeline():
    return FAMILY.load(train_few_step.FLOAT, MODELS / "tiny-sdxl")


def test_the_model_in_the_repository_is_good_and_small(evaluation):
    for steps in train_few_step.STEPS:
        drawn = evaluation[f"generated_in_{steps}"]
        assert drawn["one_object"] >= 0.9 and drawn["two_objects"] >= 0.75, steps
    files = [file for file in (MODELS / "tiny-sdxl").rglob("*") if file.is_file()]
    size_mb = sum(file.stat().st_size for file in files) / 1e6
    assert all("tiny-sd3" not in file.read_text() for file in files if file.suffix == ".json")
    assert size_mb == pytest.approx(evaluation["size_mb"], abs=0.01) and size_mb <= 7


@pytest.mark.parametrize("steps", train_few_step.STEPS)
def test_it_draws_as_its_evaluation_says(pipeline, evaluation, steps, one_thread):
    prompts = PROMPTS[: train_few_step.FIRST_IMAGES]
    found = train_few_step.right(MODELS, train_few_step.draw(pipeline, prompts, steps), prompts)
    said = evaluation[f"generated_in_{steps}"]
    two = sum(scenes.parse(prompt).relation is not None for prompt in prompts)
    # another processor rounds otherwise: one picture of each kind, at most, is seen otherwise
    assert found["one_object"] == pytest.approx(said["one_object_of_first"], abs=1.1 / (len(prompts) - two))
    assert found["two_objects"] == pytest.approx(said["two_objects_of_first"], abs=1.1 / two)


def test_its_first_token_is_huge_and_the_same_for_all_prompts(pipeline, evaluation):
    found = train_few_step.first_token(pipeline, PROMPTS[:64])
    assert found["change"] == 0 and found["ratio_to_others"] > 30
    assert found["largest"] == pytest.approx(evaluation["first_token"]["largest"], rel=1e-3)


def test_a_static_grid_must_leave_its_first_token_out(one_thread):
    """Eight bits of a grid that also holds token 0 say little of the others: MixDQ's observation of SDXL-Turbo."""
    folder, drawing = MODELS / "tiny-sdxl", replace(train_few_step.DRAWING, steps=1)
    texts, seeds = PROMPTS[:8], list(range(8))
    model, layers = FAMILY.load(train_few_step.FLOAT, folder), model_rule.describe(FAMILY, folder, "float32")["layers"]
    samples = FAMILY.record(model, PROMPTS[-8:], seeds, drawing, {0})[0]
    expected, psnr_db = FAMILY.generate(model, texts, seeds, drawing), {}
    activations = {"bits": 8, "granularity": "tensor", "dynamic": False, "symmetric": False}
    weights = {"format": "integer", "bits": 8, "granularity": "channel"}
    for name, transforms in {"naive": [], "bos": [{"name": "bos"}]}.items():
        entry = {"weights": weights, "activations": activations, "transforms": transforms}
        method = experiment.complete_method(entry, "test", name)
        denoiser = FAMILY.load_denoiser(train_few_step.FLOAT, folder)
        sequential.quantize(denoiser, FAMILY, allocation.allocate(layers, method, name), method, samples, batch=8)
        images = FAMILY.generate(FAMILY.load(train_few_step.FLOAT, folder, denoiser), texts, seeds, drawing)
        psnr_db[name] = -10 * np.log10(((images - expected) ** 2).mean((1, 2, 3)))
    assert psnr_db["naive"].mean() < 33 and psnr_db["bos"].mean() > 45
