"""Public data: what is downloaded, from where, and that its content is checked."""

import dataclasses
import json
import re
import resource
from pathlib import Path

import fetched_from
import pytest
import yaml

import dataset
import fetch
from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment
from quantwatt.data import captions, datasets, prompt_sets, prompts, sources

SST2 = fetched_from.archive(fetched_from.SST2)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A publisher of a small SST-2, and a project without data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with fetched_from.Server({"/SST-2.zip": SST2, "/other.zip": b"other bytes"}) as server:
        known = datasets.Archive((f"{server.address}/SST-2.zip",), fetched_from.sha256(SST2))
        monkeypatch.setitem(datasets.ARCHIVES, "sst2/SST-2.zip", known)
        yield server


def known(name, **changes):
    """Change what is known of an archive or a file."""
    for registry in (datasets.ARCHIVES, datasets.EXTRACTS):
        if name in registry:
            registry[name] = dataclasses.replace(registry[name], **changes)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    for name in ("ARCHIVES", "EXTRACTS"):
        monkeypatch.setattr(datasets, name, dict(getattr(datasets, name)))


def script_of(path):
    return dataset if datasets.name_of(path) in datasets.EXTRACTS else fetch


def refused(*arguments):
    with pytest.raises(DataError) as caught:
        script_of(arguments[0]).main(["--output", *arguments])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(name, content):
    path = Path("data", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_an_archive_is_fetched_and_a_file_made_of_it(server):
    fetch.main(["--output", "data/sst2/SST-2.zip"])
    assert server.asked == ["/SST-2.zip"] and Path("data/sst2/SST-2.zip").read_bytes() == SST2
    known("sst2/dev.tsv", entries=2)
    dataset.main(["--archive", "data/sst2/SST-2.zip", "--output", "data/sst2/dev.tsv"])
    assert sources.read_sentences("data/sst2/dev.tsv") == (["a fine film .", 'a "poor" one .'], [1, 0])
    assert sorted(path.name for path in Path("data/sst2").iterdir()) == ["SST-2.zip", "dev.tsv"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("{server}/other.zip", "its sha256 is"),
        ("{server}/nothing.zip", "Not Found"),
        ("http://127.0.0.1:1/SST-2.zip", "Connection refused"),
        ("{server}/broken.zip", "the connection broke after"),
        ("SST-2.zip", "unknown url type"),
    ],
)
def test_an_address_that_does_not_give_it(server, address, words):
    server.files["/broken.zip"], server.broken = SST2, ("/broken.zip",)
    address = address.format(server=server.address)
    good = datasets.ARCHIVES["sst2/SST-2.zip"].addresses
    known("sst2/SST-2.zip", addresses=(address,))
    sentence = refused("data/sst2/SST-2.zip")
    assert sentence.startswith(f"data/sst2/SST-2.zip: cannot be fetched from {address} (") and words in sentence
    assert sentence.endswith("fetch it on another machine and put it there.")
    assert list(Path("data/sst2").iterdir()) == []
    known("sst2/SST-2.zip", addresses=(address, *good))  # the next address is asked
    fetch.main(["--output", "data/sst2/SST-2.zip"])
    assert Path("data/sst2/SST-2.zip").read_bytes() == SST2


def test_a_mirror_is_asked_first(server, tmp_path):
    (tmp_path / "mirror.zip").write_bytes(SST2)
    fetch.main(["--output", "data/sst2/SST-2.zip", "--address", f"file://{tmp_path}/mirror.zip"])
    assert server.asked == [] and Path("data/sst2/SST-2.zip").read_bytes() == SST2


def test_a_full_disk_is_not_blamed_on_the_address(server):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(SST2) // 2, limits[1]))
    try:
        sentence = refused("data/sst2/SST-2.zip")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sentence.startswith("data/sst2/SST-2.zip: cannot be written: ") and not list(Path("data/sst2").iterdir())


def test_what_is_there_is_never_written_over(server):
    put("sst2/SST-2.zip", b"mine")
    assert "it is there already" in refused("data/sst2/SST-2.zip")
    put("sst2/dev.tsv", b"mine too")
    assert "it is there already" in refused("data/sst2/dev.tsv")
    assert Path("data/sst2/SST-2.zip").read_bytes() == b"mine" and not server.asked


@pytest.mark.parametrize(
    ("name", "entries", "members"),
    [
        ("sst2/dev.tsv", 2, fetched_from.SST2),
        ("wikitext-2-raw/wiki.test.raw", 4, fetched_from.WIKITEXT),
        ("coco-2017/captions-5000.txt", 3, fetched_from.coco([7, 3, 42])),
    ],
)
def test_files_of_the_true_layouts(monkeypatch, tmp_path, name, entries, members):
    monkeypatch.chdir(tmp_path)
    part = datasets.EXTRACTS[name]
    put(part.archive, fetched_from.archive(members))
    known(name, entries=entries + 1)
    assert f"{entries} " in refused(f"data/{name}") and not Path("data", name).exists()
    known(name, entries=entries)
    dataset.main(["--output", f"data/{name}"])
    text = Path("data", name).read_text()
    if name.startswith("coco"):
        lines = text.splitlines()
        assert [re.fullmatch(r"A thing (\d+) seen [01] times\.", line)[1] for line in lines] == ["3", "7", "42"]
    else:
        assert text == members[part.member]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no archive", "not a readable ZIP archive; delete it"),
        (SST2[:-40], "not a readable ZIP archive; delete it"),
        (fetched_from.archive({"other.tsv": ""}), "holds no SST-2/dev.tsv; delete it"),
        (
            fetched_from.archive({"SST-2/dev.tsv": "sentence\tlabel\ngood\tyes\n"}),
            "SST-2/dev.tsv: line 2: the label is",
        ),
        (fetched_from.archive({"SST-2/dev.tsv": "sentence,label\ngood,1\n"}), "separate them by tabs"),
        (fetched_from.archive({"SST-2/dev.tsv": ""}), "SST-2/dev.tsv: the file is empty"),
    ],
)
def test_an_archive_that_holds_something_else(monkeypatch, tmp_path, content, words):
    monkeypatch.chdir(tmp_path)
    put("sst2/SST-2.zip", content)
    sentence = refused("data/sst2/dev.tsv")
    assert sentence.startswith("data/sst2/SST-2.zip: ") and words in sentence and ".part" not in sentence
    assert not Path("data/sst2/dev.tsv").exists()


def test_what_a_licence_reserves_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert refused("data/imagenet/train") == f"data/imagenet/train: {datasets.YOURS['imagenet/train'].sentence}"
    images = "data/mjhq-30k/images"
    assert refused(images).startswith(f"{images}: MJHQ-30K is yours to bring: ")
    assert "nothing is known of it (known: data/sst2/SST-2.zip, " in refused("data/sst3/dev.tsv")


def annotations(images):
    (content,) = fetched_from.coco(images).values()
    return content.encode()


def test_one_caption_of_an_image_whatever_else_is_there():
    every = captions.draw(annotations(range(200)), 200)
    assert len(every) == 200 and {caption.split()[4] for caption in every} == {"0", "1"}
    assert captions.draw(annotations(reversed(range(200))), 200) == every  # the file's order says nothing
    some = captions.draw(annotations(range(200)), 20)
    numbers = [int(caption.split()[2]) for caption in some]
    assert numbers == sorted(set(numbers)) and len(numbers) == 20
    assert max(numbers) - min(numbers) > 100  # not the first ones
    assert captions.draw(annotations(range(200)), 20) == some != captions.draw(annotations(range(200)), 20, seed=1)


@pytest.mark.parametrize(
    ("make", "content"),
    [
        (
            prompt_sets.parti,
            'Prompt\tCategory\tChallenge\tNote\na "red" cat\tAnimals\tBasic\t\nbond\tAbstract\tBasic\tx\n',
        ),
        (
            prompt_sets.mjhq,
            '{"f1": {"category": "Animals", "prompt": "a \\"red\\" cat"}, '
            '"f2": {"category": "Abstract", "prompt": "bond"}}',
        ),
        (
            prompt_sets.geneval,
            '{"tag": "Animals", "prompt": "a \\"red\\"  cat"}\n{"tag": "Abstract", "prompt": "bond"}\n',
        ),
    ],
)
def test_prompts_come_with_their_category(tmp_path, make, content):
    path = tmp_path / "prompts.tsv"
    path.write_bytes(make(content.encode(), 2))
    assert path.read_text() == 'prompt\tcategory\na "red" cat\tAnimals\nbond\tAbstract\n'
    assert prompts.read(path)[0] == ['a "red" cat', "bond"]
    for wrong, words in ((b"a,b\n1,2\n", "these are not"), (content.encode(), "2 prompts, and 3 are asked for")):
        with pytest.raises(DataError, match=words):
            make(wrong, 3)


@pytest.mark.parametrize(
    ("make", "content"),
    [(prompt_sets.sdci, "a.jpg: a red  cat\nb.jpg: bond\n"), (prompt_sets.listed, '["a red cat", "bond"]')],
)
def test_prompts_without_a_category_are_a_list(make, content):
    assert make(content.encode(), 2) == b"a red cat\nbond\n"
    for wrong, words in ((b"[1, 2]", "these are not"), (content.encode(), "2 prompts, and 3 are asked for")):
        with pytest.raises(DataError, match=words):
            make(wrong, 3)


def test_a_hash_from_the_configuration_is_checked_like_a_known_one(server):
    known("sst2/SST-2.zip", sha256=None)
    assert "data_sha256: sst2/SST-2.zip: missing" in refused("data/sst2/SST-2.zip")
    for digest, words in (("0" * 64, "its sha256 is"), (fetched_from.sha256(SST2), None)):
        given = json.dumps({"sst2/SST-2.zip": digest})
        if words:
            assert words in refused("data/sst2/SST-2.zip", "--sha256", given)
        else:
            fetch.main(["--output", "data/sst2/SST-2.zip", "--sha256", given])
    assert Path("data/sst2/SST-2.zip").read_bytes() == SST2


def test_a_subset_is_the_same_everywhere():
    rows = [(str(number), "x") for number in range(1000)]
    chosen = [int(text) for text, _ in prompt_sets.drawn(rows, 5)]
    assert chosen == sorted(chosen) == [210, 449, 614, 845, 945] != [int(t) for t, _ in prompt_sets.drawn(rows, 5, 1)]


def test_captions_that_are_none():
    with pytest.raises(DataError, match="of 3 images, and 4 are asked for"):
        captions.draw(annotations(range(3)), 4)
    for content in (b"{", b"[]", b'{"annotations": [{"id": 1}]}'):
        with pytest.raises(DataError, match="not COCO's captions"):
            captions.draw(content, 1)


def test_every_address_and_hash_has_its_form():
    for name, archive in datasets.ARCHIVES.items():
        assert archive.addresses and (archive.sha256 is None or re.fullmatch("[0-9a-f]{64}", archive.sha256)), name
        assert all(re.match(r"https?://[^/]+/.*\.(zip|tsv|jsonl?|yaml)$", address) for address in archive.addresses)
    assert {part.archive for part in datasets.EXTRACTS.values()} <= set(datasets.ARCHIVES)


def test_experiments_name_data_that_is_known():
    for path in experiment.EXPERIMENTS.glob("*.yaml"):
        named = re.findall(r"\bdata/[\w./-]+", yaml.safe_dump(yaml.safe_load(path.read_text())))
        assert all(datasets.name_of(name) for name in named), path.name
    assert datasets.name_of("resources/texts/reviews-test.tsv") is None and datasets.name_of("data/own.tsv") is None
