"""The script that trains and evaluates the embedded models: its measures and its command line."""

import json

import pytest

from quantwatt.score import attribute_classifier as attributes
from training import classifier, loop, stages, train_embedded


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
    recipe = loop.Recipe(steps=3, batch=4, learning_rate=1e-3)
    monkeypatch.setattr(train_embedded, "TRAINING_PICTURES", 32)
    monkeypatch.setattr(classifier.train, "__defaults__", (recipe,))
    folders = ["--models", str(tmp_path / "models"), "--checkpoints", str(tmp_path / "checkpoints")]
    train_embedded.main(["attributes", *folders])
    assert isinstance(attributes.load(tmp_path / "models" / "attributes"), attributes.AttributeClassifier)
    record = stages.training_records(tmp_path / "checkpoints", train_embedded.RECIPES, {"vae": {"steps": 1}})
    assert record["attributes"]["steps_done"] == 3 and record["vae"] == {"steps": 1}
    json.dumps(record)
