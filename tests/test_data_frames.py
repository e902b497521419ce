"""The names of a data frame's columns: learned by `fit` and `adapt`, kept in files, and checked."""

from types import SimpleNamespace

import keras
import numpy as np
import pandas
import pytest
import tensorflow as tf
from test_flow import small_glow

from keras_flows import Flow, layers, zoo

FRAME = pandas.DataFrame(
    np.random.default_rng(0).normal((0, 1000, 5), (1, 10, 0.1), (16, 3)), columns=list("abc")
)
OTHER = FRAME[["b", "a", "c"]]
LABELS = pandas.Series(np.arange(16) % 3, index=np.arange(16)[::-1])

METHODS = ("fit", "adapt", "evaluate", "predict", "log_prob", "encode", "__call__")
ON_BATCH = ("train_on_batch", "test_on_batch", "predict_on_batch")


def compiled(model):
    model.compile(keras.optimizers.SGD(1e-6), run_eagerly=True)
    return model


@pytest.fixture(scope="module")
def fitted():
    model = compiled(small_glow())
    model.fit(FRAME, verbose=0)
    return model


def refuses(model, method="log_prob", frame=OTHER):
    message = r"the columns \['a', 'b', 'c'\], in this order.*Received: columns=\["
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(frame)


@pytest.mark.parametrize("method", [*METHODS, *ON_BATCH])
def test_every_method_knows_the_columns(method, fitted):
    for frame in (OTHER, FRAME.rename(columns={"c": "d"}), FRAME.assign(d=0.0)):
        refuses(fitted, method, frame)
    with pytest.raises(
        TypeError, match="Column 'b' of the data must hold numbers. Received: dtype"
    ):
        getattr(fitted, method)(FRAME.assign(b="x"))


def test_what_has_no_names_passes(fitted):
    expected = fitted.log_prob(FRAME)
    polars = SimpleNamespace(columns=list("abc"), to_numpy=FRAME.to_numpy, shape=FRAME.shape)
    numbered = pandas.DataFrame(FRAME.to_numpy())
    for x in (FRAME.to_numpy(), tf.constant(FRAME.to_numpy()), numbered, polars):
        np.testing.assert_allclose(fitted.log_prob(x), expected, rtol=1e-5)
    for result in (fitted(FRAME), fitted.predict(FRAME, verbose=0)):
        np.testing.assert_allclose(result["log_prob"], expected, rtol=1e-5)


def test_polars(fitted):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({name: FRAME[name].to_numpy() for name in FRAME.columns})
    np.testing.assert_allclose(fitted.log_prob(frame), fitted.log_prob(FRAME), rtol=1e-5)
    refuses(fitted, "log_prob", frame.select("b", "a", "c"))
    with pytest.raises(TypeError, match="must be one tensor.*Received: LazyFrame"):
        fitted.log_prob(frame.lazy())
    model = compiled(small_glow())
    model.fit(frame, validation_data=(frame, None), verbose=0)
    refuses(model)


def test_arrays_of_objects():
    """As `frame.values` is, of columns of several kinds."""
    values = pandas.DataFrame({"a": [1.0, 2.0], "b": [True, False]}).values
    flow = Flow(layers.DiagonalScaling(), (2,))
    flow.compile()
    for method in (flow.log_prob, flow.fit):
        with pytest.raises(
            TypeError, match=r"array of numbers.*array of objects, of shape \(2, 2\)"
        ):
            method(values)
    assert np.isfinite(flow.log_prob(values.astype("float32"))).all()


@pytest.mark.parametrize("x", [None, object(), {"a": 1.0}])
def test_what_is_no_data(x, fitted):
    with pytest.raises(TypeError, match=f"must be one tensor.*Received: {type(x).__name__}"):
        fitted.log_prob(x)


def test_fit_checks_validation_data_before_it_trains():
    model = compiled(small_glow())
    before = model.get_weights()
    with pytest.raises(ValueError, match="in this order"):
        model.fit(FRAME, validation_data=(OTHER, None), verbose=0)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
    model.fit(OTHER, validation_data=(OTHER, None), verbose=0)  # nothing was learned of the others
    assert model.data_spec.columns == ["b", "a", "c"]


@pytest.mark.parametrize(
    "duplicate",
    [
        lambda model, path: (
            model.save(path / "model.keras") or keras.models.load_model(path / "model.keras")
        ),
        lambda model, path: (
            model.save_to_preset(path / "preset") or zoo.Glow.from_preset(path / "preset")
        ),
        lambda model, path: keras.models.clone_model(model),
    ],
    ids=["keras", "preset", "clone"],
)
def test_columns_are_kept(duplicate, fitted, tmp_path):
    other = duplicate(fitted, tmp_path)
    if not other.adapted:
        other.set_weights(fitted.get_weights())
    np.testing.assert_allclose(other.log_prob(FRAME), fitted.log_prob(FRAME), rtol=1e-5)
    refuses(other)


def test_adapt_learns_columns_and_others_none():
    model = small_glow()
    assert "set_later" not in model.get_config()
    model.adapt(FRAME.to_numpy())
    assert "set_later" not in model.get_config()
    model.adapt(FRAME)
    assert model.get_config()["set_later"] == {"columns": list("abc")}
    model.adapt(FRAME.to_numpy())
    refuses(model)


def test_booleans_are_numbers():
    mixed = FRAME.assign(b=FRAME.b > 1000, c=pandas.array([1, 2] * 8, dtype="Int64"))
    numbers = np.stack([mixed.a, mixed.b, mixed.c], axis=1).astype("float32")
    model = compiled(Flow(layers.ActNorm(), (3,)))
    model.fit(mixed, verbose=0)
    np.testing.assert_allclose(model.encode(mixed), model.encode(numbers), rtol=1e-5)
    missing = mixed.assign(c=pandas.array([1, None] * 8, dtype="Int64"))
    with pytest.raises(ValueError, match="Data must be finite"):
        model.encode(missing)


def polars_column(labels):
    return pytest.importorskip("polars").Series(labels.to_numpy())


@pytest.mark.parametrize(
    "kind",
    [
        pandas.Series,
        pandas.Index,
        pandas.DataFrame,
        lambda labels: labels.astype("Int64"),
        lambda labels: labels.astype("category"),
        polars_column,
    ],
    ids=["Series", "Index", "DataFrame", "nullable", "category", "polars"],
)
def test_labels_may_be_a_column(kind):
    """By position, whatever the index says."""
    labels = kind(LABELS)
    model = compiled(Flow(layers.LearnedPrior(num_classes=3), (3,), num_classes=3))
    if kind is not pandas.Index:  # which Keras does not take
        model.fit(FRAME, labels, verbose=0)
    expected = model.log_prob(FRAME, condition=LABELS.to_numpy())
    np.testing.assert_array_equal(model.log_prob(FRAME, condition=labels), expected)
