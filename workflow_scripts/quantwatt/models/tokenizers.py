"""Check that a model's tokenizers know words, before any other part of the model is loaded.

Without its vocabulary file a tokenizer silently consists of its special tokens alone: every prompt then gives the same
image.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.models.families import load_family

TRIED = 1000  # vocabulary entries that are encoded
# Least share of them whose text is encoded as the entry again. An intact vocabulary reaches half or more; without its
# merges only single letters are encoded.
LEAST_FOUND = 0.05
MOST_UNKNOWN = 0.5  # share of unknown tokens in an experiment's texts
SHOWN = 60  # characters of a text in a message
READ = 2000  # characters of a text that are tokenized: a text may be a whole book


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of a model.

    folder: of its files; kind: its class in transformers; found: the loaded tokenizer; reader: the configuration of the
    network that reads its tokens, {} without one; padded: whether texts of a batch are padded to one length.
    """

    folder: Path
    kind: str
    found: Any
    reader: dict[str, Any]
    padded: bool

    def ids(self, texts: Iterable[str], special: bool = False) -> list[list[int]]:
        """Lists of the tokens of texts, with or without the special tokens around every text."""
        return self.found(list(texts), add_special_tokens=special, verbose=False)["input_ids"]

    def refuse(self, finding: str, remedy: str = "fetch or copy the whole folder again") -> DataError:
        """The DataError that names the folder and the files that could be missing."""
        files = ["tokenizer.json", *getattr(type(self.found), "vocab_files_names", {}).values()]
        missing = [name for name in dict.fromkeys(files) if not (self.folder / name).is_file()]
        absent = f" ({' and '.join(missing)} not there)" if files[0] in missing and len(missing) > 1 else ""
        return DataError(f"{self.folder}: the {self.kind} {finding}{absent}; {remedy}.")


def check(settings: Mapping[str, Any], location: str | Path, texts: Iterable[str] = ()) -> None:
    """Refuse a model whose tokenizers do not convert texts to tokens that its networks can read.

    Args:
        settings: the model's entry.
        location: the model's folder.
        texts: prompts or sentences of the experiment; without them only the tokenizers are checked.
    Raises:
        DataError: a tokenizer is missing or incomplete, knows no words, has tokens beyond the network's embedding, or
            does not know the words of the texts; names its folder and an example.
    """
    texts = list(dict.fromkeys(text[:READ] for text in texts if text[:READ].strip()))
    for tokenizer in _stored(settings, Path(location)):
        _check_vocabulary(tokenizer)
        _check_special_tokens(tokenizer)
        if texts:
            _check_texts(tokenizer, texts)


def load(folder: str | Path, kind: str = "AutoTokenizer") -> Any:
    """Load the tokenizer of a folder; `kind` is its class in transformers.

    Raises:
        DataError: the folder is missing, or no tokenizer can be loaded from its files.
    """
    import transformers

    if not Path(folder).is_dir():
        raise DataError(f"{folder}: the tokenizer's folder is missing; fetch or copy the whole model again.")
    tokenizer_class = getattr(transformers, kind)
    try:
        return tokenizer_class.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the library's compiled part raises a plain Exception for a broken file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{folder}: the tokenizer cannot be loaded ({type(error).__name__}: {reason[:200]}); "
            "fetch or copy the whole folder again."
        ) from error


def _stored(settings, location):
    """The tokenizers of a model's folder, loaded one after the other; none in a folder without a known model."""
    family, index = load_family(settings["family"]), location / "model_index.json"
    if not index.is_file() and not (location / "config.json").is_file():
        return
    if not index.is_file():
        config = manifest.read_json(location / "config.json")
        yield Tokenizer(location, "tokenizer", load(location), config, family.PADS)
        return
    for name, kind in _listed(manifest.read_json(index), settings).items():
        folder, reader = location / name, location / name.replace("tokenizer", "text_encoder") / "config.json"
        config = manifest.read_json(reader) if reader.is_file() else {}
        yield Tokenizer(folder, kind, load(folder, kind), config.get("text_config", config), True)


def _listed(index, settings):
    """{name: class} of the pipeline's tokenizers that are classes of transformers and that the settings load."""
    import transformers

    classes = {name: value[1] for name, value in index.items() if _is_part(value) and "tokenizer" in name}
    if not settings.get("text_encoder_3", True):
        classes.pop("tokenizer_3", None)
    return {name: kind for name, kind in classes.items() if hasattr(transformers, kind)}


def _is_part(value):
    return isinstance(value, list) and len(value) == 2 and value[0] == "transformers"


def _check_vocabulary(tokenizer):
    """Refuse a vocabulary without words, or with tokens that the network does not know."""
    loaded = tokenizer.found
    vocabulary = loaded.get_vocab()
    added = {*loaded.get_added_vocab().values(), *loaded.all_special_ids}
    learned = sorted(set(vocabulary.values()) - added)
    tried = learned[:: max(1, len(learned) // TRIED)]
    written = {token: loaded.decode([token]) for token in tried}
    words = {token: text for token, text in written.items() if text.strip() and "\ufffd" not in text}
    if not _finds(tokenizer, words):
        raise tokenizer.refuse(f"knows no words: of {len(vocabulary)} tokens, no text gives those that are words")
    size = tokenizer.reader.get("vocab_size")
    if size and learned[-1] >= size:
        raise tokenizer.refuse(
            f"has tokens up to {learned[-1]}, and the network that reads them {size}, from 0",
            "put the tokenizer of this very model in its place",
        )


def _finds(tokenizer, words):
    """Whether enough texts of tokens are encoded as these tokens again; tokens of several letters, if there are any."""
    several = {token: text for token, text in words.items() if len(text.strip()) > 1} or words
    if not several:
        return False
    # CLIP's tokens end in </w> at the end of a word.
    alone = tokenizer.ids(text.replace("</w>", "").strip() for text in several.values())
    as_written = tokenizer.ids(several.values())
    back = [[token] in pair for token, *pair in zip(several, as_written, alone, strict=True)]
    return sum(back) >= max(1, LEAST_FOUND * len(back))


def _check_special_tokens(tokenizer):
    """Refuse a tokenizer that cannot pad, or does not end a text with the token that CLIP's network expects."""
    loaded, size = tokenizer.found, tokenizer.reader.get("vocab_size")
    if tokenizer.padded and tokenizer.kind == "tokenizer" and loaded.pad_token_id is None:
        raise tokenizer.refuse("has no padding token", 'name its "pad_token" in tokenizer_config.json')
    if tokenizer.padded and size and (loaded.pad_token_id or 0) >= size:
        raise tokenizer.refuse(
            f"pads with token {loaded.pad_token_id}, and the network that reads it knows {size}, from 0",
            'name the "pad_token" that the model was trained with in tokenizer_config.json',
        )
    if tokenizer.reader.get("model_type") in ("clip_text_model", "clip"):
        _check_clip(tokenizer)


def _check_clip(tokenizer):
    """Refuse a text end or a text length that CLIP's networks accept silently and read wrongly."""
    loaded, reader = tokenizer.found, tokenizer.reader
    positions = reader.get("max_position_embeddings", 77)
    if loaded.model_max_length > positions:
        raise tokenizer.refuse(
            f"pads texts to {loaded.model_max_length:.3g} tokens, and its text encoder has {positions} positions",
            f'set "model_max_length": {positions} in tokenizer_config.json',
        )
    [ids] = tokenizer.ids(["a"], special=True)
    # Configurations from before transformers#24773 have 2; the network then uses the largest token as the end.
    end = reader.get("eos_token_id", 49407)
    end, looked_for = (max(ids), "the largest one") if end == 2 else (end, end)
    if loaded.eos_token_id != end or end not in ids:
        raise tokenizer.refuse(
            f"ends texts with token {ids[-1]}, and its text encoder looks for {looked_for}",
            "put the tokenizer of this very model in its place",
        )


def _check_texts(tokenizer, texts):
    """Refuse texts whose tokens are beyond the embedding, mostly unknown, or the same for all texts."""
    encoded, size = tokenizer.ids(texts), tokenizer.reader.get("vocab_size")
    for text, ids in zip(texts, encoded, strict=True):
        if size and ids and max(ids) >= size:
            raise tokenizer.refuse(
                f"gives token {max(ids)} for {_shown(text)}, and the network that reads it knows {size}, from 0",
                "leave out the tokens that were added, or take the text encoder that was saved with them",
            )
    blank = {token for token in set().union(*encoded) if not tokenizer.found.decode([token]).strip()}
    unknown = {*tokenizer.found.all_special_ids, tokenizer.found.unk_token_id}
    words = [[token for token in ids if token not in blank] for ids in encoded]
    known = [sum(token not in unknown for token in ids) for ids in words]
    total = sum(map(len, words))
    if sum(known) <= (1 - MOST_UNKNOWN) * total:
        example = _shown(texts[known.index(min(known))])
        raise tokenizer.refuse(
            f"does not know the words of {example}: of all texts, {total - sum(known)} of {total} tokens are unknown",
            "put the tokenizer of this very model in its place, or use texts that it was made for",
        )
    if len(texts) > 1 and all(ids == encoded[0] for ids in encoded):
        raise tokenizer.refuse(
            f"gives the same tokens for {_shown(texts[0])} and {_shown(texts[1])}, and for all other texts",
            "put the tokenizer of this very model in its place, or use texts that differ in more than spaces",
        )


def _shown(text):
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
