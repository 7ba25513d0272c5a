"""Loading from a transformers folder, without the network, with errors a person can act on."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from cache.errors import UserError
from stage1_instruct.weights import path_of


def load_pretrained(auto_class: Any, part: str, what: str) -> tuple[Any, Any]:
    """Tokenizer and frozen fp32 model of a part of a profile.

    Args:
        auto_class: transformers.AutoModel or one of its kin.
        part: a name that `fetch` knows, or a folder with config, weights and tokenizer.
        what: how a message calls it, e.g. 'language model'.
    Raises:
        UserError: no such folder; no tokenizer; not such a model; more tokens than the model has embeddings.
    """
    folder = path_of(part)
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"the {what} {part} has no tokenizer that transformers can read: {error}") from error
    try:
        model = auto_class.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"{part} is not a {what} that transformers can read: {error}") from error
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise UserError(
            f"the {what} {part} has {rows} embeddings but its tokenizer {len(tokenizer)} tokens: not a pair"
        )
    return tokenizer, model.eval().requires_grad_(False)
