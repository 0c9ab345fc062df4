"""Sentences to token numbers: the client's side of the model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LONGEST = 256


class Tokenizer:
    """The model's own tokenizer, from the ``tokenizer.json`` that lies beside its weights."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer as FastTokenizer

        self._tokenizer = FastTokenizer.from_file(str(file))
        self._tokenizer.enable_truncation(LONGEST)
        self._tokenizer.enable_padding()

    def encode(self, sentences: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """The model's inputs for *sentences*, padded to the longest of them."""
        rows = self._tokenizer.encode_batch(list(sentences))
        return {
            "input_ids": np.array([row.ids for row in rows], np.int64),
            "attention_mask": np.array([row.attention_mask for row in rows], np.int64),
        }
