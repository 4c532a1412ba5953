"""What is read of samplings, calibrations and sensitivities: every key of their schemas, and no other."""

import dataclasses
import json

import pytest

from quantwatt.config import schemas
from quantwatt.models import sampling
from quantwatt.models.sampling import Calibration, Drawing, Reading, Sampling, TextSampling


def keys(schema):
    return schemas.schema(schema)["properties"].keys()


def names(kind):
    return {field.name for field in dataclasses.fields(kind)}


def test_every_key_of_a_schema_is_read():
    assert names(Sampling) == keys("samplings/image")
    assert names(TextSampling) == keys("samplings/text")
    assert names(Calibration) >= keys("calibrations/image")
    assert names(TextSampling) | {"samples"} >= keys("calibrations/text")
    assert names(Sampling) - {"cycle", "trajectory"} <= keys("sensitivity")


@pytest.mark.parametrize(("kind", "schema"), [(Sampling, "samplings/image"), (TextSampling, "samplings/text")])
def test_what_has_a_default_in_both_has_the_same(kind, schema):
    properties = schemas.schema(schema)["properties"]
    ours = {field.name: field.default for field in dataclasses.fields(kind)}
    for name in names(kind) - names(Drawing) - {"max_length"}:  # a drawing's is the pipeline's
        if "default" in properties[name]:
            assert ours[name] == properties[name]["default"]


@pytest.mark.parametrize(
    "entry", [{"prompts": "p.txt", "steps": 2, "guidance": 3}, {"texts": "t.txt", "max_length": 8}]
)
def test_a_fresh_process_reads_what_the_script_read(entry):
    found = sampling.of_json(json.dumps({**entry, "else": 1}))
    assert type(found) is (TextSampling if "texts" in entry else Sampling)
    assert sampling.of(found.to_settings()) == found
    assert found.seed == (None if "texts" in entry else 0)


def test_the_samples_of_a_calibration_are_items():
    assert Reading.from_settings({"samples": 5, "max_length": 8}) == Reading(items=5, max_length=8)


def test_a_sampling_has_steps_and_a_drawing_may_leave_them_to_the_family():
    assert Drawing.from_settings({"prompts": "p.txt"}).steps is None
    with pytest.raises(TypeError, match="steps"):
        Sampling.from_settings({"prompts": "p.txt"})
