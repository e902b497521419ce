"""Where Keras and TFP meet: what a Bijection owes to each, to subclasses and to compositions."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from cases import CASES, IMAGE, LABELS, VECTOR, UserBijection
from conftest import perturb
from keras.src import testing

from keras_flows import Bijection, Flow, adaptation, layers, networks
from keras_flows.bijection import constant_log_det

tfb, tfd = tfp.bijectors, tfp.distributions


class Probe(Bijection):
    """The identity; remembers what reaches it."""

    seen = ()

    def forward_and_log_det(self, x, condition=None, training=False):
        self.seen += ((condition, training),)
        return x, constant_log_det(0, x)

    inverse_and_log_det = forward_and_log_det


class ProbeNetwork(keras.layers.Layer):
    """The identity; remembers what reaches it."""

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, inputs, training=False):
        self.seen = (keras.backend.standardize_dtype(inputs.dtype), training)
        return inputs


def random(*shape, mean=0.0, std=1.0):
    return np.random.default_rng(0).normal(mean, std, shape).astype("float32")


def built(layer, shape=VECTOR):
    """The layer, built, with noise on its weights."""
    layer.build((None, *shape))
    perturb(layer, 0.2)
    return layer


def close(actual, desired):
    np.testing.assert_allclose(actual, desired, rtol=1e-4, atol=1e-5)


def standard_normal(size):
    return tfd.Sample(tfd.Normal(0.0, 1.0), size)


# As a Keras layer.


# Keras' own suite is slow: only the last case of each class takes it. Class-conditional ones
# cannot: the suite's training step calls the layer on x alone.
SUITE = {type(make()): name for name, (make, _, condition) in CASES.items() if condition is None}
NETWORKS = {
    "mlp": (lambda: networks.MLP(4), VECTOR),
    "residual_mlp": (lambda: networks.ResidualMLP(4, dropout=0.5), VECTOR),
    "residual_conv_net": (lambda: networks.ResidualConvNet(4, 1, dropout=0.5), IMAGE),
    "conv_net": (lambda: networks.ConvNet(4), IMAGE),
    "res_net": (lambda: networks.ResNet(4, 1, masked=True), IMAGE),
    "causal_transformer": (lambda: networks.CausalTransformer(4, num_heads=2), (3, 2)),
    "vit": (lambda: networks.ViT(4, num_heads=2), (3, 2)),
    "weight_norm_conv": (lambda: networks.WeightNormConv2D(4, 3), IMAGE),
    "scaled_conv": (lambda: networks.ScaledConv2D(4, 3, normalize=True), IMAGE),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name.startswith("causal") else name
        for name in [*SUITE.values(), *NETWORKS]
    ],
)
@pytest.mark.filterwarnings("ignore:.*shuffle.*:UserWarning")
def test_keras_suite(name):
    """Build, symbolic and eager calls, one training step, mixed precision, the config as JSON."""
    make, shape = (CASES | NETWORKS)[name][:2]
    template = make()

    def fresh(dtype="float32"):
        # Instances must not share their inner layers.
        return type(template).from_config({**template.get_config(), "dtype": dtype})

    layer = fresh()
    layer.build((2, *shape))
    testing.TestCase().run_layer_test(
        fresh,
        {},
        input_data=tf.random.uniform((2, *shape)),
        run_training_check=bool(layer.trainable_weights),
    )


def test_is_a_layer_and_a_bijector():
    layer = layers.ActNorm()
    assert isinstance(layer, keras.layers.Layer)
    assert isinstance(layer, tfb.Bijector)


def test_call_is_forward():
    layer, x = built(layers.AffineCoupling(networks.MLP(4))), random(3, 5)
    close(layer(x), layer.forward(x))
    close(layer(x), layer.forward_and_log_det(x)[0])


def test_names():
    assert layers.ActNorm(name="first").name == "first"
    assert layers.ActNorm().name.startswith("act_norm")
    assert layers.ActNorm().name != layers.ActNorm().name
    layer = layers.ActNorm(name="with-dash.and dot")
    layer.build((None, 5))
    assert layer.name == "with-dash.and dot"
    assert layer.bias.path == "with-dash.and dot/bias"


def test_two_layers_are_not_equal():
    first, second = built(layers.ActNorm()), built(layers.ActNorm())
    assert first != second
    assert first in [first]
    assert len({first, second}) == 2


def test_deepcopy():
    original, x = built(layers.Chain([layers.ActNorm(), layers.InvertibleConv1x1()])), random(3, 5)
    z = original(x)
    twin = copy.deepcopy(original)
    close(twin(x), z)
    variables = tfb.Invert(twin).trainable_variables
    assert len(variables) == len(twin.trainable_variables)
    for variable in variables:
        variable.assign(variable + 1)
    close(original(x), z)
    assert not np.allclose(twin(x), z)


def test_builds_on_first_use():
    x = random(3, 5)
    for use in (
        lambda layer: layer(x),
        lambda layer: layer.forward(x),
        lambda layer: layer.forward_log_det_jacobian(x),
        lambda layer: layer.adapt(x),
    ):
        layer = layers.ActNorm()
        use(layer)
        assert layer.event_shape == (5,)
    conditional = layers.LearnedPrior(num_classes=3)
    conditional(random(4, 5), LABELS)
    assert conditional.event_shape == (5,)


@pytest.mark.parametrize(
    "use",
    [
        lambda layer: layer.event_shape,
        lambda layer: layer.forward_min_event_ndims,
        lambda layer: layer.inverse(random(3, 5)),
        lambda layer: layer.inverse_log_det_jacobian(random(3, 5)),
        lambda layer: layer.forward_event_shape((5,)),
        lambda layer: tfb.Invert(layer),
        lambda layer: tfb.Chain([layer]),
        lambda layer: layer(standard_normal(5)).log_prob(random(3, 5)),
        lambda layer: layer(tfb.Exp()),
    ],
)
def test_unbuilt_use_names_build(use):
    with pytest.raises(ValueError, match="build"):
        use(layers.ActNorm())


@pytest.mark.parametrize("method", ["forward", "forward_log_det_jacobian"])
@pytest.mark.parametrize("shape", [(3, 2, 4, 2), (3, 4, 2, 3), (3, 24), ()])
def test_wrong_shape_is_refused(method, shape):
    layer = built(layers.Flatten(), IMAGE)
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 2, 4, 3\)"):
        getattr(layer, method)(random(*shape))


@pytest.mark.parametrize("method", ["inverse", "inverse_log_det_jacobian"])
@pytest.mark.parametrize("shape", [(3, 23), (2, 4, 3), ()])
def test_wrong_latent_shape_is_refused(method, shape):
    layer = built(layers.Flatten(), IMAGE)
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 24\)"):
        getattr(layer, method)(random(*shape))


# As a TFP bijector.


def test_call_on_a_distribution():
    layer, y = built(layers.ActNorm()), random(3, 5)
    base = standard_normal(5)
    distribution = layer(base)
    expected = base.log_prob(layer.inverse(y)) + layer.inverse_log_det_jacobian(y)
    close(distribution.log_prob(y), expected)
    assert distribution.sample(3, seed=1).shape == (3, 5)


def test_call_on_a_bijector():
    layer, x = built(layers.ActNorm()), random(3, 5)
    chain = layer(tfb.Exp())
    close(chain.forward(x), layer(np.exp(x)))


def test_tfb_chain():
    first, second = built(layers.ActNorm()), built(layers.AffineCoupling(networks.MLP(4)))
    ours = layers.Chain([first, second])
    ours.build((None, 5))
    theirs = tfb.Chain([second, first])  # the other way round
    x = random(3, 5)
    z = ours(x)
    close(theirs.forward(x), z)
    close(theirs.inverse(z), x)
    log_det = ours.forward_log_det_jacobian(x)
    close(theirs.forward_log_det_jacobian(x, 1), log_det)
    close(theirs.inverse_log_det_jacobian(z, 1), -log_det)
    close(tfb.Invert(theirs).inverse_log_det_jacobian(x, 1), log_det)


def test_tfb_chain_changes_the_shape():
    squeeze, flatten = built(layers.Squeeze(), IMAGE), built(layers.Flatten(), (1, 2, 12))
    chain = tfb.Chain([flatten, squeeze])
    x = random(2, *IMAGE)
    close(chain.forward(x), flatten(squeeze(x)))
    close(chain.inverse(chain.forward(x)), x)
    assert chain.forward_event_shape(IMAGE) == (24,)
    assert chain.inverse_event_shape((24,)) == IMAGE


def test_compositions_expose_trainable_variables():
    layer = built(layers.Chain([layers.ActNorm(), layers.AffineCoupling(networks.MLP(4))]))
    expected = {id(weight.value) for weight in layer.trainable_weights}
    assert len(expected) == 8
    for composition in (
        tfb.Invert(layer),
        tfb.Chain([layer]),
        tfb.Chain([tfb.Exp(), layer]),
        tfd.TransformedDistribution(standard_normal(5), tfb.Invert(layer)),
        layer(standard_normal(5)),
    ):
        assert {id(variable) for variable in composition.trainable_variables} == expected


def test_traced_with_unknown_leading_axes():
    layer, x = built(layers.AffineCoupling(networks.MLP(4))), random(2, 3, 5)
    signature = [tf.TensorSpec((None, None, 5))]
    z = tf.function(layer.forward, input_signature=signature)(x)
    log_det = tf.function(layer.forward_log_det_jacobian, input_signature=signature)(x)
    close(z, layer.forward(x))
    close(log_det, layer.forward_log_det_jacobian(x))


def test_compositions_have_gradients():
    layer, x = built(layers.ActNorm()), random(3, 5)
    distribution = tfd.TransformedDistribution(standard_normal(5), tfb.Invert(layer))
    with tf.GradientTape() as tape:
        loss = -tf.reduce_mean(distribution.log_prob(x))
    gradients = tape.gradient(loss, distribution.trainable_variables)
    assert len(gradients) == 2
    assert all(np.any(gradient) for gradient in gradients)


# dtypes.


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"], indirect=True)
def test_only_networks_compute_in_half(policy):
    network = ProbeNetwork()
    coupling = layers.AffineCoupling(network)
    chain = layers.Chain([layers.ActNorm(), coupling, layers.InvertibleConv1x1()])
    for x in (random(3, 5), random(3, 5).astype("float64")):
        z, log_det = chain(x), chain.forward_log_det_jacobian(x)
        assert z.dtype == chain.inverse(z).dtype == log_det.dtype == "float32"
        close(chain.inverse(z), x)
    assert network.seen == (policy.removeprefix("mixed_"), False)
    assert coupling._output_layer.compute_dtype == network.compute_dtype
    assert {weight.dtype for weight in chain.weights} == {"float32"}
    theirs = tfb.Chain([tfb.Exp(), chain])
    assert theirs.forward(random(3, 5)).dtype == theirs.forward_dtype() == tf.float32


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_explicit_dtype(dtype):
    layer = layers.ActNorm(dtype=dtype)
    z = layer.forward(np.ones((3, 5)))
    assert z.dtype == layer.inverse(np.ones((3, 5))).dtype == layer(np.ones((3, 5))).dtype == dtype
    assert layer.forward_log_det_jacobian(np.ones((3, 5))).dtype == dtype
    assert layer.forward_dtype() == layer.inverse_dtype() == tf.as_dtype(dtype)


# What reaches inner layers.


COMPOSITIONS = {
    "alone": lambda probe: probe,
    "chain": lambda probe: layers.Chain([layers.Permute(), probe]),
    "multi_scale": lambda probe: layers.MultiScale([layers.Permute(), probe]),
    "first_level": lambda probe: layers.MultiScale([probe, layers.Permute()]),
    "nested": lambda probe: layers.Chain([layers.MultiScale([layers.Chain([probe])])]),
}


@pytest.mark.parametrize("composition", COMPOSITIONS.values(), ids=COMPOSITIONS.keys())
def test_condition_and_training_reach_inner_layers(composition):
    probe, x, labels = Probe(), random(4, 6), tf.constant(LABELS)
    layer = composition(probe)
    layer.build((None, 6))
    distribution = tfd.TransformedDistribution(standard_normal(6), tfb.Invert(layer))
    theirs = tfb.Chain([layer])
    condition = {"condition": labels}
    for use, wanted in (
        (lambda: layer(x, labels, training=True), (labels, True)),
        (lambda: layer(x, condition=labels), (labels, False)),
        (lambda: layer(x), (None, False)),
        (lambda: layer.forward_and_log_det(x, labels, True), (labels, True)),
        (lambda: layer.inverse_and_log_det(x, labels, True), (labels, True)),
        (lambda: layer.forward(x, condition=labels, training=True), (labels, True)),
        (lambda: layer.inverse(x, **condition), (labels, False)),
        (lambda: layer.forward_log_det_jacobian(x, **condition), (labels, False)),
        (lambda: layer.inverse_log_det_jacobian(x, **condition), (labels, False)),
        (lambda: theirs.forward(x, **{layer.name: condition}), (labels, False)),
        (lambda: distribution.log_prob(x, bijector_kwargs=condition), (labels, False)),
        (lambda: distribution.sample(4, bijector_kwargs=condition), (labels, False)),
        (lambda: layer.adapt(x, labels), (labels, False)),
    ):
        probe.seen = ()
        use()
        assert probe.seen
        for seen, training in probe.seen:
            assert np.array_equal(seen, wanted[0])
            assert training == wanted[1]


@pytest.mark.parametrize("batch", [(), (2, 2), (2, 1, 2)])
def test_condition_has_the_leading_axes_of_x(batch):
    probe = built(Probe(), (6,))
    probe.forward(random(*batch, 6), condition=tf.zeros((*batch, 3)))
    ((seen, _),) = probe.seen
    assert seen.shape == (np.prod(batch, dtype=int), 3)


def test_training_reaches_a_couplings_network():
    network = ProbeNetwork()
    layer = layers.Chain([layers.AffineCoupling(network)])
    for training in (True, False):
        layer(random(3, 5), training=training)
        assert network.seen == ("float32", training)
        layer.inverse_and_log_det(random(3, 5), training=training)
        assert network.seen == ("float32", training)


# adapt.


@pytest.mark.parametrize("make", [layers.ActNorm, layers.Standardize])
@pytest.mark.parametrize("shape", [(5,), (4, 4, 3)])
def test_adapt_gives_zero_mean_and_unit_variance(shape, make):
    layer, x = make(), random(64, *shape, mean=3, std=2)
    close(layer(x), x)  # the identity
    layer.adapt(x)
    axes = tuple(range(x.ndim - 1))
    z = layer(x).numpy()
    close(z.mean(axes), np.zeros(shape[-1]))
    close(z.std(axes), np.ones(shape[-1]))
    layer.adapt(10 * x)  # again
    close(layer(10 * x), z)


def test_adapt_goes_layer_by_layer_and_into_networks():
    norms = [layers.ActNorm() for _ in range(3)]
    network = networks.ConvNet(4)
    coupling = layers.AffineCoupling(
        network, output_layer=keras.layers.Conv2D(4, 3, padding="same")
    )
    chain = layers.Chain([norms[0], layers.Squeeze(), norms[1], coupling, layers.Chain([norms[2]])])
    outer = layers.MultiScale([layers.Rescale(2.0), chain])
    x = random(32, 4, 4, 2, mean=3, std=2)
    outer.adapt(x)
    x = 2 * x[..., :1]
    for layer in chain.layers:
        if layer is coupling:
            features = [x[..., :2]]
            for convolution in network._convolutions:
                features.append(convolution(features[-1]))
                close(np.mean(features[-1], axis=(0, 1, 2)), np.zeros(4))
                close(np.std(features[-1], axis=(0, 1, 2)), np.ones(4))
                features[-1] = tf.nn.relu(features[-1])
        x = layer(x).numpy()
        if layer in norms:
            close(x.mean((0, 1, 2)), np.zeros(x.shape[-1]))
            close(x.std((0, 1, 2)), np.ones(x.shape[-1]))


def test_only_adapt_adapts():
    layer = layers.ActNorm()
    layer.adapt(random(8, 5))
    weights = layer.get_weights()
    layer(random(8, 5, mean=9), training=True)
    np.testing.assert_equal(layer.get_weights(), weights)


def test_adapting_ends_with_an_error():
    with pytest.raises(ValueError, match="condition"):
        layers.LearnedPrior(num_classes=3).adapt(random(8, 5))
    assert not adaptation.is_adapting()


def test_adapt_must_run_eagerly():
    layer = built(layers.ActNorm())
    with pytest.raises(RuntimeError, match="eagerly"):
        tf.function(layer.adapt)(random(8, 5))


# A user's own.


def test_users_bijection_works_everywhere(tmp_path):
    """In a Flow that trains and is saved; the harness has it in its table, too."""
    chain = layers.Chain(
        [
            layers.ActNorm(),
            UserBijection(),
            layers.MultiScale([UserBijection(), layers.Chain([UserBijection()])]),
        ]
    )
    flow, x = Flow(chain, (6,)), random(64, 6, mean=1, std=2)
    flow.compile("adam")
    flow.fit(x, batch_size=16, verbose=0)
    close(flow.decode(flow.encode(x)), x)
    close(flow.distribution.log_prob(x), flow.log_prob(x))
    flow.save(tmp_path / "flow.keras")
    close(keras.saving.load_model(tmp_path / "flow.keras").log_prob(x), flow.log_prob(x))
