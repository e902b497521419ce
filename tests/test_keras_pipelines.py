"""A Flow and its layers as parts of ordinary Keras code. What cannot work must say so."""

import copy
import csv
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import callbacks

from keras_flows import Flow, layers, networks, zoo

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (8, 8, 8, 1), "uint8")
VECTORS = RNG.normal(size=(16, 2)).astype("float32")
IMAGE_LABELS = np.arange(8) % 3
VECTOR_LABELS = np.arange(16) % 3


def make_glow(**kwargs):
    return zoo.Glow((8, 8, 1), levels=1, depth=1, width=8, seed=1, **kwargs)


def make_real_nvp():
    return zoo.RealNVP((2,), depth=2, width=8, num_blocks=1, batch_norm=True, seed=1)


def make_small():
    """A flow without noise or batch statistics that is quick to trace."""
    keras.utils.set_random_seed(0)
    coupling = layers.AffineCoupling(networks.MLP(4, 1))
    return Flow(layers.Chain([layers.ActNorm(), coupling]), (2,), seed=1)


def fit_small(optimizer="sgd", run_eagerly=True, **kwargs):
    """Eagerly, because tracing would take most of the time."""
    flow = make_small()
    flow.compile(optimizer, run_eagerly=run_eagerly)
    flow.fit(VECTORS, **{"verbose": 0, "shuffle": False, **kwargs})
    return flow


@pytest.fixture(scope="module")
def glow():
    """Trained for a step. For tests that leave it as it is."""
    flow = make_glow()
    flow.compile("sgd", run_eagerly=True)
    flow.fit(IMAGES, verbose=0)
    return flow


@pytest.fixture(scope="module")
def conditional_glow():
    flow = zoo.Glow((8, 8, 1), levels=1, depth=1, width=4, num_classes=3)
    flow.adapt(IMAGES, IMAGE_LABELS)
    return flow


@pytest.fixture(scope="module")
def small():
    return fit_small(keras.optimizers.Adam(1e-2))


@pytest.fixture(scope="module")
def trained_on():
    """The same after another step."""
    return fit_small(keras.optimizers.Adam(1e-2), epochs=2)


def reload(model, path):
    model.save(path / "model.keras")
    return keras.saving.load_model(path / "model.keras")


def assert_same_weights(model, other):
    for weight, value in zip(model.weights, other.get_weights(), strict=True):
        np.testing.assert_allclose(weight.numpy(), value, atol=1e-6, err_msg=weight.path)


# A Flow inside other models.


def test_flow_in_a_functional_model(glow, tmp_path):
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    model = keras.Model(inputs, glow(inputs))
    for outputs in (model.predict(IMAGES, verbose=0), reload(model, tmp_path)(IMAGES)):
        np.testing.assert_allclose(outputs["latent"], glow.encode(IMAGES), atol=1e-5)
        np.testing.assert_allclose(outputs["log_prob"], glow.log_prob(IMAGES), rtol=1e-5)


def test_labels_in_a_functional_model(conditional_glow, tmp_path):
    inputs = keras.Input((8, 8, 1), dtype="uint8"), keras.Input((), dtype="int32")
    model = keras.Model(inputs, conditional_glow(inputs[0], condition=inputs[1])["latent"])
    expected = conditional_glow.encode(IMAGES, IMAGE_LABELS)
    batch = (IMAGES, IMAGE_LABELS)
    for latent in (model.predict(batch, verbose=0), reload(model, tmp_path)(batch)):
        np.testing.assert_allclose(latent, expected, atol=1e-5)


def test_functional_models_refuse_what_does_not_fit(glow, conditional_glow):
    with pytest.raises(ValueError, match=r"\(batch, 8, 8, 1\). Received: shape \(None, 8, 8, 3\)"):
        glow(keras.Input((8, 8, 3)))
    with pytest.raises(TypeError, match="Data must be uint8 images. Received: dtype bool"):
        glow(keras.Input((8, 8, 1), dtype="bool"))
    with pytest.raises(ValueError, match="num_classes=3 and needs `condition`"):
        conditional_glow(keras.Input((8, 8, 1)))
    with pytest.raises(TypeError, match="not symbolic tensors: in a functional model, use"):
        glow.log_prob(keras.Input((8, 8, 1)))


def test_flow_at_the_end_of_a_sequential(small):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Rescaling(2.0), small])
    log_prob = model.predict(VECTORS, verbose=0)["log_prob"]
    np.testing.assert_allclose(log_prob, small.log_prob(2 * VECTORS), rtol=1e-5)


def test_not_a_flow_but_its_bijection_goes_into_the_middle_of_a_sequential(small):
    # A Flow gives a dict of two, and Sequential hands one tensor on.
    with pytest.raises(ValueError, match="expects 1 input.*, but it received 2"):
        keras.Sequential([keras.Input((2,)), small, keras.layers.Dense(3)])
    model = keras.Sequential([keras.Input((2,)), small.bijection, keras.layers.Rescaling(2.0)])
    np.testing.assert_allclose(model(VECTORS), 2 * small.encode(VECTORS), rtol=1e-5)


@keras.saving.register_keras_serializable(package="tests")
class MaximumLikelihood(keras.Model):
    """A subclassed model that trains its flow by a step of its own."""

    def __init__(self, flow, **kwargs):
        super().__init__(**kwargs)
        self.flow = flow

    def call(self, inputs):
        return self.flow(inputs)["log_prob"]

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = -keras.ops.mean(self(data))
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        self._loss_tracker.update_state(loss)
        return {"loss": self._loss_tracker.result()}

    def get_config(self):
        return {"flow": keras.saving.serialize_keras_object(self.flow)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["flow"]))


def test_flow_in_a_subclassed_model(tmp_path):
    flow = make_small()
    flow.adapt(VECTORS)
    model = MaximumLikelihood(flow)
    model.compile(keras.optimizers.SGD(1e-2))
    losses = model.fit(VECTORS, epochs=3, verbose=0).history["loss"]
    assert losses == sorted(losses, reverse=True)
    np.testing.assert_allclose(reload(model, tmp_path)(VECTORS), flow.log_prob(VECTORS), rtol=1e-5)


def test_methods_work_in_a_traced_function(small):
    latent = small.encode(VECTORS)
    signature = [tf.TensorSpec((None, 2))]
    for method, x in ((small.log_prob, VECTORS), (small.encode, VECTORS), (small.decode, latent)):
        np.testing.assert_allclose(tf.function(method, signature)(x), method(x), rtol=1e-5)


def test_outer_model_exports(small, tmp_path):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(3)(small(inputs)["latent"]))
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    np.testing.assert_allclose(served.serve(VECTORS), model(VECTORS), rtol=1e-5)


# Single layers inside other models.


def single_layers():
    """In the order of a model from (8, 8, 1) images to (64,) vectors."""
    level = [layers.Squeeze(), layers.InvertibleConv1x1()]
    return [
        layers.ActNorm(),
        layers.AffineCoupling(networks.ConvNet(4), partition="checkerboard"),
        layers.MultiScale([layers.Chain(level), layers.ActNorm()]),
        layers.Chain([layers.BatchNorm(), layers.DiagonalScaling()]),
    ]


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = [*single_layers(), keras.layers.Dense(1)]

    def call(self, x, training=False):
        for part in self.parts:
            x = part(x, training=training)
        return x


def sequential():
    return keras.Sequential([*single_layers(), keras.layers.Dense(1)])


def functional():
    x = inputs = keras.Input((8, 8, 1))
    for layer in single_layers():
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


@pytest.mark.parametrize("make", [sequential, functional, Subclassed])
def test_layers_in_models(make, tmp_path):
    model = make()
    images = IMAGES / np.float32(255)
    model(images)
    before = model.get_weights()
    model.compile("sgd", "mse")
    model.fit(images, IMAGE_LABELS, verbose=0)
    # The coupling's network waits for its output layer, which starts at zero.
    moved = {w.path for w, old in zip(model.weights, before) if np.any(w.numpy() != old)}
    for part in ("log_scale", "lower", "moving_mean", "moving_variance", "diagonal_scaling"):
        assert any(part in path for path in moved), part
    np.testing.assert_allclose(reload(model, tmp_path)(images), model(images), atol=1e-5)


def test_condition_of_a_layer_in_a_functional_model(tmp_path):
    inputs = keras.Input((2,)), keras.Input((), dtype="int32")
    prior = layers.LearnedPrior(num_classes=3)
    model = keras.Model(inputs, prior(inputs[0], condition=inputs[1]))
    prior.class_terms.assign(np.random.default_rng(1).normal(size=prior.class_terms.shape))
    expected, _ = prior.forward_and_log_det(VECTORS, VECTOR_LABELS)
    for either in (model, reload(model, tmp_path)):
        np.testing.assert_allclose(either([VECTORS, VECTOR_LABELS]), expected, atol=1e-6)


# After preprocessing layers.


def test_rescaled_images_are_refused(glow):
    """A density over 8-bit images has its scale inside."""
    rescale = keras.layers.Rescaling(1 / 255)
    with pytest.raises(ValueError, match=r"scaled to \[0, 1\].*pass the uint8 images as they were"):
        glow.fit(tf.data.Dataset.from_tensor_slices(IMAGES).batch(4).map(rescale))
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, glow(rescale(inputs)))
    with pytest.raises(ValueError, match=r"scaled to \[0, 1\]"):
        model(IMAGES)


@pytest.mark.parametrize("options", [{"interpolation": "nearest"}, {"dtype": "uint8"}])
def test_augmented_images(options):
    dtype = options.get("dtype")
    augment = [
        keras.layers.RandomFlip(dtype=dtype),
        keras.layers.RandomTranslation(0.2, 0.2, **options),
    ]
    data = tf.data.Dataset.from_tensor_slices(IMAGES).batch(4)
    for layer in augment:
        data = data.map(lambda x, layer=layer: layer(x, training=True))
    flow = make_glow()
    flow.compile("sgd", run_eagerly=True)
    assert np.isfinite(flow.fit(data, verbose=0).history["loss"]).all()


def test_interpolated_images_are_refused():
    translate = keras.layers.RandomTranslation(0.2, 0.2)
    data = tf.data.Dataset.from_tensor_slices(IMAGES).batch(4)
    data = data.map(lambda x: translate(x, training=True))
    with pytest.raises(ValueError, match=r"whole numbers in 0..255. Received: float32 values"):
        make_glow().adapt(data)


def test_normalized_vectors(small, tmp_path):
    normalize = keras.layers.Normalization()
    normalize.adapt(5 + 3 * VECTORS)
    inputs = keras.Input((2,))
    model = keras.Model(inputs, small(normalize(inputs)))
    expected = small.log_prob(normalize(5 + 3 * VECTORS))
    for either in (model, reload(model, tmp_path)):
        np.testing.assert_allclose(either(5 + 3 * VECTORS)["log_prob"], expected, rtol=1e-5)


# Features of a frozen flow.


@pytest.mark.parametrize(
    ("make", "data", "labels"),
    [(make_glow, IMAGES, IMAGE_LABELS), (make_real_nvp, VECTORS, VECTOR_LABELS)],
)
def test_latents_of_a_frozen_flow_are_features(make, data, labels):
    flow = make()
    flow.adapt(data)
    flow.trainable = False
    inputs = keras.Input(data.shape[1:], dtype=data.dtype.name)
    classifier = keras.layers.Dense(3)
    model = keras.Model(inputs, classifier(flow(inputs)["latent"]))
    assert len(model.trainable_weights) == 2
    before, kernel = flow.get_weights(), classifier.get_weights()[0]
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(data, labels, verbose=0)
    for weight, value in zip(flow.weights, before):  # averages of batch norm among them
        np.testing.assert_array_equal(weight, value, err_msg=weight.path)
    assert np.any(classifier.get_weights()[0] != kernel)


# Copies.


def test_clone_model(glow, small):
    clone = keras.models.clone_model(glow)
    assert clone.get_config() == glow.get_config()
    assert not clone.adapted  # a clone has weights of its own, as at the start
    clone.set_weights(glow.get_weights())
    np.testing.assert_allclose(clone.log_prob(IMAGES), glow.log_prob(IMAGES), rtol=1e-6)

    model = keras.Sequential([keras.Input((2,)), small.bijection, keras.layers.Dense(1)])
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(clone(VECTORS), model(VECTORS), rtol=1e-6)


@pytest.mark.parametrize(
    "duplicate",
    [
        lambda flow, path: copy.deepcopy(flow),
        lambda flow, path: pickle.loads(pickle.dumps(flow)),
        reload,
    ],
    ids=["deepcopy", "pickle", "keras"],
)
def test_a_copy_trains_on_and_leaves_the_original_alone(duplicate, small, trained_on, tmp_path):
    weights = small.get_weights()
    small.log_prob(VECTORS)  # has a traced function, which is not in the way
    other = duplicate(small, tmp_path)
    np.testing.assert_allclose(other.log_prob(VECTORS), small.log_prob(VECTORS), rtol=1e-6)
    other.fit(VECTORS, shuffle=False, verbose=0)
    assert (other.optimizer.iterations, small.optimizer.iterations) == (2, 1)
    assert_same_weights(other, trained_on)
    for value, same in zip(weights, small.get_weights(), strict=True):
        np.testing.assert_array_equal(value, same)


def test_deepcopy_of_a_layer():
    layer = layers.AffineCoupling(networks.MLP(4))
    layer.build((None, 2))
    other = copy.deepcopy(layer)
    for weight in other.weights:
        weight.assign(weight + 1)
    assert np.any(other.forward(VECTORS) != layer.forward(VECTORS))
    assert_same_weights(other, copy.deepcopy(other))


# Weights and the summary.


def summary(model):
    lines = []
    model.summary(expand_nested=True, print_fn=lambda text, **_: lines.append(text))
    return "\n".join(lines)


def test_summary_shows_the_nested_layers(glow):
    for flow in (glow, make_glow()):  # after fit and before
        text = summary(flow)
        nested = ("Chain", "MultiScale", "Squeeze", "ActNorm", "AffineCoupling", "LearnedPrior")
        assert all(f"({name})" in text for name in nested)
        assert f"Trainable params: {sum(w.numpy().size for w in flow.trainable_weights):,}" in text
        fixed = sum(w.numpy().size for w in flow.non_trainable_weights)
        assert f"Non-trainable params: {fixed:,}" in text
    assert f"Total params: {flow.count_params():,}" in text  # fit adds the optimizer's


def test_summary_of_an_outer_model(small):
    inputs = keras.Input((2,))
    text = summary(keras.Model(inputs, small(inputs)))
    assert "(Flow)" in text and "(ActNorm)" in text
    assert f"Total params: {small.count_params():,}" in text


@pytest.mark.parametrize(
    "make",
    [
        make_glow,
        make_real_nvp,
        lambda: zoo.RealNVP((4, 4, 1), levels=1, depth=1, width=4),
        lambda: zoo.NICE((4, 4, 1), width=4),
    ],
)
def test_weights_are_named_apart_and_can_be_set(make):
    flow, other = make(), make()
    paths = [weight.path for weight in flow.weights]
    assert len(set(paths)) == len(paths)
    assert len(flow.weights) == len(flow.trainable_weights) + len(flow.non_trainable_weights)
    values = [value + 1 if value.dtype == "float32" else value for value in flow.get_weights()]
    other.set_weights(values)
    for value, same in zip(values, other.get_weights(), strict=True):
        np.testing.assert_array_equal(value, same)


def test_the_global_seed_sets_the_initial_weights():
    def weights(seed):
        keras.utils.set_random_seed(seed)
        return np.concatenate([value.ravel() for value in make_glow().get_weights()])

    np.testing.assert_array_equal(weights(1), weights(1))
    assert np.any(weights(1) != weights(2))


# Optimizers.


def test_ema_replaces_the_weights_at_the_end():
    # The average starts as the weights after the first step; at momentum 1 it stays there.
    averaging = keras.optimizers.SGD(1e-2, use_ema=True, ema_momentum=1.0)
    flow = fit_small(averaging, run_eagerly=False, epochs=3)
    assert_same_weights(flow, fit_small(keras.optimizers.SGD(1e-2)))


def test_gradients_accumulate():
    accumulated = keras.optimizers.SGD(1e-2, gradient_accumulation_steps=2)
    flow = fit_small(accumulated, run_eagerly=False, batch_size=8)
    assert_same_weights(flow, fit_small(keras.optimizers.SGD(1e-2), batch_size=16))


def test_gradients_are_clipped():
    adapted = make_small()
    adapted.adapt(VECTORS)
    flow = fit_small(keras.optimizers.SGD(1.0, global_clipnorm=1e-2))
    steps = [w - old for w, old in zip(flow.trainable_weights, adapted.trainable_weights)]
    np.testing.assert_allclose(np.sqrt(sum(np.sum(step**2) for step in steps)), 1e-2, rtol=1e-3)


@pytest.mark.parametrize(
    "schedule",
    [
        keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=2, decay_rate=0.5),
        keras.optimizers.schedules.CosineDecay(0.0, 10, warmup_target=0.1, warmup_steps=4),
    ],
)
def test_learning_rate_schedules(schedule, tmp_path):
    flow = fit_small(keras.optimizers.SGD(schedule), epochs=2)
    loaded = reload(flow, tmp_path)
    for model in (flow, loaded):
        np.testing.assert_allclose(model.optimizer.learning_rate, schedule(2))
    assert_same_weights(loaded, flow)


# Callbacks.


def test_checkpoints_logs_and_the_best_epoch(tmp_path):
    def learning_rate(epoch):
        return (1e-2, 1e-2, 1.0, 0.0)[epoch]  # the third epoch does harm

    best = {"monitor": "val_bits_per_dim", "mode": "min"}
    flow = fit_small(
        epochs=4,
        validation_data=(VECTORS, None),
        callbacks=[
            callbacks.LearningRateScheduler(learning_rate),
            callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True),
            callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True, **best),
            callbacks.EarlyStopping(patience=1, restore_best_weights=True, **best),
            callbacks.CSVLogger(tmp_path / "log.csv"),
        ],
    )
    history = flow.history.history
    assert len(history["loss"]) == 3
    assert np.argmin(history["val_bits_per_dim"]) == 1
    # The second epoch's weights, three times.
    assert_same_weights(keras.saving.load_model(tmp_path / "best.keras"), flow)
    other = make_small()
    other.load_weights(tmp_path / "2.weights.h5")
    assert_same_weights(other, flow)
    with open(tmp_path / "log.csv") as log:
        rows = list(csv.DictReader(log))
    for name in ("loss", "bits_per_dim", "val_loss", "val_bits_per_dim", "learning_rate"):
        np.testing.assert_allclose([float(row[name]) for row in rows], history[name], rtol=1e-6)


def test_keras_asks_which_way_bits_per_dim_is_better():
    with pytest.raises(ValueError, match="monitor=bits_per_dim.*Pass `mode='max'`"):
        fit_small(callbacks=[callbacks.EarlyStopping("bits_per_dim")])


def test_terminate_on_nan():
    flow = fit_small(
        keras.optimizers.SGD(1e30), batch_size=4, epochs=5, callbacks=[callbacks.TerminateOnNaN()]
    )
    assert len(flow.history.history["loss"]) == 1
    assert flow.optimizer.iterations < 4


def test_progress_bar(capsys):
    fit_small(verbose=1)
    line = capsys.readouterr().out
    assert "1/1" in line and "loss: " in line and "bits_per_dim: " in line


def test_fit_before_compile():
    with pytest.raises(ValueError, match=r"You must call `compile\(\)`"):
        make_small().fit(VECTORS)
