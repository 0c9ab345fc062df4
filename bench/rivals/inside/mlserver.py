"""A model behind MLServer."""

from base64 import b64decode, b64encode

import numpy as np
from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput  # type: ignore[import-not-found]

from bench.rivals.models import load, run_batch


class Runtime(MLModel):  # type: ignore[misc]
    """The model that its settings name. A batch is a request with as many texts."""

    async def load(self) -> bool:
        """Load the model."""
        self._call = load(self.settings.name)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a batch."""
        inputs = [np.frombuffer(b64decode(text), np.float32) for text in payload.inputs[0].data.root]
        answers = run_batch(self._call, inputs) if len(inputs) > 1 else [self._call(inputs[0])]
        texts = [b64encode(y.tobytes()).decode() for y in answers]
        y = ResponseOutput(name="y", shape=[len(texts), 1], datatype="BYTES", data=texts)
        return InferenceResponse(model_name=self.name, outputs=[y])
