"""Faults of an author's layer: refused by name when first used, or found by `check_bijection`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import LABELS, RandomElements, SinhCoupling, UserBijection
from conftest import perturb
from keras import ops

from keras_flows import Bijection, Flow, check_bijection, layers, networks
from keras_flows.bijection import constant_log_det
from keras_flows.layers.coupling import Coupling

# As many examples as dimensions: a sum over the wrong axis has the right shape.
X = np.random.default_rng(0).normal(size=(6, 6)).astype("float32")


def faulty(forward=None, inverse=None):
    """A `UserBijection` whose methods return what these make of x and its right results."""

    class Faulty(UserBijection):
        def forward_and_log_det(self, x, condition=None, training=False):
            results = super().forward_and_log_det(x)
            return forward(x, *results) if forward else results

        def inverse_and_log_det(self, z, condition=None, training=False):
            results = super().inverse_and_log_det(z)
            return inverse(z, *results) if inverse else results

    layer = Faulty(name="mine")
    layer.build((None, 6))
    return layer


# When first used.


RETURNED = {
    "one value": (lambda x, z, log_det: z, TypeError, "must return a pair"),
    "nothing": (lambda x, z, log_det: None, TypeError, "must return a pair.*NoneType"),
    "three": (lambda x, z, log_det: (z, log_det, 0), TypeError, "must return a pair.*tuple"),
    "no sum": (
        lambda x, z, log_det: (z, x),
        ValueError,
        r"a log_det of shape \(6,\).*Received: shape \(6, 6\)",
    ),
    "kept axis": (
        lambda x, z, log_det: (z, log_det[:, None]),
        ValueError,
        r"a log_det of shape \(6,\).*Received: shape \(6, 1\)",
    ),
    "mean": (
        lambda x, z, log_det: (z, ops.mean(log_det)),
        ValueError,
        r"repeat it if all have the same. Received: shape \(\)",
    ),
    "number": (lambda x, z, log_det: (z, 0.0), ValueError, r"log_det.*Received: shape \(\)"),
    "fewer values": (
        lambda x, z, log_det: (z[:, 1:], log_det),
        ValueError,
        r"values of shape \(6, 6\). Received: shape \(6, 5\)",
    ),
}


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("method", ["forward_and_log_det", "inverse_and_log_det"])
@pytest.mark.parametrize("name", RETURNED)
def test_results_are_checked_when_first_used(name, method, traced):
    returned, error, words = RETURNED[name]
    layer = faulty(**{method.split("_")[0]: returned})
    chain = layers.Chain([layers.Permute(), layer, layers.Permute()])
    chain.build((None, 6))
    use = getattr(chain, method)
    with pytest.raises(error, match=f"`{method}` of Faulty 'mine' .*{words}"):
        (tf.function(use, autograph=False) if traced else use)(tf.constant(X))
    with pytest.raises(AssertionError, match=words):
        check_bijection(layer, X)


@pytest.mark.parametrize("made", [lambda x2, p: x2, lambda x2, p: (x2, p, p)])
@pytest.mark.parametrize("method", ["transform", "inverse_transform"])
def test_results_of_transforms_are_checked(method, made):
    coupling = SinhCoupling(None, name="mine")
    setattr(coupling, method, made)
    coupling.build((None, 6))
    use = coupling.inverse if method == "inverse_transform" else coupling.forward
    with pytest.raises(TypeError, match=f"`{method}` of SinhCoupling 'mine' must return a pair"):
        use(X)


class Bare(Coupling):
    parameters_per_channel = 1


@pytest.mark.parametrize(
    ("make", "use", "method"),
    [
        (Bijection, lambda layer: layer.forward_and_log_det(X), "forward_and_log_det"),
        (Bijection, lambda layer: layer.inverse_and_log_det(X), "inverse_and_log_det"),
        (lambda: Bare(None), lambda layer: layer(X), "transform"),
        (lambda: Bare(None), lambda layer: layer.inverse(X), "inverse_transform"),
        (layers.Partition, lambda layer: layer(X), "split"),
        (layers.Partition, lambda layer: layer.merge(X, X), "merge"),
    ],
)
def test_missing_methods_are_named(make, use, method):
    layer = make()
    layer.build((None, 6))
    with pytest.raises(NotImplementedError, match=rf"{layer.name}' has no `{method}`"):
        use(layer)


def test_couplings_say_how_many_parameters():
    with pytest.raises(ValueError, match="`parameters_per_channel` must be.*Received.*None"):
        Coupling(None).build((None, 6))


def test_a_layer_without_inverse_goes_forward(eager):
    class OneWay(Bijection):
        forward_and_log_det = UserBijection.forward_and_log_det
        build = UserBijection.build

    model = Flow(layers.Chain([OneWay(name="mine")]), (6,))
    model.compile()
    model.fit(X, verbose=0)
    assert model.log_prob(X).shape == (6,)
    with pytest.raises(NotImplementedError, match="OneWay 'mine' has no `inverse_and_log_det`"):
        model.sample(1)


# Layers inside, and no `build`.


@keras.saving.register_keras_serializable(package="tests")
class Network(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(4, activation="relu")
        self.last = keras.layers.Dense(6)

    def call(self, inputs):
        return self.last(self.hidden(inputs))


@keras.saving.register_keras_serializable(package="tests")
class Additive(Bijection):
    """A coupling by hand."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.network = keras.layers.Dense(3)

    def forward_and_log_det(self, x, condition=None, training=False):
        first, second = ops.split(x, 2, axis=-1)
        return ops.concatenate([first, second + self.network(first)], -1), 0 * x[:, 0]

    def inverse_and_log_det(self, z, condition=None, training=False):
        first, second = ops.split(z, 2, axis=-1)
        return ops.concatenate([first, second - self.network(first)], -1), 0 * z[:, 0]


@pytest.mark.parametrize(
    ("make", "weights"),
    [
        (lambda: layers.AffineCoupling(Network()), 6),
        (lambda: layers.AffineCoupling(None, output_layer=Network()), 4),
        (lambda: layers.Repeat(layers.AffineCoupling(Network()), 2), 6),
        (Additive, 2),
        (lambda: layers.Repeat(Additive(), 2), 2),
    ],
)
@pytest.mark.filterwarnings("error:`build")
def test_layers_inside_are_built_without_build(make, weights, tmp_path, eager):
    """By the constructor, with no warning: trained and saved are those that are there by then."""
    model = Flow(layers.Chain([make()]), (6,))
    assert len(model.bijection.weights) == weights
    perturb(model)
    model.compile()
    model.fit(X, verbose=0)
    assert len(model.bijection.weights) == weights
    assert not np.allclose(model.encode(X), X)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.log_prob(X), model.log_prob(X), rtol=1e-6)


# What only numbers tell.


class Scaling(Bijection):
    """z = x exp(log_scale): its log_det forgets the weight, which is zero at the start."""

    def build(self, input_shape):
        shape = input_shape[1:]
        self.log_scale = self.add_weight(name="log_scale", shape=shape, initializer="zeros")

    def forward_and_log_det(self, x, condition=None, training=False):
        return x * ops.exp(self.log_scale), 0 * x[:, 0]

    def inverse_and_log_det(self, z, condition=None, training=False):
        return z * ops.exp(-self.log_scale), 0 * z[:, 0]


class Centred(layers.BatchNorm):
    """The way back forgets the moving mean, which is zero at the start."""

    def inverse_and_log_det(self, z, condition=None, training=False):
        x, log_det = super().inverse_and_log_det(z, condition, training)
        return x - self.moving_mean, log_det


class Overlapping(RandomElements):
    """The masks of both parts are the same."""

    def masks(self):
        return self.first, self.first


class Unbuilt(Additive):
    """Its own `build` forgets the layer inside."""

    def build(self, input_shape):
        pass


FAULTS = {
    "log_det over the wrong axis": (
        lambda: faulty(lambda x, z, log_det: (z, -ops.sum(ops.log(ops.cosh(z)), axis=0))),
        "log_det must be -log_det",
    ),
    "sign": (
        lambda: faulty(lambda x, z, log_det: (z, -log_det), lambda z, x, log_det: (x, -log_det)),
        r"log_det must be log \|det dz/dx\|",
    ),
    "mean over the event": (
        lambda: faulty(
            lambda x, z, log_det: (z, log_det / 6), lambda z, x, log_det: (x, log_det / 6)
        ),
        r"log_det must be log \|det dz/dx\|",
    ),
    "sign of the inverse": (
        lambda: faulty(inverse=lambda z, x, log_det: (x, -log_det)),
        "the inverse's log_det must be -log_det",
    ),
    "not the inverse": (
        lambda: faulty(inverse=lambda z, x, log_det: (x + 0.01, log_det)),
        "the inverse of z must be x",
    ),
    "not a number": (
        lambda: faulty(inverse=lambda z, x, log_det: (x * np.nan, log_det)),
        "the inverse of z must be x.*nan",
    ),
    "dtype": (
        lambda: faulty(lambda x, z, log_det: (z, ops.cast(log_det, "float64"))),
        "must give the dtype float32. Received: float64",
    ),
    "a weight at zero": (Scaling, r"log_det must be log \|det dz/dx\|"),
    "an average at zero": (Centred, "the inverse of z must be x"),
    "masks": (
        lambda: layers.AffineCoupling(networks.MLP(4), partition=Overlapping()),
        "the inverse of z must be x",
    ),
    "build": (Unbuilt, "`build` must make all weights. Received: 2 more"),
}


class Mixing(Bijection):
    """Adds what it takes from one row of the batch to all others, and takes it away again."""

    def __init__(self, row):
        super().__init__()
        self.row = row

    def forward_and_log_det(self, x, condition=None, training=False):
        others = np.ones((x.shape[0], 1), "float32")
        others[self.row] = 0
        return x + others * x[self.row], 0 * x[:, 0]

    def inverse_and_log_det(self, z, condition=None, training=False):
        others = np.ones((z.shape[0], 1), "float32")
        others[self.row] = 0
        return z - others * z[self.row], 0 * z[:, 0]


@pytest.mark.parametrize("name", FAULTS)
def test_check_bijection_finds(name):
    make, words = FAULTS[name]
    layer = make()
    layer.build_or_check((None, 6))
    before = layer.get_weights()
    with pytest.raises(AssertionError, match=f"{layer.name}.*{words}"):
        check_bijection(layer, X)
    for weight, value in zip(layer.weights, before):
        np.testing.assert_array_equal(weight, value)


@pytest.mark.parametrize("row", [0, -1])
def test_check_bijection_finds_what_mixes_examples(row):
    with pytest.raises(AssertionError, match="`forward_and_log_det` must not mix examples"):
        check_bijection(Mixing(row), X)


def test_check_bijection_takes_a_condition_and_frozen_layers():
    layer = layers.Chain([layers.LearnedPrior(num_classes=3), Scaling()])
    layer.build((None, 6))
    layer.trainable = False
    with pytest.raises(AssertionError, match="log_det must be log"):
        check_bijection(layer, X[:4], LABELS)
    with pytest.raises(AssertionError, match="needs the labels"):
        check_bijection(layer, X)
    check_bijection(layer.layers[0], X[:4], LABELS)


class Constrained(Bijection):
    """z = x exp(sqrt(rate)): not a number where the rate is negative."""

    def build(self, input_shape):
        options = {"initializer": "zeros", "constraint": "non_neg"}
        self.rate = self.add_weight(name="rate", shape=input_shape[1:], **options)

    def forward_and_log_det(self, x, condition=None, training=False):
        log_scale = ops.sqrt(self.rate)
        return x * ops.exp(log_scale), constant_log_det(ops.sum(log_scale), x)

    def inverse_and_log_det(self, z, condition=None, training=False):
        log_scale = ops.sqrt(self.rate)
        return z * ops.exp(-log_scale), constant_log_det(-ops.sum(log_scale), z)


def test_check_bijection_keeps_constraints():
    check_bijection(Constrained(), X)


def test_arguments_of_check_bijection():
    with pytest.raises(TypeError, match="`layer` must be a Bijection.*Dense"):
        check_bijection(keras.layers.Dense(6, name="dense"), X)
    for x in (X[:1], X[0, 0]):
        with pytest.raises(ValueError, match="`x` must be a batch of at least two.*Received"):
            check_bijection(UserBijection(), x)
