"""What a density is conditioned on: who reads it, and what is refused."""

import re

import keras
import numpy as np
import pandas
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from conftest import perturb

from keras_flows import Flow, layers, networks, zoo

tfb = tfp.bijectors

PAIRS = np.random.default_rng(0).normal(size=(10, 2)).astype("float32")


@pytest.mark.parametrize(
    "use",
    [
        lambda model, x, y: model.fit(x, y, verbose=0),
        lambda model, x, y: model.fit(tf.data.Dataset.from_tensors((x, y)), verbose=0),
        lambda model, x, y: model.fit(x, validation_data=(x, y), verbose=0),
        lambda model, x, y: model.evaluate(x, y, verbose=0),
        lambda model, x, y: model.predict(tf.data.Dataset.from_tensors((x, y)), verbose=0),
        lambda model, x, y: model.adapt(x, y),
        lambda model, x, y: model(x, condition=y),
        lambda model, x, y: model.log_prob(x, condition=y),
        lambda model, x, y: model.encode(x, condition=y),
        lambda model, x, y: model.decode(np.zeros((len(x), 2), "float32"), condition=y),
        lambda model, x, y: model.sample(len(x), condition=y),
    ],
)
def test_labels_that_a_model_does_not_read_are_refused(use, eager):
    model = Flow(layers.DiagonalScaling(), (2,))
    model.compile()
    before = model.get_weights()
    with pytest.raises(ValueError, match="made without `num_classes` and `condition_shape`"):
        use(model, PAIRS, np.arange(len(PAIRS)))
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


@pytest.mark.parametrize("condition", [{"num_classes": 3}, {"condition_shape": (3,)}])
def test_a_condition_that_no_layer_reads_is_refused(condition):
    ((name, value),) = condition.items()
    for layer in (layers.LearnedPrior(), layers.AffineCoupling(networks.MLP(4))):
        with pytest.raises(ValueError, match=rf"`{name}` needs .* {name}={re.escape(str(value))}"):
            Flow(layer, (2,), **condition)


def test_a_layer_of_ones_own_may_read_the_condition(eager):
    class ShiftByLabel(layers.DiagonalScaling):
        reads_condition = True

        def forward_and_log_det(self, x, condition=None, training=False):
            shift = tf.cast(condition, x.dtype)[:, None]
            return super().forward_and_log_det(x + shift)

    model = Flow(layers.Repeat(ShiftByLabel(), 2), (2,), num_classes=3)
    x = PAIRS[:3]
    latent = model.encode(x, condition=np.arange(3))
    np.testing.assert_allclose(latent, x + 2 * np.arange(3)[:, None], rtol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (2, 4, 3)])
@pytest.mark.parametrize("policy", ["float64"], indirect=True)
def test_reversible_gradients_in_the_condition(shape, policy):
    """Those of the loop that remembers, and of eager steps."""
    rng = np.random.default_rng(0)
    x, condition, weight = (tf.constant(rng.normal(size=(4, *s))) for s in (shape, (2,), shape))

    def gradients(**options):
        keras.utils.set_random_seed(0)
        network = (networks.MLP if len(shape) == 1 else networks.ConvNet)(4)
        coupling = layers.AffineCoupling(network, condition_shape=(2,))
        step = layers.Chain([layers.ActNorm(), coupling, layers.Permute()])
        repeat = layers.Repeat(step, 3, **options)
        repeat.build((None, *shape))
        perturb(repeat, 0.2)

        def compute(x, condition):
            with tf.GradientTape() as tape:
                tape.watch([x, condition])
                z, log_det = repeat.forward_and_log_det(x, condition, training=True)
                loss = tf.reduce_sum(weight * z**2) + tf.reduce_sum(log_det)
            return tape.gradient(loss, [x, condition, *repeat.trainable_variables])

        return compute(x, condition), tf.function(compute, autograph=False)(x, condition)

    (eager, remembering), (_, reversible) = gradients(), gradients(reversible=True)
    assert np.abs(eager[1]).min() > 1e-3
    for wanted, *others in zip(eager, remembering, reversible, strict=True):
        for other in others:
            np.testing.assert_allclose(other, wanted, rtol=1e-10, atol=1e-10)


def test_couplings_see_the_condition_behind_x1(eager):
    """One-hot labels and features alike at all places, maps pooled to the size of the image."""

    @keras.saving.register_keras_serializable(package="tests")
    class Spy(keras.layers.Layer):
        def call(self, inputs):
            self.seen = inputs
            return inputs

    def seen(shape, condition_shape, condition, **options):
        spy = Spy()
        coupling = layers.AdditiveCoupling(spy, condition_shape=condition_shape, **options)
        coupling(np.ones((2, *shape)), condition)
        return spy.seen

    np.testing.assert_array_equal(seen((2,), (3,), np.array([2, 0])), [[1, 0, 0, 1], [1, 1, 0, 0]])
    features = np.array([[3.0, 4.0], [5.0, 6.0]], "float32")
    np.testing.assert_array_equal(seen((7, 2), (2,), features)[1, 3], [1, 5, 6])
    image = seen((2, 2, 1), (2,), features, partition="checkerboard")
    np.testing.assert_array_equal(image[0, 0], [[1, 3, 4, 1], [0, 3, 4, 0]])
    maps = np.arange(32, dtype="float32").reshape(2, 4, 4, 1)
    pooled = maps.reshape(2, 2, 2, 2, 2).mean(axis=(2, 4))
    np.testing.assert_array_equal(seen((2, 2, 2), (4, 4, 1), maps)[..., 1], pooled)


@pytest.mark.parametrize(
    ("condition_shape", "condition", "words"),
    [
        (3, None, r"`condition_shape` must be \(n,\)"),
        ((0,), None, r"`condition_shape` must be \(n,\)"),
        ((2, 2), None, r"`condition_shape` must be \(n,\)"),
        ((2, 2, 1), None, "is for images"),
        ((3,), None, "needs `condition`"),
        ((3,), np.zeros((2, 4)), r"shape \(batch, 3\).*\(2, 4\)"),
        ((3,), np.zeros(2), r"shape \(batch, 3\)"),
    ],
)
def test_conditions_that_a_coupling_cannot_read(condition_shape, condition, words):
    with pytest.raises(ValueError, match=words):
        coupling = layers.AffineCoupling(networks.MLP(4), condition_shape=condition_shape)
        coupling.build((None, 4))
        coupling.forward_and_log_det(np.zeros((2, 4), "float32"), condition)


# Conditions of a whole Flow.

RNG = np.random.default_rng(0)
THETA = RNG.normal(size=(40, 2)).astype("float32")
X = np.float32(THETA @ RNG.normal(size=(2, 3)) * [1, 100, 0.01] + [5, 300, 0])
LABELS = np.arange(40) % 3


@keras.saving.register_keras_serializable(package="tests")
class Counting(keras.layers.Dense):
    """Notes of how many rows its calls were, where nothing is traced."""

    def call(self, inputs):
        self.__dict__.setdefault("_rows", []).append(inputs.shape[0])
        return super().call(inputs)

    def rows(self):
        return self.__dict__.pop("_rows", [])


def make_posterior(network=None, **options):
    """Perturbed: at the start nothing depends on the condition."""
    keras.utils.set_random_seed(0)
    options = {"depth": 2, "width": 8, "num_blocks": 1, "seed": 0, **options}
    model = zoo.NSF((2,), condition_shape=(3,), condition_network=network, **options)
    model.adapt(THETA, X)
    perturb(model, 0.3)
    return model


@pytest.fixture(scope="module")
def posterior():
    model = make_posterior()
    model.compile(run_eagerly=True)
    return model


def test_densities_integrate_to_one_and_samples_follow_them(posterior):
    step = 0.025
    axis = np.arange(-8, 8, step, dtype="float32")
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    densities = []
    for row in (0, 1):
        same = np.broadcast_to(X[row], (len(grid), 3))
        density = np.exp(posterior.log_prob(grid, condition=same)) * step**2
        np.testing.assert_allclose(density.sum(), 1, atol=2e-3)
        mean = density @ grid
        deviation = np.sqrt(density @ np.square(grid) - mean**2)
        samples = posterior.sample(4000, condition=X[row], seed=1).numpy()
        np.testing.assert_array_less(np.abs(samples.mean(axis=0) - mean), 4 * deviation / 4000**0.5)
        np.testing.assert_allclose(samples.std(axis=0), deviation, rtol=0.06)
        densities.append(density)
    assert np.abs(densities[0] - densities[1]).sum() > 0.2


@pytest.mark.parametrize("kind", ["floats", "labels"])
def test_each_row_has_its_condition_and_one_serves_for_all_samples(kind, eager):
    network = keras.layers.Embedding(3, 4) if kind == "labels" else networks.MLP(4)
    option = {"num_classes": 3} if kind == "labels" else {"condition_shape": (3,)}
    condition = LABELS if kind == "labels" else X
    model = zoo.RealNVP((2,), depth=2, width=4, condition_network=network, **option)
    model.adapt(THETA, condition)
    perturb(model)
    order = np.array([1, 2, 0])
    for method, of in ((model.log_prob, THETA), (model.encode, THETA), (model.decode, THETA)):
        here = method(of[:3], condition=condition[:3]).numpy()
        there = method(of[order], condition=condition[order]).numpy()
        np.testing.assert_allclose(there, here[order], rtol=1e-4, atol=1e-5)
        assert np.abs(method(of[:3], condition=condition[order]) - here).max() > 1e-4
    z = model.encode(THETA, condition=condition)
    np.testing.assert_allclose(model.decode(z, condition=condition), THETA, atol=1e-4)
    expected = model.sample(3, condition=np.stack([condition[1]] * 3), seed=1)
    for one in (condition[1], condition[1:2], tf.constant(condition[1]), condition[1].tolist()):
        np.testing.assert_allclose(model.sample(3, condition=one, seed=1), expected, rtol=1e-5)


def test_a_number_is_no_condition_of_floats():
    with pytest.raises(ValueError, match=r"must have shape \(batch, 3\). Received: shape \(\)"):
        make_posterior(networks.MLP(4)).sample(2, condition=0.3)


def test_the_condition_network_runs_once_a_call_and_learns(eager):
    network = Counting(4)
    model = make_posterior(network, depth=3)
    network.rows()
    model.sample(50, condition=X[0])
    assert network.rows() == [1]
    model.log_prob(THETA, condition=X)
    assert network.rows() == [40]
    kernel = network.kernel.numpy()
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    model.fit(THETA, X, batch_size=20, verbose=0)
    assert network.rows()[-2:] == [20, 20]  # after the example by which fit looks at the data
    assert np.abs(network.kernel.numpy() - kernel).max() > 1e-4


def test_adapt_standardises_vectors_of_floats(eager):
    """Of any scale: what the layers see is of mean 0 and deviation 1."""
    model = zoo.RealNVP((2,), condition_shape=(3,), depth=1, width=2)
    with pytest.raises(ValueError, match="adapted"):
        model.condition_features(X)
    model.adapt(THETA, X)
    features = model.condition_features(X).numpy()
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(features.std(axis=0), 1, rtol=1e-4)
    images = np.random.default_rng(0).normal(3, 2, (40, 2, 2, 1)).astype("float32")
    network = keras.Sequential([keras.layers.Flatten()])
    model = zoo.NICE((2,), condition_shape=(2, 2, 1), condition_network=network, depth=2, width=2)
    model.adapt(THETA, images)
    np.testing.assert_array_equal(model.condition_features(images), images.reshape(40, 4))
    assert zoo.NICE((2,), num_classes=3, depth=2, width=2, standardize=False).adapted


def test_files_presets_and_clones_keep_the_condition_network(tmp_path):
    model = make_posterior(keras.Sequential([keras.layers.Dense(4, "relu"), networks.MLP(4, 1)]))
    expected = model.log_prob(THETA, condition=X)
    model.save(tmp_path / "model.keras")
    model.save_to_preset(tmp_path / "preset")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for other in (clone, loaded, zoo.NSF.from_preset(tmp_path / "preset")):
        assert other.condition_shape == (3,)
        np.testing.assert_allclose(other.log_prob(THETA, condition=X), expected, rtol=1e-5)


def test_floats_in_a_functional_model(posterior, tmp_path):
    inputs = keras.Input((2,)), keras.Input((3,))
    model = keras.Model(inputs, posterior(inputs[0], condition=inputs[1])["log_prob"])
    model.save(tmp_path / "model.keras")
    expected = posterior.log_prob(THETA, condition=X)
    for each in (model, keras.models.load_model(tmp_path / "model.keras")):
        np.testing.assert_allclose(each.predict((THETA, X), verbose=0), expected, rtol=1e-4)
    with pytest.raises(ValueError, match=r"`condition` must have shape \(batch, 3\)"):
        posterior(inputs[0], condition=keras.Input((4,)))


def test_leading_axes_of_tfp_broadcast(posterior, eager):
    features = posterior.condition_features(X[:5])
    distribution = posterior.distribution
    condition = {"condition": features}
    samples = distribution.sample((3, 5), bijector_kwargs=condition, seed=(0, 1))
    assert samples.shape == (3, 5, 2)
    log_prob = distribution.log_prob(samples, bijector_kwargs=condition)
    for i in range(3):
        expected = posterior.log_prob(samples[i], condition=X[:5])
        np.testing.assert_allclose(log_prob[i], expected, rtol=1e-4, atol=1e-5)
    # One point at each of the conditions, and each point at one.
    one = distribution.log_prob(THETA[0], bijector_kwargs=condition)
    expected = posterior.log_prob(np.stack([THETA[0]] * 5), condition=X[:5])
    np.testing.assert_allclose(one, expected, rtol=1e-4)
    at_one = distribution.log_prob(THETA[:5], bijector_kwargs={"condition": features[1]})
    expected = posterior.log_prob(THETA[:5], condition=np.stack([X[1]] * 5))
    np.testing.assert_allclose(at_one, expected, rtol=1e-4)

    bijection = posterior.bijection
    theirs = tfb.Chain([bijection, tfb.Scale(2.0)])
    z = theirs.forward(samples / 2, **{bijection.name: condition})
    np.testing.assert_allclose(z[1], posterior.encode(samples[1], condition=X[:5]), atol=1e-4)
    labelled = layers.LearnedPrior(num_classes=3)
    labelled.build((None, 2))
    perturb(labelled)
    expected = labelled.forward(THETA[:2], condition=[0, 1])
    z = labelled.forward(np.stack([THETA[:2]] * 4), condition=[0, 1])
    np.testing.assert_allclose(z, np.stack([expected] * 4), rtol=1e-5)


def test_columns_of_a_condition_are_known(eager):
    frame = pandas.DataFrame(X, columns=list("abc"))
    other = frame[["b", "a", "c"]]
    model = zoo.RealNVP((2,), condition_shape=(3,), depth=1, width=2)
    model.compile(run_eagerly=True)
    model.fit(THETA, frame, validation_data=(THETA, frame), verbose=0)
    expected = model.log_prob(THETA, condition=X)
    restored = type(model).from_config(model.get_config())
    restored.set_weights(model.get_weights())
    for each in (model, restored):
        np.testing.assert_array_equal(each.log_prob(THETA, condition=frame), expected)
        for use in (
            lambda each=each: each.log_prob(THETA, condition=other),
            lambda each=each: each.sample(40, condition=other),
            lambda each=each: each(THETA, condition=other),
            lambda each=each: each.evaluate(THETA, other, verbose=0),
        ):
            with pytest.raises(ValueError, match=r"Condition must have the columns \['a', 'b'"):
                use()
    with pytest.raises(ValueError, match="Condition must have the columns"):
        model.fit(THETA, frame, validation_data=(THETA, other), verbose=0)


@pytest.mark.parametrize(
    ("condition", "error", "words"),
    [
        (None, ValueError, r"has condition_shape=\(3,\) and needs `condition`"),
        (X[:, :2], ValueError, r"must have shape \(batch, 3\). Received: shape \(40, 2\)"),
        (X[0], ValueError, r"Received: shape \(3,\). One for all serves in `sample`; here, repeat"),
        (X[:, :, None], ValueError, r"must have shape \(batch, 3\)"),
        (X[:7], ValueError, "must have one row for each of 40 examples. Received: 7"),
        (X > 0, TypeError, "`condition` must be floating-point. Received: dtype bool"),
        (np.full((40, 3), np.nan), ValueError, "`condition` must be finite. Received: values that"),
        (
            np.full((40, 3), 1e39),
            ValueError,
            r"infinite.*: (1e\+39|inf) at \[0, 0\], and",
        ),
        ({"x": X}, TypeError, "`condition` must be one tensor. Received: dict"),
    ],
)
def test_conditions_that_are_refused(condition, error, words, posterior):
    uses = [
        lambda: posterior.log_prob(THETA, condition=condition),
        lambda: posterior.encode(THETA, condition=condition),
        lambda: posterior.decode(THETA, condition=condition),
        lambda: posterior.sample(40, condition=condition),
        lambda: posterior(THETA, condition=condition),
        lambda: posterior.adapt(THETA, condition),
        lambda: posterior.fit(THETA, condition, verbose=0),
        lambda: posterior.evaluate(THETA, condition, verbose=0),
        lambda: posterior.fit(THETA, X, validation_data=(THETA, condition), verbose=0),
    ]
    if "One for all" in words:
        del uses[3]  # `sample`
    if "finite" in words or "infinite" in words:
        del uses[7:]  # which read no values before they run
    for use in uses:
        with pytest.raises(error, match=words):
            use()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_classes": 3, "condition_shape": (3,)}, ValueError, "Only one of the arguments"),
        ({"condition_shape": ()}, ValueError, "`condition_shape` must be a tuple of positive"),
        ({"condition_shape": 3}, ValueError, "`condition_shape` must be a tuple of positive"),
        ({"condition_shape": (0,)}, ValueError, "`condition_shape` must be a tuple of positive"),
        ({"condition_shape": (2, 2)}, ValueError, r"`condition_shape` must be \(n,\)"),
        ({"condition_network": keras.layers.Dense(2)}, ValueError, "`condition_network` needs"),
        ({"condition_shape": (3,), "condition_network": len}, TypeError, "must be a Keras layer"),
        (
            {"condition_shape": (3, 2), "condition_network": keras.layers.Dense(2)},
            ValueError,
            r"`condition_shape` must be \(n,\)",
        ),
        (
            {"condition_shape": (3,), "condition_network": keras.layers.Lambda(lambda x: [x, x])},
            ValueError,
            "`condition_network` must give one tensor",
        ),
        (
            {"num_classes": 3, "condition_network": keras.layers.Identity()},
            ValueError,
            "`condition_network` must give one tensor of floats",
        ),
    ],
)
@pytest.mark.parametrize("make", [zoo.NICE, zoo.RealNVP, zoo.NSF, zoo.Glow])
def test_arguments_of_a_condition_that_are_refused(make, options, error, words):
    with pytest.raises(error, match=words):
        make((2,), depth=1, width=2, **options)


def test_layers_that_read_another_condition_are_refused():
    coupling = layers.AffineCoupling(networks.MLP(4), condition_shape=(3,))
    with pytest.raises(ValueError, match=r"has condition_shape=\(3,\), and is given \(5,\)"):
        Flow(coupling, (2,), condition_shape=(5,))
    for option, given in (
        ({"num_classes": 5}, "labels of 5 classes"),
        ({"condition_shape": (3,)}, "features"),
        ({"num_classes": 3, "condition_network": keras.layers.Embedding(3, 3)}, "features"),
    ):
        with pytest.raises(ValueError, match=f"has num_classes=3, and is given {given}"):
            Flow(layers.LearnedPrior(num_classes=3), (2,), **option)
    layer = layers.LearnedPrior(num_classes=3)
    with pytest.raises(ValueError, match="has num_classes=3 and reads labels"):
        layer.forward(THETA, condition=X)
