"""Normalizing flows for Keras 3 on TensorFlow: exact likelihoods, samples and latents."""

import keras

if keras.config.backend() != "tensorflow":
    raise ImportError(
        "keras_flows runs on Keras' TensorFlow backend. Set the environment variable "
        'KERAS_BACKEND=tensorflow, or "backend": "tensorflow" in ~/.keras/keras.json, before Keras '
        f"is imported. Received: backend {keras.config.backend()!r}"
    )

from keras_flows import data, layers, networks, zoo  # noqa: E402
from keras_flows.bijection import Bijection  # noqa: E402
from keras_flows.flow import Flow  # noqa: E402
from keras_flows.version import __version__  # noqa: E402

__all__ = ["Bijection", "Flow", "__version__", "data", "layers", "networks", "zoo"]
