"""Tiny scorer and embedding models, built from configurations and saved as the folders users name."""

from __future__ import annotations

from pathlib import Path

import torch
from _digitmath_tokenizer import build_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def byte_tokenizer(merges: list[tuple[str, str]], leave_out: str = "") -> PreTrainedTokenizerFast:
    """Bytes as tokens, and what is merged; without a chat template, as published scorers are."""
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(leave_out))
    tokens = ["<s>", "<pad>", *alphabet, *(a + b for a, b in merges)]
    made = Tokenizer(models.BPE({t: k for k, t in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", pad_token="<pad>")


def scorer_folder(folder: Path, seed: int = 0, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """A random Llama of two layers with a byte tokenizer."""
    tokenizer = tokenizer or byte_tokenizer([])
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.3, pad_token_id=1, bos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentence_folder(folder: Path, seed: int = 0) -> Path:
    """A random sentence-transformers model: a small BERT, mean over its tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=512,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    words = Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[words, Pooling(24)], device="cpu").save(str(folder / "whole"))
    return folder / "whole"
