"""Captions as a condition of denoisers: words of a known vocabulary, and a small text encoder that reads them.

B captions, S words.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor

from xcube.networks.conditions import NO_WORD

LONGEST = 32  # number of words of a caption; longer ones are cut off
SHOWN = 3  # number of similar words that an error message names
CHANNELS, LAYERS, HEADS = 64, 2, 4


def split_words(text: str) -> list[str]:
    """Split a text into words, in lowercase; punctuation separates them, except for hyphens."""
    return re.findall(r"[^\W_]+(?:-[^\W_]+)*", text.lower())


def vocabulary_of(captions: Iterable[str], least: int = 1) -> tuple[str, ...]:
    """List the words that at least `least` captions have, in alphabetical order."""
    found = Counter(word for text in captions for word in set(split_words(text)))
    return tuple(sorted(word for word, count in found.items() if count >= least))


def word_numbers(text: str, vocabulary: Sequence[str], *, strict: bool = True) -> Tensor:
    """Look up the words of a text in a vocabulary, int64 [1, S].

    Args:
        text: The text.
        vocabulary: The words, in alphabetical order.
        strict: Whether unknown words are an error; otherwise they are left out.

    Raises:
        ValueError: If a word is unknown, or the text has no word or more than 32.
    """
    words = split_words(text)
    numbers = {word: number for number, word in enumerate(vocabulary)}
    if strict:
        if not words:
            raise ValueError(f"text must have at least one word, got {text!r}")
        if len(words) > LONGEST:
            raise ValueError(f"text must have at most {LONGEST} words, got {len(words)}")
        for word in words:
            if word not in numbers:
                similar = get_close_matches(word, vocabulary, SHOWN, 0.6)
                hint = f"similar words: {', '.join(similar)}" if similar else "no word is similar"
                raise ValueError(
                    f"text must consist of words that the model knows, got {word!r}; {hint}; all {len(vocabulary)}: "
                    f"{' '.join(vocabulary)}"
                )
    found = [numbers[word] for word in words if word in numbers][:LONGEST]
    return torch.tensor([found], dtype=torch.int64)


class WordEncoder(torch.nn.Module):
    """A transformer (Vaswani et al. 2017, arXiv:1706.03762) that reads a caption.

    It embeds a caption as one vector, which is zero before training, and guesses the latents of the shape.

    Args:
        words: Number of words of the vocabulary.
        out_channels: Number of channels E of the vector.
        latents: Number of entries of the latents of a shape, for a latent grid that fills a box; 0 for no guess.
    """

    def __init__(self, words: int, out_channels: int, latents: int = 0) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(words, CHANNELS)
        self.position = torch.nn.Parameter(0.02 * torch.randn(LONGEST + 1, CHANNELS))
        # Not `TransformerEncoder`: it would leave out padding on some devices, which changes the order of sums.
        self.layers = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(
                CHANNELS, HEADS, 2 * CHANNELS, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(LAYERS)
        )
        self.norm = torch.nn.LayerNorm(CHANNELS)
        self.out = torch.nn.Linear(CHANNELS, out_channels, bias=False)
        torch.nn.init.zeros_(self.out.weight)
        self.guess = torch.nn.Linear(CHANNELS, latents) if latents else None

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embed captions, numbers of words [B, S] with -1 where there is none: [B, E]; zero for those without words.

        Also guess latents [B, latents], zero without words; None without a guess.
        """
        features, some = self.features(words), (words != NO_WORD).any(1, keepdim=True)
        guess = None if self.guess is None else self.guess(features) * some
        return self.out(features) * some, guess

    def features(self, words: Tensor) -> Tensor:
        """Compute features of captions [B, S], of which the embedding and the guess are linear maps."""
        exists = words != NO_WORD  # [B, S]
        known = torch.cat([exists.new_ones(len(words), 1), exists], 1)  # [B, 1 + S]: the first token reads the others
        tokens = self.table(words.clamp(min=0)) * exists[..., None]
        tokens = torch.nn.functional.pad(tokens, (0, 0, 1, 0)) + self.position[: known.shape[1]]
        for layer in self.layers:
            tokens = layer(tokens, src_key_padding_mask=~known)
        features: Tensor = self.norm(tokens[:, 0])
        return features
