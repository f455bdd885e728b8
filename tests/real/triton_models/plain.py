"""A model that tells nothing of its own: one request at a time, each as long as it asks for."""

import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Input `ASK`: prompt tokens, generated tokens, milliseconds. Output `TOKENS`: how many were generated."""

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        _, generated, milliseconds = pb_utils.get_input_tensor_by_name(request, "ASK").as_numpy().tolist()
        time.sleep(milliseconds / 1000)
        return pb_utils.InferenceResponse([pb_utils.Tensor("TOKENS", np.array([generated], np.int32))])
