"""A text model of random weights and a tokenizer that knows letters, in the files that transformers writes."""

from pathlib import Path
from typing import Any

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]


def write_model(transformers: Any, folder: Path, channels: int, layers: int = 1) -> None:
    """The text model."""
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=channels,
        intermediate_size=2 * channels,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    transformers.CLIPTextModel(config).save_pretrained(folder)


def write_tokenizer(transformers: Any, folder: Path) -> None:
    """The tokenizer."""
    tokenizer = transformers.CLIPTokenizer(vocab={word: n for n, word in enumerate(VOCABULARY)}, merges=[])
    tokenizer.save_pretrained(folder)
