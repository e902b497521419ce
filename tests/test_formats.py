"""Files of an earlier version load, and compute what they computed when they were written."""

import pathlib

import keras
import numpy as np
import pytest

from keras_flows import Flow

FORMATS = pathlib.Path(__file__).parent / "formats"
QUICK_AND_SLOW = ["nice", "glow", pytest.param("real_nvp", marks=pytest.mark.slow)]


def check(model, then):
    labels = {"condition": then["labels"]} if "labels" in then else {}
    for name, value in (
        ("latent", model.encode(then["x"], **labels)),
        ("log_prob", model.log_prob(then["x"], **labels)),
        ("decoded", model.decode(then["z"], **labels)),
    ):
        np.testing.assert_allclose(value, then[name], rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", QUICK_AND_SLOW)
def test_keras_file(name):
    """With the optimizer's state: training goes on as it would have."""
    then = np.load(FORMATS / f"{name}_keras.npz")
    model = keras.models.load_model(FORMATS / f"{name}.keras")
    check(model, then)
    labels = then["labels"] if "labels" in then else None
    model.run_eagerly = True  # sooner than a trace
    history = model.fit(then["x"], labels, batch_size=16, shuffle=False, epochs=2, verbose=0)
    np.testing.assert_allclose(history.history["loss"], then["next_loss"], rtol=1e-5)


@pytest.mark.parametrize("name", QUICK_AND_SLOW)
def test_preset(name):
    check(Flow.from_preset(FORMATS / f"{name}_preset"), np.load(FORMATS / f"{name}_preset.npz"))
