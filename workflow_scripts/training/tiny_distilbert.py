"""The embedded DistilBERT: sentiment of the reviews that training.reviews generates."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedTokenizerFast

from training import loop, reviews

RECIPE = loop.Recipe(steps=1100, batch=64, learning_rate=2e-3, warmup=60, decay=0.6, average=0.99)
TRAINING_SENTENCES = 20_000
LENGTH = 64  # tokens
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def tokenizer():
    """A WordPiece tokenizer: every word of the grammar is one token, other words are spelt in letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,'"
    pieces = [*SPECIAL, *reviews.words(), *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    learnt = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    learnt.normalizer = normalizers.BertNormalizer()
    learnt.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    learnt.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    names = ("pad", "unk", "cls", "sep", "mask")
    special = {f"{name}_token": token for name, token in zip(names, SPECIAL, strict=True)}
    return PreTrainedTokenizerFast(tokenizer_object=learnt, model_max_length=LENGTH, **special)


def new(words, seed):
    """An untrained model for the tokenizer's vocabulary."""
    torch.manual_seed(seed)
    config = DistilBertConfig(
        vocab_size=len(words),
        max_position_embeddings=LENGTH,
        dim=64,
        hidden_dim=256,
        n_layers=2,
        n_heads=4,
        pad_token_id=words.pad_token_id,
        initializer_range=0.12,  # as strong as in a model of width 768; weaker layers would hide rounding
        dropout=0.0,  # dropout would make the model robust to rounding, too
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        id2label={reviews.NEGATIVE: "NEGATIVE", reviews.POSITIVE: "POSITIVE"},
        label2id={"NEGATIVE": reviews.NEGATIVE, "POSITIVE": reviews.POSITIVE},
    )
    return DistilBertForSequenceClassification(config)


def train(seed: int, checkpoint: Path):
    """(trained model, tokenizer, CPU seconds)."""
    words = tokenizer()
    texts, labels = reviews.sentences(TRAINING_SENTENCES, seed, held=False)
    tokens = words(texts, padding=True, return_tensors="pt")
    labels = torch.tensor(labels)
    model = new(words, seed).train()

    def loss_of(step, generator):
        rows = torch.randint(len(labels), (RECIPE.batch,), generator=generator)
        mask = tokens.attention_mask[rows]
        longest = int(mask.sum(1).max())
        logits = model(input_ids=tokens.input_ids[rows, :longest], attention_mask=mask[:, :longest]).logits
        return {"loss": torch.nn.functional.cross_entropy(logits, labels[rows])}

    spent = loop.train("tiny-distilbert", model, loss_of, RECIPE, checkpoint, seed)
    return model.eval(), words, spent


def words_alone(seed: int):
    """Accuracy of naive Bayes over words on held-out reviews: a baseline that the model must exceed.

    Words are counted in the training reviews, with one added to every count.
    """
    import numpy as np

    known = {word: i for i, word in enumerate(reviews.words())}

    def counted(texts):
        table = np.zeros((len(texts), len(known)))
        for row, text in enumerate(texts):
            np.add.at(table[row], [known[word] for word in text.split()], 1)
        return table

    texts, labels = reviews.sentences(TRAINING_SENTENCES, seed, held=False)
    table, labels = counted(texts), np.array(labels)
    counts = [table[labels == k].sum(0) + 1 for k in (reviews.NEGATIVE, reviews.POSITIVE)]
    rates = [np.log(count / count.sum()) for count in counts]
    test, truth = reviews.sentences(1000, seed + 1, held=True)
    positive = counted(test) @ (rates[1] - rates[0]) > 0
    return float((positive == np.array(truth)).mean())
