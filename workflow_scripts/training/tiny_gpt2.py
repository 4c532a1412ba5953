"""The embedded GPT-2: a language model of the manuals in resources/texts/."""

import itertools
import math
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from training import loop

RECIPE = loop.Recipe(steps=850, batch=16, learning_rate=3e-3, warmup=60, decay=0.7, weight_decay=0.05, average=0.99)
LENGTH = 128  # tokens
VOCABULARY = 1024
END = "<|endoftext|>"
INTERPOLATION = 0.75  # weight of the bigram frequency; the remaining weight is that of the unigram


def tokenizer(text):
    """A byte-level BPE tokenizer learnt from the text: no text has unknown tokens."""
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learnt.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learnt.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=learnt, model_max_length=LENGTH, bos_token=END, eos_token=END, unk_token=END
    )


def new(words, seed):
    """An untrained model for the tokenizer's vocabulary."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(words),
        n_positions=LENGTH,
        n_embd=128,
        n_layer=3,
        n_head=4,
        initializer_range=0.05,  # layers as strong as in a model of width 768
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    return GPT2LMHeadModel(config)


def train(text, seed: int, checkpoint: Path):
    """(trained model, tokenizer, CPU seconds)."""
    words = tokenizer(text)
    ids = torch.tensor(words(text, verbose=False).input_ids)
    model = new(words, seed).train()

    def loss_of(step, generator):
        starts = torch.randint(len(ids) - LENGTH, (RECIPE.batch, 1), generator=generator)
        batch = ids[starts + torch.arange(LENGTH + 1)]
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        return {"loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())}

    spent = loop.train("tiny-gpt2", model, loss_of, RECIPE, checkpoint, seed)
    return model.eval(), words, spent


def counted_perplexities(train_ids, test_ids, vocabulary):
    """Perplexities per token of unigram and bigram counts: baselines that the model must go below.

    Args:
        train_ids, test_ids: lists of token ids.
        vocabulary: number of tokens.
    Returns:
        {"unigram", "bigram"}: the unigram adds one to every count. The bigram is interpolated with the unigram with
        weight INTERPOLATION; after a token that training does not have, it is the unigram.
    """
    single = Counter(train_ids)
    pairs, firsts = Counter(itertools.pairwise(train_ids)), Counter(train_ids[:-1])

    def unigram(token):
        return (single[token] + 1) / (len(train_ids) + vocabulary)

    def bigram(before, token):
        if not firsts[before]:
            return unigram(token)
        return INTERPOLATION * pairs[before, token] / firsts[before] + (1 - INTERPOLATION) * unigram(token)

    scored = list(itertools.pairwise(test_ids))
    return {
        "unigram": math.exp(-sum(math.log(unigram(token)) for _, token in scored) / len(scored)),
        "bigram": math.exp(-sum(math.log(bigram(*pair)) for pair in scored) / len(scored)),
    }
