"""Text models of random weights and a few words, for tests: folders as `save_pretrained` writes them."""

import torch

from quantwatt.jobs import torchvision_ops  # noqa: F401  (before transformers)

WORDS = "the a film plot was good bad dull fine not very and but acting music long short sharp weak".split()


def tokenizer(special, **options):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=special[0]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if "[CLS]" in vocabulary:
        ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
        words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token=special[0], **options)


def distilbert(folder, width=32, layers=2, labels=2):
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    words = tokenizer(["[UNK]", "[PAD]", "[CLS]", "[SEP]"], pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(words), dim=width, hidden_dim=2 * width, n_layers=layers, n_heads=2, num_labels=labels,
        max_position_embeddings=24, pad_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def gpt2(folder, width=32, layers=2):
    from transformers import GPT2Config, GPT2LMHeadModel

    words = tokenizer(["[UNK]", "<|end|>"], eos_token="<|end|>")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(words), n_embd=width, n_layer=layers, n_head=2, n_positions=24,
        bos_token_id=1, eos_token_id=1, pad_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def sentences(n, seed=0):
    """Sentences of 2 to 12 of the words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 13, (n,), generator=generator).tolist()
    picked = torch.randint(len(WORDS), (sum(lengths),), generator=generator).tolist()
    words = iter(WORDS[i] for i in picked)
    return [" ".join(next(words) for _ in range(length)) for length in lengths]
