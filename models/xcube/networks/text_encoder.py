"""Text embeddings for denoisers, by a CLIP text model (Radford et al. 2021, arXiv:2103.00020) of transformers."""

from collections.abc import Sequence
from importlib import import_module
from os import PathLike
from typing import Any

import torch

from xcube.networks.conditions import Text


class TextEncoder:
    """A tokenizer and a text model, which embed a prompt as the last hidden states of its tokens, after the final norm.

    channels: Number of channels of a token.

    Args:
        tokenizer: A `CLIPTokenizer`.
        model: A `CLIPTextModel`.
    """

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self._tokenizer, self._model = tokenizer, model.eval().requires_grad_(False)
        self.channels = int(model.config.hidden_size)
        self._longest = int(model.config.max_position_embeddings)

    @classmethod
    def from_pretrained(
        cls,
        model: str | PathLike[str],
        tokenizer: str | PathLike[str] | None = None,
        *,
        subfolder: str = "",
    ) -> "TextEncoder":
        """Load tokenizer and text model with transformers, which downloads them unless they are local folders.

        The official networks use `stabilityai/stable-diffusion-2-1-base`, subfolder "text_encoder", with the tokenizer
        of `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`.

        Args:
            model: Folder of the text model, or its name on the Hugging Face Hub.
            tokenizer: Folder of the tokenizer, or its name on the Hugging Face Hub; by default that of the model.
            subfolder: Subfolder of the text model.

        Raises:
            ImportError: If transformers is not installed.
            OSError: If there is no such model.
        """
        try:
            transformers = import_module("transformers")
        except ImportError as error:
            raise ImportError("texts need transformers: pip install 'sparsevox[text]'") from error
        source = model if tokenizer is None else tokenizer
        loaded = transformers.CLIPTextModel.from_pretrained(model, subfolder=subfolder)
        return cls(transformers.CLIPTokenizer.from_pretrained(source), loaded)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Text:
        """Embed prompts, padded to the longest. Prompts that are too long for the model are truncated.

        Tokens include the first and the last one that CLIP adds, so the empty prompt has two. The tokens of a
        prompt do not depend on the other prompts.

        Raises:
            TypeError: If `prompts` is one string, or holds anything but strings.
            ValueError: If `prompts` is empty.
        """
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError(f"prompts must be a list of strings, got {prompts!r}")
        if not prompts:
            raise ValueError("prompts must hold at least one string, got none")
        found = self._tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
        )
        device = next(self._model.parameters()).device
        mask = found["attention_mask"].to(device)
        tokens = self._model(input_ids=found["input_ids"].to(device), attention_mask=mask).last_hidden_state
        exists = mask.bool()
        return Text(torch.where(exists[:, :, None], tokens, 0), exists)

    def to(self, device: torch.device | str) -> "TextEncoder":
        """Move this encoder to a device, in place, and return it."""
        self._model.to(device)
        return self
