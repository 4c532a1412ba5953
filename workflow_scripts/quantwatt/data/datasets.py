"""The data sets under data/ that experiments read: their sources and contents.

Existing files are used unchanged, whoever put them there. For missing files, rules/data.smk downloads the publishers'
archives, checks their sha256 and extracts the files. Data that must not be redistributed has to be downloaded by the
user; the error message says where to put it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from quantwatt.artifacts.errors import DataError
from quantwatt.data import captions, prompt_sets, prompts, sources

FOLDER = "data"


@dataclass(frozen=True)
class Archive:
    """A published ZIP archive, or a single file; all addresses serve the same bytes.

    sha256: None where it is not known here: the configuration's `data_sha256` has to give it.
    licence: the publisher's, where it states one.
    """

    addresses: tuple[str, ...]
    sha256: str | None
    licence: str | None = None


@dataclass(frozen=True)
class Extract:
    """A file that is made of one member of an archive, or of a single published file (member None).

    make: converts the member's bytes and `entries` to the file's bytes.
    count: returns the number of entries of the file at a path; raises DataError for an invalid file.
    """

    archive: str
    member: str | None
    make: Callable[[bytes, int], bytes]
    count: Callable[[str | Path], int]
    entries: int
    unit: str


@dataclass(frozen=True)
class Yours:
    """Data that only the user can provide."""

    sentence: str


def _as_it_is(content, entries):
    return content


def _captions(content, entries):
    return "".join(f"{caption}\n" for caption in captions.draw(content, entries)).encode()


def _labelled(path):
    texts, labels = sources.read_sentences(path)
    for line, label in enumerate(labels or (), start=2):
        if not isinstance(label, int):
            raise DataError(f"{path}: line {line}: the label is {label!r}, not a whole number.")
    return len(texts)


def _prompts(path):
    return len(prompts.read(path)[0])


def _lines(path):
    """The number of lines of running text, including blank lines, as WikiText counts them."""
    return len(sources.read_running_text(path)[0][0].rstrip("\n").split("\n"))


def _sst2(split, entries):
    return Extract("sst2/SST-2.zip", f"SST-2/{split}.tsv", _as_it_is, _labelled, entries, "sentences")


def _wikitext(split, entries):
    archive, member = "wikitext-2-raw/wikitext-2-raw-v1.zip", f"wikitext-2-raw/wiki.{split}.raw"
    return Extract(archive, member, _as_it_is, _lines, entries, "lines")


def _prompt_set(archive, make, entries):
    return Extract(archive, None, make, _prompts, entries, "prompts")


def _coco(split, entries, year=2017):
    archive, member = f"coco-{year}/annotations_trainval{year}.zip", f"annotations/captions_{split}{year}.json"
    return Extract(archive, member, _captions, _prompts, entries, "captions")


def _hub(dataset, revision, file):
    return (f"https://huggingface.co/datasets/{dataset}/resolve/{revision}/{file}",)


_STYLES = ("anime", "concept-art", "paintings", "photo")  # of HPSv2's benchmark
_HPDV2 = ("zhwang/HPDv2", "260dbde75ab1c68e86d32a8e7739f1b49b100578")
_COCO = ("http://images.cocodataset.org", "https://s3.amazonaws.com/images.cocodataset.org")
ARCHIVES = {
    "sst2/SST-2.zip": Archive(  # as GLUE distributes it
        ("https://dl.fbaipublicfiles.com/glue/data/SST-2.zip",),
        "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa",
    ),
    "wikitext-2-raw/wikitext-2-raw-v1.zip": Archive(  # mirrors of Salesforce's archive, whose address is gone
        (
            "https://huggingface.co/datasets/ggml-org/ci/resolve/927b3642933080f1b0e811e2f916e14c292992f9/"
            "wikitext-2-raw-v1.zip",
            "https://wikitext.smerity.com/wikitext-2-raw-v1.zip",
        ),
        "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11",
    ),
    "coco-2017/annotations_trainval2017.zip": Archive(
        tuple(f"{place}/annotations/annotations_trainval2017.zip" for place in _COCO),
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
    "parti/PartiPrompts.tsv": Archive(
        (
            "https://raw.githubusercontent.com/google-research/parti/5a657978134374ce28973948331b319adef164bd/"
            "PartiPrompts.tsv",
        ),
        "fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb",
        "Apache 2.0",
    ),
    "geneval/evaluation_metadata.jsonl": Archive(
        (
            "https://raw.githubusercontent.com/djghosh13/geneval/af4902f24d3ca90ebbb446dd9891a59e0f82725f/prompts/"
            "evaluation_metadata.jsonl",
        ),
        "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
        "MIT",
    ),
    "coco-2017/val2017.zip": Archive(  # 5,000 images
        tuple(f"{place}/zips/val2017.zip" for place in _COCO),
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    ),
    "coco-2014/annotations_trainval2014.zip": Archive(
        tuple(f"{place}/annotations/annotations_trainval2014.zip" for place in _COCO),
        "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
    ),
    "coco-2014/val2014.zip": Archive(  # 40,504 images
        tuple(f"{place}/zips/val2014.zip" for place in _COCO),
        "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
    ),
    "mjhq-30k/meta_data.json": Archive(
        _hub("playgroundai/MJHQ-30K", "93a0cc1a842e61f8abff13dc8a02699bac3e9d41", "meta_data.json"), None
    ),
    "sdci/sDCI.yaml": Archive(_hub("mit-han-lab/svdquant-datasets", "main", "sDCI.yaml"), None),
    "drawbench/drawbench.json": Archive(_hub(*_HPDV2, "benchmark/drawbench.json"), None, "Apache 2.0"),
    **{
        f"hpsv2/{style}.json": Archive(_hub(*_HPDV2, f"benchmark/{style}.json"), None, "Apache 2.0")
        for style in _STYLES
    },
}
EXTRACTS = {
    "sst2/train.tsv": _sst2("train", 67_349),
    "sst2/dev.tsv": _sst2("dev", 872),
    "wikitext-2-raw/wiki.train.raw": _wikitext("train", 36_718),
    "wikitext-2-raw/wiki.test.raw": _wikitext("test", 4_358),
    "coco-2017/captions-5000.txt": _coco("val", 5_000),  # one caption per validation image
    "coco-2017/captions-train-64.txt": _coco("train", 64),  # for calibration
    "coco-2017/captions-train-32.txt": _coco("train", 32),
    "parti/prompts.tsv": _prompt_set("parti/PartiPrompts.tsv", prompt_sets.parti, 1_632),
    "parti/prompts-200.tsv": _prompt_set("parti/PartiPrompts.tsv", prompt_sets.parti, 200),
    "geneval/prompts.tsv": _prompt_set("geneval/evaluation_metadata.jsonl", prompt_sets.geneval, 553),
    "coco-2014/captions-5000.txt": _coco("val", 5_000, 2014),
    "mjhq-30k/prompts.tsv": _prompt_set("mjhq-30k/meta_data.json", prompt_sets.mjhq, 30_000),
    "mjhq-30k/prompts-5000.tsv": _prompt_set("mjhq-30k/meta_data.json", prompt_sets.mjhq, 5_000),
    "sdci/prompts-5000.txt": _prompt_set("sdci/sDCI.yaml", prompt_sets.sdci, 5_000),
    "drawbench/prompts.txt": _prompt_set("drawbench/drawbench.json", prompt_sets.listed, 200),
    **{f"hpsv2/{style}.txt": _prompt_set(f"hpsv2/{style}.json", prompt_sets.listed, 800) for style in _STYLES},
}
YOURS = {
    "imagenet/train": Yours(
        "ImageNet may not be passed on: put its training images there yourself, as PNG or JPEG files of any size, in "
        "folders or not (ILSVRC 2012, from https://image-net.org/download)."
    ),
    "mjhq-30k/images": Yours(
        "MJHQ-30K is yours to bring: put the images of its prompts there, in folders or not "
        "(mjhq30k_imgs.zip of https://huggingface.co/datasets/playgroundai/MJHQ-30K)."
    ),
}


def name_of(path: str | PurePath) -> str | None:
    """The key of a path under data/ in ARCHIVES, EXTRACTS or YOURS; None for an unknown path."""
    path = PurePosixPath(path)
    name = str(path.relative_to(FOLDER)) if path.is_relative_to(FOLDER) else None
    return name if name in ARCHIVES or name in EXTRACTS or name in YOURS else None


def absent(path: str | PurePath, names: Collection[str]) -> str:
    """The key of a data set that is to be written to `path`, which must not exist yet.

    Args:
        path: of the data set, such as data/sst2/dev.tsv; names: the possible keys, ARCHIVES or EXTRACTS.
    Raises:
        DataError: the path is not among `names`, only the user can provide it, or it exists already.
    """
    name = name_of(path) or ""
    if name in YOURS:
        raise DataError(f"{path}: {YOURS[name].sentence}")
    if name not in names:
        known = ", ".join(f"{FOLDER}/{name}" for name in names)
        raise DataError(f"{path}: nothing is known of it (known: {known}).")
    if Path(path).exists():
        raise DataError(f"{path}: it is there already; delete it to have it made anew.")
    return name


def sha256_of(name: str, given: Mapping[str, str]) -> str:
    """The sha256 of an archive: the known one, or the one that the configuration gives.

    Args:
        name: a key of ARCHIVES; given: {archive: sha256}, the configuration's `data_sha256`.
    Raises:
        DataError: it is not known; tells how to give it.
    """
    archive = ARCHIVES[name]
    if known := archive.sha256 or given.get(name):
        return known
    raise DataError(
        f"config.yaml: data_sha256: {name}: missing, and the sha256 of {archive.addresses[0]} is not known here; fetch "
        f"it yourself and put it there, as {FOLDER}/{name}, or write its sha256."
    )


def entries(path: str | PurePath) -> int | None:
    """The number of entries of a file that may not exist yet; None for an unknown file."""
    name = name_of(path) or ""
    return EXTRACTS[name].entries if name in EXTRACTS else None


def missing(names: Iterable[str]) -> list[str]:
    """The names of data sets that do not exist in the current folder.

    Existing files are not an output of any rule, so that nothing downloads or overwrites them: neither --forceall, nor
    a changed script, nor Snakemake's removal of outputs before a job.
    """
    return [name for name in names if not Path(FOLDER, name).exists()]
