"""A model behind Triton's Python backend."""

from typing import Any

import triton_python_backend_utils as triton  # type: ignore[import-not-found]

from bench.rivals.models import load, run_batch


class TritonPythonModel:
    """The name that the backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model."""
        self._call = load(args["model_name"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer a batch, which has one request where the model is not batched."""
        inputs = [triton.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        answers = run_batch(self._call, inputs) if len(inputs) > 1 else [self._call(inputs[0])]
        return [triton.InferenceResponse([triton.Tensor("y", y)]) for y in answers]
