"""Normalizing flows for Keras 3 on TensorFlow: exact likelihoods, samples and latents."""

_USE_TENSORFLOW = (
    "keras_flows runs on Keras' TensorFlow backend. Set the environment variable "
    'KERAS_BACKEND=tensorflow, or "backend": "tensorflow" in ~/.keras/keras.json, before Keras is '
    "imported."
)

try:
    import keras
except ImportError as error:  # Keras was told to use a backend that is not installed
    raise ImportError(f"{_USE_TENSORFLOW} Keras could not be imported: {error}") from error
if keras.config.backend() != "tensorflow":
    raise ImportError(f"{_USE_TENSORFLOW} Received: backend {keras.config.backend()!r}")

from keras_flows import (
    calibration,
    callbacks,
    data,
    latent,
    layers,
    networks,
    optimizers,
    plot,
    zoo,
)
from keras_flows.bijection import Bijection
from keras_flows.checking import check_bijection
from keras_flows.flow import Flow
from keras_flows.upload import upload_preset
from keras_flows.version import __version__

__all__ = [
    "Bijection",
    "Flow",
    "__version__",
    "calibration",
    "callbacks",
    "check_bijection",
    "data",
    "latent",
    "layers",
    "networks",
    "optimizers",
    "plot",
    "upload_preset",
    "zoo",
]
