"""Protocols that an experiment names: what it gets, what it overrides, and the published figures of its report."""

import pandas as pd
import plans
import pytest

from quantwatt.artifacts.errors import DataError
from quantwatt.config import inputs, protocols
from quantwatt.config.schemas import ConfigurationError
from quantwatt.data import datasets
from quantwatt.registry import names
from quantwatt.report.page import published

OWN = {"steps-20": {"prompts": "resources/prompts/shapes-test.txt", "images": 4, "steps": 2, "height": 64, "width": 64}}


def plan_with(protocol, **changes):
    """The embedded experiment by a protocol, without entries of its own unless they are given."""

    def change(entries):
        for key in ("samplings", "metrics", "reference"):
            entries.pop(key)
        entries.update(protocol=protocol, **changes)

    return plans.plan_of("embedded", change)


def test_a_protocol_gives_samplings_metrics_and_reference():
    found = plan_with("coco-5k", samplings={"coco": {"steps": 20, "height": 256}}).experiment
    assert found["samplings"].keys() == {"coco"}
    coco = found["samplings"]["coco"]
    assert (coco["prompts"], coco["images"]) == ("data/coco-2017/captions-5000.txt", 5000)
    assert (coco["steps"], coco["height"], coco["width"], coco["batch_size"]) == (20, 256, 512, 1)
    assert list(found["metrics"]) == ["fid", "kid", "clip-score", "psnr", "ssim"]
    assert found["reference"]["folder"] == "data/coco-2017/val2017.zip"


def test_own_entries_win_and_false_leaves_out():
    mine = {"folder": "resources/readme", "height": 64, "width": 64}
    plan = plan_with(
        "svdquant",
        samplings={**OWN, "mjhq": {"steps": 4, "images": 500}, "sdci": False},
        metrics={"lpips": False, "psnr": {"resamples": 200}, "flip": None},
        reference=mine,
    )
    found = plan.experiment
    assert found["samplings"].keys() == {"mjhq", "steps-20"} and found["samplings"]["mjhq"]["images"] == 500
    assert found["metrics"].keys() == {"fid", "clip-iqa", "clip-score", "psnr", "ssim", "flip"}
    assert found["metrics"]["psnr"]["resamples"] == 200 and found["reference"]["folder"] == mine["folder"]


@pytest.mark.parametrize(
    ("protocol", "changes", "words"),
    [
        ("svdqant", {}, "embedded.yaml: protocol: there is no 'svdqant' in .*did you mean 'svdquant'"),
        ("coco-5k", {}, "embedded.yaml: samplings.coco: the key 'steps' is missing"),
        ("torchao-drawbench", {}, "extractors.lpips-vgg: missing, and metric 'lpips-vgg' needs its 'weights'"),
        ("coco-5k", {"samplings": {"coco": {"step": 1}}}, "samplings.coco.*step"),
    ],
)
def test_what_is_wrong_is_one_sentence(protocol, changes, words):
    with pytest.raises(ConfigurationError, match=words):
        plan_with(protocol, **changes)


def test_every_protocol_says_what_it_is():
    for name in protocols.names():
        found = protocols.read(name)
        assert {"description", "source", "differences", "published", "samplings", "metrics"} <= found.keys(), name
        assert found["metrics"].keys() <= set(names("metrics"))
        for figure in found["published"]:
            assert figure.keys() == {"model", "method", "sampling", "metric", "value"}
            assert figure["sampling"] in found["samplings"] and figure["metric"] in found["metrics"]
        for sampling in found["samplings"].values():
            assert datasets.entries(sampling["prompts"]) >= sampling["images"]


def test_the_report_reads_the_published_figures():
    plan = plan_with("coco-5k", samplings={"coco": {"steps": 1}})
    assert '"source":"MS-COCO, arXiv 1405.0312"' in plan.slice("report", "protocol", {})
    assert plans.plan("embedded").slice("report", "protocol", {}) == "{}"


def test_published_figures_stand_beside_the_own():
    figure = {"model": "FLUX.1-dev", "method": "bf16", "sampling": "mjhq", "metric": "fid", "value": 20.3}
    columns = {"method": ["bf16", "w4", "w4"], "sampling": ["mjhq", "mjhq", "sdci"], "fid": [21.0, 22.0, 30.0]}
    [row] = published.beside([figure], pd.DataFrame(columns))
    assert row["title"] == "FID" and [each[:2] for each in row["own"]] == [("bf16", 21.0), ("w4", 22.0)]
    [row] = published.beside([figure | {"metric": "lpips"}], pd.DataFrame(columns))
    assert row["own"] == []


def test_a_hash_that_is_not_known_is_the_configurations():
    known, unknown = {"archive": "parti/PartiPrompts.tsv"}, {"archive": "mjhq-30k/meta_data.json"}
    plan = plans.plan("embedded")
    assert inputs.known_hash(plan, known) == []
    with pytest.raises(DataError, match=r"^config.yaml: data_sha256: mjhq-30k/meta_data.json: missing, and .*put it"):
        inputs.known_hash(plan, unknown)
    given = plans.plan_of("embedded", data_sha256={unknown["archive"]: "0" * 64})
    assert inputs.known_hash(given, unknown) == []
    assert given.slice("fetch", "sha256", unknown) == f'{{"mjhq-30k/meta_data.json":"{"0" * 64}"}}'
    with pytest.raises(ConfigurationError, match="data_sha256.mjhq-30k/meta_data.json: 'abc' does not fit"):
        plans.plan_of("embedded", data_sha256={unknown["archive"]: "abc"})
