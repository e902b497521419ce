"""The C++ runner gives what Python gives, on a toy model which needs nothing of keras_flows."""

import numpy as np
import pytest
import saved_model_runner as smr
import tensorflow as tf

saved_model_runner = smr.saved_model_runner  # registers the fixture


class Toy(tf.Module):
    def __init__(self):
        super().__init__()
        self.weight = tf.Variable(tf.random.stateless_normal((3, 2), (1, 2)))

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 3), tf.float32, name="x"),
            tf.TensorSpec((), tf.int32, name="shift"),
        ]
    )
    def project(self, x, shift):
        y = x @ self.weight + tf.cast(shift, tf.float32)
        return {"y": y, "best": tf.argmax(y, axis=-1), "count": tf.size(y, tf.int64)}

    @tf.function(input_signature=[tf.TensorSpec((None, 4, 4, 1), tf.uint8, name="image")])
    def invert(self, image):
        return {"mean": tf.reduce_mean(tf.cast(image, tf.float32), (1, 2, 3)), "image": 255 - image}

    @tf.function(input_signature=[tf.TensorSpec((), tf.float32, name="x")])
    def text(self, x):
        return {"text": tf.strings.as_string(x)}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    directory = str(tmp_path_factory.mktemp("toy"))
    model = Toy()
    signatures = {"project": model.project, "invert": model.invert, "text": model.text}
    tf.saved_model.save(model, directory, signatures)
    return model, directory


def test_runs_signatures_and_survives_bad_requests(saved_model_runner, toy):
    model, directory = toy
    rng = np.random.default_rng(0)
    good = [
        ("project", {"x": rng.normal(size=(n, 3)).astype("float32"), "shift": np.int32(n)})
        for n in (1, 5, 0)
    ]
    good += [("invert", {"image": rng.integers(0, 256, (2, 4, 4, 1), dtype="uint8")})]
    # In Fortran order: the bytes in memory are not those of the file.
    good += [("project", {"shift": np.int32(-1), "x": np.ones((3, 7), "float32").cumsum(1).T})]
    x, shift = good[0][1].values()
    codes = tf.errors
    bad = [
        (("project", {"x": x[:, :2], "shift": shift}), codes.INVALID_ARGUMENT, "size"),
        (("project", {"x": x.astype("uint8"), "shift": shift}), codes.INVALID_ARGUMENT, "uint8"),
        (("project", {"x": x}), codes.INVALID_ARGUMENT, "'shift' is missing"),
        (("project", {"x": x, "shift": shift, "z": x}), codes.INVALID_ARGUMENT, "unknown"),
        (("absent", {"x": x}), codes.NOT_FOUND, "no signature 'absent'"),
        (("text", {"x": np.float32(1)}), codes.UNIMPLEMENTED, "'text' is not of numbers"),
    ]
    requests = [request for request, *_ in bad] + good
    responses = smr.run(saved_model_runner, directory, requests)
    assert len(responses) == len(requests)

    for (_, code, words), response in zip(bad, responses[: len(bad)], strict=True):
        assert isinstance(response, smr.RunnerError)
        assert response.code == code and words in response.message

    for (signature, inputs), response in zip(good, responses[len(bad) :], strict=True):
        expected = getattr(model, signature)(**{k: tf.constant(v) for k, v in inputs.items()})
        assert response.keys() == expected.keys()
        for name, value in expected.items():
            assert response[name].dtype == value.numpy().dtype
            np.testing.assert_allclose(response[name], value, rtol=1e-6, atol=1e-6)
            assert response[name].shape == value.shape


def test_a_missing_model_is_an_error(saved_model_runner, tmp_path):
    with pytest.raises(smr.RunnerError, match="Could not find SavedModel") as caught:
        smr.run(saved_model_runner, tmp_path / "absent", [])
    assert caught.value.code == tf.errors.NOT_FOUND


def test_a_missing_compiler_is_an_error(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="compiler is needed"):
        smr.build(tmp_path)
