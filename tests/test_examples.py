"""The examples do what the README says, through a real box."""

from pathlib import Path

import numpy as np
import pytest

from bedsit import Client
from examples.digits.train import load_digits, train
from examples.minilm.make import find_model_folder, make
from examples.minilm.text import Tokenizer
from examples.visitor import ask_digits, run_as
from tests_support.box import Box


def test_digits_are_read(shared_box: Box, tmp_path: Path) -> None:
    """An ordinary user with the key gets at least 0.97 of the held-out digits right; without it, nothing."""
    trained = train(tmp_path / "digits")
    key = shared_box.json("tenant", "create", "vision")["key"]["secret"]
    shared_box.json("model", "deploy", "vision", tmp_path / "digits")
    data = load_digits()

    def ask() -> dict[str, object]:
        with Client("vision", key, run_dir=str(shared_box.run_dir)) as client:
            return ask_digits(client, data.held_out_images, data.held_out_labels, calls=3)

    served = run_as("nobody", ask)["accuracy"]

    assert served >= 0.97
    assert served == pytest.approx(trained, abs=0.003)


def test_sentences_lie_near_what_they_mean(shared_box: Box, tmp_path: Path) -> None:
    """Unit vectors, the same whatever they are padded to, with the cosines that the model's authors publish."""
    sentences = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    shared_box.json("tenant", "create", "search")
    shared_box.json("model", "deploy", "search", make(tmp_path / "minilm"))
    tokenizer = Tokenizer(find_model_folder() / "tokenizer.json")

    with Client("search", run_dir=str(shared_box.run_dir)) as client:
        together = client.infer("minilm", tokenizer.encode(sentences))["embedding"]
        alone = client.infer("minilm", tokenizer.encode(sentences[:1]))["embedding"]

        assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-5)
        assert alone[0] == pytest.approx(together[0], abs=1e-5)
        # https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2, the widget's example
        assert together[0] @ together[1:].T == pytest.approx([0.695, 0.943, 0.257], abs=1e-3)
