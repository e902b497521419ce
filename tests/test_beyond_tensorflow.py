"""Exported models in ONNX Runtime and OpenVINO give the numbers of Python."""

import functools
import itertools
import sys
from types import SimpleNamespace

import keras
import numpy as np
import onnxruntime
import openvino
import pytest
import tensorflow as tf
import tf2onnx.convert
from conftest import perturb

from keras_flows import Flow, layers, networks, threefry, zoo

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 8, 8, 1), dtype="uint8")
LABELS = np.array([0, 1, 0], "int32")
GUIDANCE = {"guidance": np.full(3, 2, "float32")}
MAPS = RNG.normal(size=(3, 8, 8, 2)).astype("float32")
MODELS = {
    "glow": lambda: zoo.Glow((8, 8, 1), levels=1, depth=2, width=4, num_classes=2),
    "real_nvp": lambda: zoo.RealNVP((8, 8, 1), levels=2, depth=2, width=4, num_blocks=1),
    "nice": lambda: zoo.NICE((8, 8, 1), depth=4, width=4, num_hidden=1),
    "jet": lambda: zoo.Jet((8, 8, 1), depth=3, width=4, num_heads=2, num_classes=2),
    "tarflow": lambda: zoo.TarFlow(
        (8, 8, 1), depth=2, width=8, num_layers=1, num_heads=2, num_classes=2
    ),
    "spline": lambda: Flow(
        layers.Chain(spline_layers(condition_shape=(8, 8, 2))), (8, 8, 1), condition_shape=(8, 8, 2)
    ),
}
SIGNATURES = ("serving_default", "decode", "encode", "log_prob", "sample")


def spline_layers(**options):
    def coupling(partition):
        return layers.SplineCoupling(networks.ConvNet(4), partition=partition, **options)

    step = layers.Chain([coupling("half"), coupling("checkerboard")])
    first = [layers.Rescale(1 / 64, -2), layers.Squeeze(), layers.ActNorm()]
    return [*first, layers.Repeat(step, 2), layers.Flatten()]


def cases(*for_each_push):
    """All models and signatures; most only with `-m slow`, as they take minutes."""
    return pytest.mark.parametrize(
        ("exported", "signature"),
        [
            pytest.param(*case, marks=() if case in for_each_push else pytest.mark.slow)
            for case in itertools.product(MODELS, SIGNATURES)
            if case[0] != "tarflow" or case[1] in ("serving_default", "sample")  # of each way, one
        ],
        indirect=["exported"],
    )


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Each model exported once, when it is first asked for."""
    return functools.cache(lambda name: export(name, tmp_path_factory.mktemp(name) / "1"))


@pytest.fixture
def exported(request, exports):
    return exports(request.param)


def export(name, path):
    """Where a model is exported, with requests and Python's responses by signature."""
    keras.utils.set_random_seed(0)
    model = MODELS[name]()
    condition = {}
    if model.is_conditional:
        condition = {"condition": LABELS if model.num_classes else MAPS}
    model.adapt(IMAGES, *condition.values())
    perturb(model, 0.05)
    model.export(path)
    latent, log_prob = (value.numpy() for value in model(IMAGES, **condition).values())
    z = latent + np.random.default_rng(1).normal(size=latent.shape).astype("float32") / 10
    x = {"x": IMAGES, **condition}
    seeds = np.array([[7, i] for i in range(3)], "int32")
    drawn = {"seed": seeds, "temperature": np.full(3, 0.7, "float32"), **condition}
    served, guided = ({}, {}) if name != "tarflow" else (GUIDANCE, {"guidance": 2.0})
    return SimpleNamespace(
        path=str(path),
        calls={
            "serving_default": (x, {"latent": latent, "log_prob": log_prob}),
            "encode": (x, {"latent": latent}),
            "log_prob": (x, {"log_prob": log_prob}),
            "decode": (
                {"z": z, **condition, **served},
                {"x": model.decode(z, **condition, **guided).numpy()},
            ),
            "sample": (
                {**drawn, **served},
                {"x": model.sample(3, 0.7, seed=7, **condition, **guided).numpy()},
            ),
        },
    )


def assert_same(response, wanted):
    """float32 to 1e-4, relative to the largest; pixels to one bin."""
    assert response.keys() == wanted.keys()
    for name, value in wanted.items():
        assert response[name].shape == value.shape and response[name].dtype == value.dtype
        if name == "x":
            difference = np.abs(np.int32(response[name]) - value)
            assert difference.max() <= 1 and (difference > 0).mean() < 0.05
            assert np.ptp(value) > 100
        else:
            np.testing.assert_allclose(response[name], value, atol=1e-4 * np.abs(value).max())


@cases(("glow", "serving_default"), ("glow", "sample"))
def test_onnx(signature, exported, tmp_path, monkeypatch):
    output = str(tmp_path / "model.onnx")
    line = f"convert --saved-model {exported.path} --signature_def {signature} --opset 18"
    monkeypatch.setattr(sys, "argv", [*line.split(), "--output", output])
    tf2onnx.convert.main()
    session = onnxruntime.InferenceSession(output)
    inputs, wanted = exported.calls[signature]
    names = [tensor.name for tensor in session.get_outputs()]
    assert_same(dict(zip(names, session.run(None, inputs))), wanted)
    # Another batch: its size is free.
    one = session.run(names, {name: value[1:2] for name, value in inputs.items()})
    assert_same(dict(zip(names, one)), {name: value[1:2] for name, value in wanted.items()})


@cases(("glow", "serving_default"))
def test_openvino(signature, exported, tmp_path, monkeypatch):
    # It would tell of each conversion from a fork of this process, which takes longer than all.
    monkeypatch.setattr("openvino_telemetry.Telemetry.send_event", lambda *_, **__: None)
    loaded = tf.saved_model.load(exported.path)
    # Of a path, which any version of Python can: of an object, OpenVINO runs what 3.13 refuses.
    path = str(tmp_path / signature)
    tf.saved_model.save(loaded, path, signatures=loaded.signatures[signature])
    converted = openvino.convert_model(path)
    # Some CPUs would compute in bfloat16.
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(converted, "CPU", precision)
    inputs, wanted = exported.calls[signature]
    response = compiled(inputs)
    assert_same({name: response[name] for name in wanted}, wanted)


def test_random_bits_are_the_same_everywhere(tmp_path):
    """The latents of `sample` then differ by the roundings of a logarithm and a cosine alone."""
    spec = tf.TensorSpec((None, 2), tf.int32, name="seed")
    draw = tf.function(
        lambda seed: {"u": threefry.uniform(seed, 3, "float32")}, input_signature=[spec]
    )
    seeds = np.random.default_rng(0).integers(-(2**31), 2**31, (1000, 2)).astype("int32")
    proto, _ = tf2onnx.convert.from_function(draw, input_signature=[spec], opset=18)
    (onnx,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(["u"], {"seed": seeds})
    tf.saved_model.save(tf.Module(), str(tmp_path / "draw"), signatures=draw)
    converted = openvino.convert_model(str(tmp_path / "draw"))  # for Python 3.13, as above
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    wanted = draw(tf.constant(seeds))["u"]
    np.testing.assert_array_equal(onnx, wanted)
    np.testing.assert_array_equal(compiled({"seed": seeds})["u"], wanted)
