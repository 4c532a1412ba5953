"""The CLIP tokenizer of the embedded models, with a vocabulary learnt from captions of scenes."""

import json

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from quantwatt.data import scenes

CONTEXT = 16  # tokens: the longest caption has 14 words, plus the two special tokens
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,-'"


def new(seed: int) -> CLIPTokenizer:
    """A tokenizer that knows every word of a caption as one token.

    The end token has the highest id because open_clip locates it by argmax. Its id is not 2, because transformers
    uses argmax for id 2 too, for compatibility with old checkpoints.
    """
    rng = np.random.default_rng(seed)
    captions = [scenes.caption(scene) for scene in scenes.random_scenes(3000, rng)]
    learnt = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    learnt.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=1000, min_frequency=2, end_of_word_suffix="</w>", show_progress=False)
    learnt.train_from_iterator(captions, trainer)
    pairs = json.loads(learnt.to_str())["model"]
    pieces = [piece for character in _CHARACTERS for piece in (character, character + "</w>")]
    pieces += sorted(pairs["vocab"], key=pairs["vocab"].get)
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in pairs["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)


def encode(tokenizer: CLIPTokenizer, captions: list[str]):
    """Token ids, int64 tensor [n, CONTEXT], padded."""
    return tokenizer(captions, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids
