"""The script that trains and measures the embedded models: its measures and its command line."""

import json

import numpy as np
import pytest
import torch

import train_embedded
from quantwatt import attributes
from quantwatt.embedded import classifier, training


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_round_to_nearest_keeps_zero_and_errs_by_half_a_step(bits):
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(bits))
    weight[:, 0] = 0
    rounded = train_embedded.round_to_nearest(weight, bits)
    step = (weight.amax(1) - weight.amin(1)) / (2**bits - 1)
    assert (rounded[:, 0] == 0).all()
    assert all(len(row.unique()) <= 2**bits for row in rounded)
    # the grid is moved by up to half a step to hit zero, which may cost that much at its ends
    assert ((rounded - weight).abs().amax(1) <= step * 1.001).all()


def test_frechet_distance_is_that_of_normal_distributions():
    features = np.random.default_rng(0).normal(size=(4000, 5))
    assert train_embedded.frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert train_embedded.frechet_distance(features, features + 2) == pytest.approx(5 * 4)
    assert train_embedded.frechet_distance(features, 3 * features) == pytest.approx(5 * 4, rel=0.1)


def test_unknown_stage_is_refused(capsys):
    with pytest.raises(SystemExit):
        train_embedded.main(["flux"])
    assert "unknown stage flux" in capsys.readouterr().err


def test_prompts_are_written_as_they_lie_in_the_repository(tmp_path, request):
    train_embedded.main(["prompts", "--prompts", str(tmp_path)])
    shipped = request.config.rootpath / "resources" / "prompts"
    for name in ("shapes-test.txt", "shapes-calibration.txt"):
        assert (tmp_path / name).read_text() == (shipped / name).read_text()


def test_a_short_training_saves_a_classifier(tmp_path, monkeypatch):
    recipe = training.Recipe(steps=3, batch=4, learning_rate=1e-3)
    monkeypatch.setattr(train_embedded, "TRAINING_PICTURES", 32)
    monkeypatch.setattr(classifier.train, "__defaults__", (recipe,))
    folders = ["--models", str(tmp_path / "models"), "--checkpoints", str(tmp_path / "checkpoints")]
    train_embedded.main(["attributes", *folders])
    assert isinstance(attributes.load(tmp_path / "models" / "attributes"), attributes.AttributeClassifier)
    record = train_embedded.training_record(tmp_path / "checkpoints", {"vae": {"steps": 1}})
    assert record["attributes"]["steps_done"] == 3 and record["vae"] == {"steps": 1}
    json.dumps(record)
