"""DistilBERT and GPT-2 as families: loaded, taken apart, quantized by every solver, and used for predictions."""

import itertools
import json
from dataclasses import replace

import pytest
import tiny_text
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from quantwatt import registry
from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment
from quantwatt.data import sources
from quantwatt.models.families import gpt2, load_family
from quantwatt.models.sampling import Reading
from quantwatt.quantize import sequential

SETTINGS = {"dtype": "float32"}
CALIBRATION = Reading(items=24, max_length=12)
SAMPLING = Reading(batch_size=5, max_length=12, new_tokens=4)
NAMES = ("distilbert", "gpt2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: getattr(tiny_text, name)(tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def family(name):
    return load_family(name)


@pytest.fixture
def pipeline(family, name, folders):
    return family.load(SETTINGS, folders[name])


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def texts(name, n=40):
    return tiny_text.sentences(n) if name == "distilbert" else [" ".join(tiny_text.sentences(n))]


def method_of(name, bits=3, **entry):
    plain = {"solver": {"name": name}, "weights": {"format": "integer", "bits": bits}}
    return experiment.complete_method(plain | entry, "test", name)


def quantized(family, folder, method, samples, batch=8):
    """(network, reports) of a fresh network."""
    network = family.load_denoiser(SETTINGS, folder)
    formats = {"weights": method["weights"], "activations": method["activations"]}
    allocation = dict.fromkeys(family.quantizable(network), formats)
    _, reports = sequential.quantize(network, family, allocation, method, samples, batch=batch)
    return network, reports


def test_linear_layers_of_gpt2_compute_what_its_own_layers_do(folders):
    from transformers import AutoModelForCausalLM

    stored = AutoModelForCausalLM.from_pretrained(folders["gpt2"]).eval()
    own = load_family("gpt2").load_denoiser(SETTINGS, folders["gpt2"])
    ids = torch.arange(20)[None]
    assert torch.allclose(own(input_ids=ids).logits, stored(input_ids=ids).logits, atol=1e-5)
    layer = own.get_submodule("transformer.h.0.mlp.c_fc")
    assert (layer.in_features, layer.out_features) == (32, 128)
    assert not [m for m in own.modules() if type(m).__name__ == "Conv1D"]


def test_architecture_without_memory_is_the_loaded_one(family, name, folders):
    network, empty = family.load_denoiser(SETTINGS, folders[name]), family.meta_denoiser(folders[name])
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    shapes = {name: p.shape for name, p in network.named_parameters()}
    assert {name: p.shape for name, p in empty.named_parameters()} == shapes
    assert family.quantizable(empty) == family.quantizable(network)
    assert family.segments(empty) == {}


def test_stages_hold_every_layer_of_a_block_once(family, pipeline):
    first = f"{family.blocks(pipeline.model)[0]}."
    names = [name.removeprefix(first) for name in family.quantizable(pipeline.model) if name.startswith(first)]
    stages = family.stages(names)
    assert sorted(itertools.chain(*stages)) == sorted(names) and len(stages) == 4
    with pytest.raises(ValueError, match="unknown: of no stage"):
        family.stages([*names, "unknown"])


def test_blocks_walked_one_by_one_give_the_networks_output(family, pipeline, name):
    from quantwatt.quantize.streams import BlockActivations

    samples = family.record(pipeline, texts(name), CALIBRATION)
    streams, walked, blocks = BlockActivations(pipeline.model, family, samples, 8), [], []
    while streams.block:
        block = pipeline.model.get_submodule(streams.block)
        walked.append(streams.batches[0]["hidden_states"])
        blocks.append(streams.block)
        streams.advance(block)
    whole = pipeline.model(**{key: value[:8] for key, value in samples.items()}, output_hidden_states=True)
    assert blocks == family.blocks(pipeline.model)
    for found, expected in zip(walked, whole.hidden_states, strict=False):
        assert torch.allclose(found, expected, atol=1e-5)


SOLVERS = {
    "rtn": {},
    "hqq": {"weights": {"format": "integer", "bits": 3, "granularity": "group", "group_size": 32,
                        "zero_point": "float"}},
    "gptq": {"activations": {"bits": 8}},
    "qronos": {},
    "brecq": {"solver": {"name": "brecq", "iterations": 4, "batch_size": 8}},
}  # fmt: skip


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_walks_the_network(family, pipeline, name, folders, solver):
    samples = family.record(pipeline, texts(name), CALIBRATION)
    network, reports = quantized(family, folders[name], method_of(solver, **SOLVERS[solver]), samples)
    assert list(reports) == family.quantizable(pipeline.model)
    assert all(0 < report["relative_error"] < 1 for report in reports.values())
    outputs = network(**samples).logits
    assert outputs.isfinite().all() and not torch.equal(outputs, pipeline.model(**samples).logits)


def test_transforms_and_static_activations_walk_the_network(family, pipeline, name, folders):
    static = {"bits": 8, "granularity": "tensor", "dynamic": False}
    transforms = [{"name": "smoothing"}, {"name": "low-rank", "rank": 2, "iterations": 1}]
    samples = family.record(pipeline, texts(name), CALIBRATION)
    method = method_of("rtn", bits=8, activations=static, transforms=transforms)
    network, _ = quantized(family, folders[name], method, samples)
    truth, found = pipeline.model(**samples).logits, network(**samples).logits
    assert 0 < (found - truth).norm() < 0.2 * truth.norm()


def test_gptq_beats_rounding_on_the_networks_output(family, pipeline, name, folders):
    calibration = Reading(items=96, max_length=12)
    samples = family.record(pipeline, texts(name, 200), calibration)
    truth, errors = pipeline.model(**samples).logits, {}
    for solver in ("rtn", "gptq"):
        network, _ = quantized(family, folders[name], method_of(solver), samples)
        errors[solver] = ((network(**samples).logits - truth).norm() / truth.norm()).item()
    assert errors["gptq"] < 0.9 * errors["rtn"]


def test_statistics_see_no_padding(folders, monkeypatch):
    """The Hessians of padded samples are those of the same sentences one by one, which have no padding."""
    family, solver = load_family("distilbert"), registry.load("solvers", "gptq").Solver
    pipeline, seen, real = family.load(SETTINGS, folders["distilbert"]), [], solver.solve

    def solve(self, weight, weight_format, statistics):
        seen.append((statistics.hessian.value, statistics.hessian.tokens))
        return real(self, weight, weight_format, statistics)

    monkeypatch.setattr(solver, "solve", solve)
    sentences = tiny_text.sentences(8)
    samples = family.record(pipeline, sentences, CALIBRATION)
    assert not samples["attention_mask"].all()
    whole = method_of("gptq", solver={"name": "gptq", "held_out": 0})  # of all samples
    quantized(family, folders["distilbert"], whole, samples)
    layer, products, tokens = pipeline.model.get_submodule(f"{family.BLOCKS}.0.attention.q_lin"), 0, 0

    def add(module, args):
        nonlocal products, tokens
        rows = args[0].reshape(-1, args[0].shape[-1])
        products, tokens = products + rows.T @ rows, tokens + len(rows)

    layer.register_forward_pre_hook(add)
    for sentence in sentences:
        family.predict(pipeline, [sentence], replace(SAMPLING, batch_size=1))
    assert seen[0][1] == tokens
    assert torch.allclose(seen[0][0], 2 * products / tokens, rtol=1e-3, atol=1e-4)


def test_padding_changes_neither_what_brecq_learns_nor_its_error(folders):
    """Sentences padded to their longest, and to the model's end: the same tokens, and so the same weights."""
    family, found = load_family("distilbert"), []
    pipeline = family.load(SETTINGS, folders["distilbert"])
    method = method_of("brecq", solver={"name": "brecq", "iterations": 40, "learning_rate": 0.05, "batch_size": 24})
    for settings in ({}, {"padding": "max_length"}):
        samples = family.record(pipeline, texts("distilbert"), Reading(items=24, max_length=24, **settings))
        network, reports = quantized(family, folders["distilbert"], method, samples, batch=24)
        weights = torch.cat([p.flatten() for p in network.state_dict().values() if p.is_floating_point()])
        found.append((weights, [report["relative_error"] for report in reports.values()]))
    (weights, errors), (padded_weights, padded_errors) = found
    assert samples["input_ids"].shape[1] == 24 and not samples["attention_mask"][..., 14:].any()
    assert padded_errors == pytest.approx(errors, rel=0.005)
    assert (weights != padded_weights).float().mean() < 0.01  # codes on the brink go either way


def test_sentences_are_classified_alike_in_any_batch(folders):
    family = load_family("distilbert")
    pipeline = family.load(SETTINGS, folders["distilbert"])
    sentences = tiny_text.sentences(11)
    together, alone = (family.predict(pipeline, sentences, replace(SAMPLING, batch_size=n)) for n in (11, 1))
    for a, b in zip(together, alone, strict=True):
        assert a["logits"] == pytest.approx(b["logits"], abs=1e-4)
        assert a["label"] == max(range(2), key=a["logits"].__getitem__)


def test_likelihood_of_windows_is_that_of_the_library(folders):
    family = load_family("gpt2")
    pipeline = family.load(SETTINGS, folders["gpt2"])
    found = family.predict(pipeline, texts("gpt2"), SAMPLING)
    ids, _ = gpt2.windows(pipeline, texts("gpt2"), SAMPLING)
    assert ids.shape == (len(found), 12)
    for window, item in zip(ids, found, strict=True):
        mean = pipeline.model(input_ids=window[None], labels=window[None]).loss.item()
        assert item["nll"] == pytest.approx(11 * mean, rel=1e-5) and item["tokens"] == 11


def test_overlapping_windows_count_every_token_once(folders):
    family = load_family("gpt2")
    pipeline = family.load(SETTINGS, folders["gpt2"])
    found = family.predict(pipeline, texts("gpt2"), replace(SAMPLING, stride=4, items=6))
    assert [item["tokens"] for item in found] == [11] + [4] * 5
    ids = pipeline.tokenizer(texts("gpt2")[0]).input_ids
    logits = pipeline.model(input_ids=torch.tensor([ids[8:20]])).logits[0, 7:11].log_softmax(-1)
    expected = -sum(row[token].item() for row, token in zip(logits, ids[16:20], strict=True))
    assert found[2]["nll"] == pytest.approx(expected, rel=1e-4)


def first_batch(family, pipeline, name):
    [batch] = family.batches(pipeline, texts(name), SAMPLING, 5, 1)
    return batch


def test_what_is_timed_is_what_is_predicted(family, pipeline, name):
    batch = first_batch(family, pipeline, name)
    run = family.prepare(pipeline, batch, None, SAMPLING)
    logits, predicted = run(), family.predict(pipeline, texts(name), SAMPLING)[:5]
    work = family.work(pipeline, batch, SAMPLING)
    assert len(logits) == 5 == work["items"]
    if name == "distilbert":
        for row, item in zip(logits.tolist(), predicted, strict=True):
            assert row == pytest.approx(item["logits"], abs=1e-5)
        lengths = [len(sentence.split()) + 2 for sentence in texts(name)[:5]]
        assert work["tokens"] == sum(min(length, 12) for length in lengths)
        assert work["padded_tokens"] == 5 * min(max(lengths), 12)
    else:
        ids, _ = gpt2.windows(pipeline, texts(name), SAMPLING)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:5, 1:].flatten())
        assert sum(item["nll"] for item in predicted) == pytest.approx(loss.item() * 55, rel=1e-5)
        assert work == {"items": 5, "tokens": 60, "padded_tokens": 60, "new_tokens": 20}


def test_nothing_is_tokenized_while_it_is_timed(family, pipeline, name, monkeypatch):
    runs = family.phases(pipeline, first_batch(family, pipeline, name), None, SAMPLING)
    monkeypatch.setattr(pipeline, "tokenizer", None)
    for run in runs.values():
        assert torch.equal(run(), run())


class Waits(TorchDispatchMode):
    """Counts values that are read back from a tensor: on a GPU the host waits for each."""

    n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [SAMPLING, replace(SAMPLING, padding="max_length")], ids=["longest", "padded"])
def test_the_host_waits_for_nothing_while_it_is_timed(family, pipeline, name, settings):
    runs = family.phases(pipeline, first_batch(family, pipeline, name), None, settings)
    with Waits() as waits:
        assert (torch.ones(1) > 0).all() and waits.n == 1
        for run in runs.values():
            run()
    assert waits.n == 1


def test_decoding_with_a_cache_writes_what_whole_passes_would(folders):
    family = load_family("gpt2")
    pipeline = family.load(SETTINGS, folders["gpt2"])
    decode = family.phases(pipeline, first_batch(family, pipeline, "gpt2"), None, SAMPLING)["decode"]
    ids = gpt2.windows(pipeline, texts("gpt2"), SAMPLING)[0][:5, :6]
    for _ in range(5):  # the one that the prompt itself gives, then four
        ids = torch.cat([ids, pipeline.model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(decode(), ids[:, -1:])
    assert torch.equal(decode(), ids[:, -1:])  # the cache is cut back before


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_whole_network_computes_in_its_type(family, name, folders, dtype):
    pipeline = family.load({"dtype": dtype}, folders[name])
    assert {p.dtype for p in pipeline.model.parameters()} == {getattr(torch, dtype)}
    run = family.prepare(pipeline, first_batch(family, pipeline, name), None, SAMPLING)
    assert run().dtype == getattr(torch, dtype) and run().isfinite().all()


def test_samples_are_cut_at_the_models_end(family, pipeline, name):
    samples = family.record(pipeline, texts(name, 200), Reading(items=3, max_length=1000))
    assert samples["input_ids"].shape[1] <= pipeline.model.config.max_position_embeddings == 24


def test_labelled_and_plain_sentences_are_read(tmp_path):
    table = tmp_path / "dev.tsv"
    table.write_text("sentence\tlabel\nit 's a \"charming journey .\t1\nunflinchingly bleak \t0\n")
    assert sources.read_sentences(table) == (["it 's a \"charming journey .", "unflinchingly bleak"], [1, 0])
    table.write_text("one\n\ntwo\n")
    assert sources.read_sentences(table) == (["one", "two"], None)
    assert sources.read_running_text(table) == (["one\n\ntwo\n"], None)


def test_only_line_ends_end_a_sentence_and_a_mark_of_byte_order_is_none(tmp_path):
    table = tmp_path / "dev.tsv"
    table.write_bytes("\ufeffsentence\tlabel\r\na\u2028b\x85c\x0bd\t1\r\n".encode())
    assert sources.read_sentences(table) == (["a\u2028b\x85c\x0bd"], [1])
    table.write_text("\ufeffone\x0ctwo\n\nthree", encoding="utf-8")
    assert sources.read_sentences(table) == (["one\x0ctwo", "three"], None)
    assert sources.read_running_text(table) == (["one\x0ctwo\n\nthree"], None)
    table.write_text("a sentence, and more\n")
    assert sources.read_sentences(table) == (["a sentence, and more"], None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("  \n", "is empty"),
        ("sentence\tlabel\nfine\t-1\n", "line 2: the label is '-1'"),
        ("sentence,label\nfine,1\n", "the columns are separated by ','; separate them by tabs"),
        ('"idx";"label";"sentence"\n0;1;fine\n', "separated by ';'"),
    ],
)
def test_files_that_hold_no_texts_are_refused(tmp_path, content, message):
    path = tmp_path / "texts.tsv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        sources.read_sentences(path)


def test_schemas_say_that_these_models_read_text(name):
    schema = json.loads((registry.SCHEMAS / f"families/{name}.schema.json").read_text())
    assert schema["x-kind"] == "text" and schema["properties"]["family"]["const"] == name


def test_batches_follow_one_another_and_are_enough(family, pipeline, name):
    settings = replace(SAMPLING, max_length=4)
    first, second = family.batches(pipeline, texts(name), settings, 3, 2)
    whole = texts(name) if name == "distilbert" else gpt2.windows(pipeline, texts(name), settings)[0].tolist()
    assert [*map(list, first), *map(list, second)] == [list(item) for item in whole[:6]]
    with pytest.raises(DataError, match="are too few for 900 batches of 3"):
        family.batches(pipeline, texts(name), settings, 3, 900)
