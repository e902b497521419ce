"""A batch divided among cores gives the numbers of the whole batch."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import perturb

from keras_flows import Flow, batch_parts, density, layers, networks, zoo
from keras_flows.batch_parts import dividing_batches, in_parts, number_of_parts
from keras_flows.networks.dropout import _Dropout


@pytest.fixture
def cores(monkeypatch):
    """As many cores, and one thread for an operation."""
    monkeypatch.setattr(batch_parts, "_number_of_cores", lambda: 3)
    monkeypatch.setattr(batch_parts, "_threads", lambda kind: {"intra": 1, "inter": 0}[kind])
    return 3


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 2, 4, 7])
def test_parts_are_the_whole(rows, count):
    sizes = []

    def function(x, condition, nothing):
        assert nothing is None
        sizes.append(x.shape[0])
        return x * condition, tf.reduce_sum(x**2, axis=1)

    x = tf.constant(np.random.default_rng(0).normal(size=(rows, 3)))
    condition = tf.reshape(tf.range(rows, dtype=x.dtype), (rows, 1))

    def results(count):
        with tf.GradientTape() as tape:
            tape.watch([x, condition])
            outputs = in_parts(function, count, x, condition, None)
            total = sum(tf.reduce_sum(tf.sin(each)) for each in outputs)
        return *outputs, *tape.gradient(total, [x, condition])

    for ours, expected in zip(results(count), results(1), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-12)
    of_parts = [-(-rows // count)] if rows > 1 else [rows]  # traced once, for all of them
    assert sizes == [*of_parts, rows]


def test_a_part_is_optimized_by_itself():
    """Else TensorFlow would optimize a copy of it for each core, one after the other."""

    @tf.function(autograph=False)
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = in_parts(tf.tanh, 4, x)
        return tape.gradient(y, x)

    graph = gradient.get_concrete_function(tf.TensorSpec((None, 3))).graph.as_graph_def()
    calls = [node.attr["f"].func.name for node in graph.node if "PartitionedCall" in node.op]
    parts = [f for f in graph.library.function if f.signature.name in calls]
    assert len(calls) == 2 * 4
    assert sorted(node.op for f in parts for node in f.node_def if "Tanh" in node.op) == [
        "Tanh",
        "TanhGrad",
    ]
    assert all(f.attr["_noinline"].b for f in parts)


@pytest.mark.parametrize("shape", [(7, 5), (6, 2, 3, 2)])
def test_parts_drop_what_the_whole_does(shape):
    """Whose rows, of 5 and 12 numbers, end within what is drawn at once, four, and with it."""
    x = tf.ones(shape)
    layer = _Dropout(0.4, name="dropout")
    layer.build(shape)
    start = np.array([3, 5])

    def dropped(count):
        layer.state.assign(start)
        call = functools.partial(layer, training=True)

        @tf.function(autograph=False)
        def twice():
            return [in_parts(call, count, x, counters=layer.counters) for _ in range(2)]

        return [each.numpy() for each in twice()], layer.state.numpy()

    whole, state = dropped(1)
    assert 0.2 < np.mean(whole[0] == 0) < 0.6 and np.any(whole[0] != whole[1])
    np.testing.assert_allclose(whole[0][whole[0] != 0], 1 / 0.6, rtol=1e-6)
    assert len(np.unique(whole[0].reshape(len(x), -1), axis=0)) > 4  # rows differ
    for count in (2, 3, 4):
        parts, state_of_parts = dropped(count)
        np.testing.assert_array_equal(parts, whole)
        np.testing.assert_array_equal(state_of_parts, state)
    np.testing.assert_array_equal(state, start + [0, 2])


def traced_number(model, training=False):
    with tf.Graph().as_default(), dividing_batches():
        return number_of_parts(model.bijection, model.data_spec.is_image, training)


@pytest.mark.parametrize(
    ("make", "shape", "options", "in_training"),
    [
        (zoo.NICE, (6,), {}, True),
        (zoo.NSF, (6,), {"condition_shape": (2,)}, True),
        (zoo.NSF, (6,), {"dropout": 0.1}, True),
        (zoo.RealNVP, (6,), {}, True),
        (zoo.RealNVP, (6,), {"batch_norm": True}, False),
        (zoo.RealNVP, (8, 8, 1), {}, False),
        (zoo.Glow, (8, 8, 1), {"levels": 2}, True),
    ],
)
def test_each_core_has_a_part_unless_rows_depend_on_others(
    make, shape, options, in_training, cores, monkeypatch
):
    model = make(shape, depth=2, width=8, **options)
    assert traced_number(model) == cores
    assert traced_number(model, training=True) == (cores if in_training else 1)
    model.bijection.trainable = False
    assert traced_number(model, training=True) == (cores if in_training else 1)
    arguments = (model.bijection, model.data_spec.is_image, False)
    with dividing_batches():
        assert number_of_parts(*arguments) == 1  # eagerly
    with tf.Graph().as_default():  # of somebody else
        assert number_of_parts(*arguments) == 1
    monkeypatch.setattr(batch_parts, "_threads", lambda kind: 2)
    assert traced_number(model) == (1 if model.is_image else 2)  # images: threads within operations
    monkeypatch.setattr(batch_parts, "_has_accelerator", lambda: True)
    assert traced_number(model) == 1


def test_replicas_share_the_cores(cores):
    model = zoo.NSF((2,), depth=1, width=4)
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        assert traced_number(model) == cores
    devices = type("TwoReplicas", (), {"num_replicas_in_sync": 2, "extended": None})()
    devices.extended = type("Extended", (), {"worker_devices": [0, 1]})()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.distribute, "get_strategy", lambda: devices)
        assert traced_number(model) == 1


def make_model(name):
    keras.utils.set_random_seed(0)
    if name == "glow":
        model = zoo.Glow((4, 4, 3), levels=2, depth=2, width=8, num_classes=3, seed=0)
        x = np.random.default_rng(1).integers(0, 256, (7, 4, 4, 3)).astype("uint8")
        condition = np.array([0, 1, 2, 0, 1, 2, 0])
    else:
        options = {"condition_shape": (2,), "reversible": name == "reversible", "dropout": 0.5}
        model = zoo.NSF((5,), depth=2, width=8, seed=0, **options)
        x, condition = np.split(np.random.default_rng(1).normal(size=(7, 7)), [5], axis=1)
    model.adapt(x, condition)
    perturb(model.bijection, scale=0.03)
    model.compile(keras.optimizers.SGD(1e-3))
    return model, x, condition


def results_of(name):
    """What the model gives, by name."""
    model, x, condition = make_model(name)
    values = {
        "log_prob": model.log_prob(x, condition=condition),
        "latent": model.encode(x, condition=condition),
        "sample": model.sample(7, temperature=0.5, condition=condition, seed=1),
        "fitted": model.fit(x, condition, batch_size=4, epochs=2, verbose=0).history["loss"],
        "weights": np.concatenate([np.ravel(v) for v in model.variables]),
    }
    return {key: np.asarray(value, "float64") for key, value in values.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glow", "reversible"])
def test_models_give_the_same_in_parts(name, cores, monkeypatch):
    counts = []

    def counting(function, count, *batches, **counters):
        counts.append(count)
        return in_parts(function, count, *batches, **counters)

    monkeypatch.setattr(density, "in_parts", counting)
    parts = results_of(name)
    assert counts and set(counts) == {cores}
    monkeypatch.setattr(batch_parts, "_number_of_cores", lambda: 1)
    for key, values in results_of(name).items():
        # Pixels, the only large values, may be rounded otherwise.
        atol = 1 if values.max() > 100 else 1e-5 * max(1, np.abs(values).max())
        np.testing.assert_allclose(parts[key], values, atol=atol, err_msg=key)
    assert counts[-1] == 1


def test_graphs_of_others_are_whole(cores, tmp_path, monkeypatch):
    """They may run elsewhere, as an export does, or be differentiated twice."""
    counts = []
    monkeypatch.setattr(density, "in_parts", lambda f, n, *x, **_: counts.append(n) or f(*x))
    model = Flow(layers.DiagonalScaling(), (4,))
    x = np.ones((7, 4), "float32")
    model.export(tmp_path / "export")
    tf.function(model.log_prob)(x)
    assert counts and set(counts) == {1}
    model.log_prob(x)
    assert counts[-1] == cores


def test_losses_of_layers_are_those_of_the_whole_batch(cores, monkeypatch):
    """A user's network adds the mean over its batch."""

    class Regularised(keras.layers.Layer):
        def build(self, input_shape):
            self.inner = networks.MLP(4)
            self.inner.build(input_shape)

        def call(self, x, training=False):
            x = self.inner(x, training=training)
            self.add_loss(tf.reduce_mean(x**2))
            return x

    def losses():
        keras.utils.set_random_seed(0)
        model = Flow(layers.AffineCoupling(Regularised()), (4,), seed=0)
        perturb(model)
        model.compile(keras.optimizers.SGD(1e-2))
        x = np.random.default_rng(0).normal(size=(7, 4))
        return model.fit(x, epochs=2, batch_size=7, verbose=0).history["loss"]

    parts = losses()
    monkeypatch.setattr(batch_parts, "_number_of_cores", lambda: 1)
    np.testing.assert_allclose(parts, losses(), rtol=1e-6)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 3),
        ({"cpu.max": "max 100000"}, 3),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "20000 100000"}, 1),
        ({"cpu.max": "900000 100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "50000"}, 1),
    ],
)
def test_a_container_has_the_cores_of_its_quota(files, cores, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(batch_parts, "CGROUP", tmp_path)
    monkeypatch.setattr(batch_parts.os, "sched_getaffinity", lambda _: {0, 4, 5}, raising=False)
    assert batch_parts._number_of_cores() == cores
