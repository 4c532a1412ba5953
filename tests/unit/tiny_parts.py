"""Parts of tiny pipelines of random weights, for tests: text encoders with tokenizers, an autoencoder, a censor."""

from pathlib import Path

CLIP_TOKENIZER = Path(__file__).parents[2] / "resources/models/tiny-sd3/tokenizer"
WIDTH = 32  # of every denoiser and every text encoder
WORDS = "a large small red green blue circle square triangle on the left right of white black background".split()


def saved(pipeline, folder):
    pipeline.save_pretrained(folder)
    return folder


def censor():
    """A safety checker to which every image is as near as it takes, and what reads images for it."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    narrow = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**narrow, "image_size": 16, "patch_size": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=narrow, vision_config=vision, projection_dim=8))
    checker.concept_embeds_weights.data.fill_(-2)  # below every cosine
    size = {"height": 16, "width": 16}
    return checker.eval(), CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)


def vae(levels=2):
    """An autoencoder of 4 channels that halves the resolution from level to level."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8,) * levels, down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels, latent_channels=4, norm_num_groups=4, shift_factor=0.1,
    )  # fmt: skip


def clip(positions=None):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(CLIP_TOKENIZER)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=WIDTH, projection_dim=WIDTH,
        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=positions or tokenizer.model_max_length,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    return CLIPTextModel(config).eval(), tokenizer


def t5_tokenizer():
    """WORDS, each one piece."""
    from transformers import T5Tokenizer

    pieces = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>", "▁")]
    return T5Tokenizer(vocab=pieces + [(f"▁{word}", -1.0 - i) for i, word in enumerate(WORDS)], extra_ids=0)


def t5():
    from transformers import T5Config, T5EncoderModel

    tokenizer = t5_tokenizer()
    return T5EncoderModel(T5Config(**t5_sizes(tokenizer))).eval(), tokenizer


def t5_sizes(tokenizer):
    return {
        "vocab_size": len(tokenizer), "d_model": WIDTH, "d_kv": 16, "d_ff": WIDTH, "num_layers": 1, "num_heads": 2,
        "dropout_rate": 0.0,
    }  # fmt: skip


def bert():
    """BERT; a token is one of WORDS."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    config = BertConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=77,
    )  # fmt: skip
    return BertModel(config).eval(), BertTokenizer(vocab={word: i for i, word in enumerate(words)})


def gemma(positions=64):
    """Gemma 2; a token is a letter."""
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocabulary = {piece: i for i, piece in enumerate([*special, "▁", *"abcdefghijklmnopqrstuvwxyz"])}
    config = Gemma2Config(
        vocab_size=len(vocabulary), hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, head_dim=16,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=positions,
    )  # fmt: skip
    return Gemma2Model(config).eval(), GemmaTokenizer(vocab=vocabulary, merges=[])


def qwen_tokenizer(**options):
    """One token a byte, and a template of conversations."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>"]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], **options)
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
    return tokenizer


def qwen_sizes(tokenizer):
    return {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16,
    }  # fmt: skip


def qwen_vl(tokenizer):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    text = {**qwen_sizes(tokenizer), "num_hidden_layers": 1, "rope_parameters": rope}
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
    }
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)).eval()
