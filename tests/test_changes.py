"""Models that were changed after they were made: frozen, given LoRA, quantised, trained by others.

The next call sees it, and so do copies; or it is refused.
"""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from conftest import perturb, same_weights
from keras.layers import Dense

from keras_flows import Flow, layers, networks, zoo
from keras_flows.private import flatten_layers

SLOW = pytest.mark.slow
VECTORS = np.random.default_rng(0).normal(1, 2, (12, 4)).astype("float32")


def make_flow(*bijections):
    flow = Flow(layers.Chain(bijections), (4,), seed=0)
    perturb(flow)
    flow.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    return flow


def coupling(network=None, **options):
    return layers.AdditiveCoupling(network or networks.MLP(6, 1), **options)


def flow_of_all_kinds():
    """With layers in a loop's step, in a network and made by a coupling's `build`."""
    keras.utils.set_random_seed(0)
    step = layers.Chain([layers.ActNorm(), coupling()])
    flow = make_flow(layers.Repeat(step, 2), coupling(swap=True), layers.BatchNorm())
    flow.adapt(VECTORS)
    return flow


def one(kind, flow, index=0):
    """One of the layers of a kind."""
    return [layer for layer in flatten_layers(flow) if isinstance(layer, kind)][index]


# Frozen layers.


def freeze_all(flow):
    flow.trainable = False


def freeze_all_but_one(flow):
    flow.trainable = False
    one(networks.MLP, flow).trainable = True


def freeze_dense(flow):
    one(networks.MLP, flow)._layers_in_order[0].trainable = False


def freeze_default_output_layer(flow):
    flow.bijection.layers[1]._default_output_layer.trainable = False


def freeze_batch_norm(flow):
    one(layers.BatchNorm, flow).trainable = False


def freeze_repeat(flow):
    one(layers.Repeat, flow).trainable = False


def freeze_layer_of_step(flow):
    one(layers.Repeat, flow).step.layers[1].network._layers_in_order[0].trainable = False


FREEZE = [
    freeze_all,
    freeze_all_but_one,
    freeze_dense,
    freeze_default_output_layer,
    freeze_batch_norm,
    freeze_repeat,
    freeze_layer_of_step,
]


def by_file(flow, folder):
    flow.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def by_preset(flow, folder):
    flow.save_to_preset(folder / "preset")
    return Flow.from_preset(folder / "preset")


def by_clone(flow, folder):
    clone = keras.models.clone_model(flow)
    clone.set_weights(flow.get_weights())
    return clone


def inside_another(flow, folder):
    inputs = keras.Input((4,))
    keras.Model(inputs, flow(inputs)["log_prob"]).save(folder / "outer.keras")
    return one(Flow, keras.models.load_model(folder / "outer.keras"))


COPY = [by_file, by_preset, by_clone, inside_another]


def frozen_parts(flow):
    return (
        [layer.trainable for layer in flatten_layers(flow)],
        [weight.trainable for weight in flow.weights],
        [weight.name for weight in flow.trainable_weights],
    )


def slow_but(quick, *values):
    return [value if value in quick else pytest.param(value, marks=SLOW) for value in values]


@pytest.mark.parametrize("copy", slow_but([by_clone], *COPY))
@pytest.mark.parametrize("freeze", FREEZE)
def test_a_copy_is_frozen_alike(freeze, copy, tmp_path):
    flow = flow_of_all_kinds()
    free = frozen_parts(flow)
    assert "set_later" not in flow.get_config()
    freeze(flow)
    assert frozen_parts(flow) != free
    other = copy(flow, tmp_path)
    assert frozen_parts(other) == frozen_parts(flow)
    assert same_weights(other, flow)
    assert json.dumps(other.get_later()) == json.dumps(flow.get_later())
    other.trainable = False  # an assignment that changes nothing does nothing
    other.trainable = True
    assert frozen_parts(other) == free


def test_training_goes_on_after_loading_with_frozen_layers(tmp_path):
    """With the optimizer's state, and without moving what is frozen."""
    expected, flow = flow_of_all_kinds(), flow_of_all_kinds()
    for each in (expected, flow):
        freeze_dense(each)
        freeze_layer_of_step(each)
        each.fit(VECTORS, shuffle=False, epochs=2, verbose=0)
    flow = by_file(flow, tmp_path)
    assert frozen_parts(flow)[:2] == frozen_parts(expected)[:2]
    assert flow.optimizer.iterations == 2
    flow.run_eagerly = True
    for each in (expected, flow):
        each.fit(VECTORS, shuffle=False, verbose=0)
    for weight, other in zip(flow.weights, expected.weights, strict=True):
        np.testing.assert_allclose(weight, other, rtol=1e-5, atol=1e-6, err_msg=weight.path)


def test_files_of_weights_know_nothing_of_frozen_layers(tmp_path):
    flow, other = flow_of_all_kinds(), flow_of_all_kinds()
    freeze_all_but_one(flow)
    free = frozen_parts(other)
    perturb(other, seed=1)
    flow.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    assert same_weights(other, flow) and frozen_parts(other) == free


@keras.saving.register_keras_serializable(package="tests")
class OfItsOwnConfig(Flow):
    """Its config does without `super`, and its constructor takes no other arguments."""

    def __init__(self, width):
        super().__init__(layers.Chain([coupling(networks.MLP(width, 1))]), (4,), seed=0)
        self.width = width

    def get_config(self):
        return {"width": self.width}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def test_subclasses_that_write_their_own_config(tmp_path):
    flow = OfItsOwnConfig(5)
    assert flow.get_config() == {"width": 5}
    freeze_dense(flow)
    for copy in (by_file, by_preset, by_clone):
        assert frozen_parts(copy(flow, tmp_path)) == frozen_parts(flow)


def test_frozen_layers_of_another_architecture_are_refused(tmp_path):
    flow = zoo.Glow((4, 4, 1), levels=2, depth=1, width=4, seed=0)
    flow.adapt(np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1), "uint8"))
    freeze_repeat(flow)
    flow.save_to_preset(tmp_path / "preset")
    with pytest.raises(ValueError, match="position among 29 layers.* has 16.*`set_later`"):
        Flow.from_preset(tmp_path / "preset", load_weights=False, levels=1)
    other = Flow.from_preset(tmp_path / "preset", load_weights=False, levels=1, set_later=None)
    assert all(layer.trainable for layer in flatten_layers(other))


def test_stacks_follow_what_is_frozen_in_the_pattern_and_by_hand():
    flow = flow_of_all_kinds()
    repeat = one(layers.Repeat, flow)
    count = len(repeat.trainable_weights)
    repeat.trainable_weights[0].trainable = False
    assert len(flow.bijection.layers[0].trainable_weights) == count - 1
    freeze_layer_of_step(flow)
    assert len(repeat.trainable_weights) == count - 3
    repeat.step.layers[1].trainable = False
    repeat.step.layers[1].trainable = True
    assert len(repeat.trainable_weights) == count - 1
    assert not layers.Repeat(layers.ActNorm(), 2).variables


# Changes after the first call.


class Bent(keras.layers.Layer):
    """A network with a public number, which also notes what it has computed."""

    def __init__(self):
        super().__init__()
        self.slope = 1.0

    def call(self, inputs):
        self.last = self.slope * inputs
        return self.last


def flow_to_change():
    keras.utils.set_random_seed(0)
    network = keras.Sequential([Dense(6, "relu"), Bent()])
    return make_flow(coupling(network), coupling(swap=True))


def enable_lora(flow):
    dense = one(Dense, flow)
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(np.ones(dense.lora_kernel_b.shape))


def quantize_layer(flow):
    one(Dense, flow).quantize("int8")


def quantize_model(flow):
    with pytest.warns(UserWarning, match="does not have a `quantize` method"):
        flow.quantize("int8")


def change_activation(flow):
    one(networks.MLP, flow)._layers_in_order[0].activation = keras.activations.tanh


def change_attribute(flow):
    one(Bent, flow).slope = 2.0


def change_dtype(flow):
    one(Dense, flow).dtype_policy = "mixed_bfloat16"


def change_prior(flow):
    flow.prior = "logistic"


def change_weight(flow):
    one(Dense, flow).kernel.assign_add(np.ones(one(Dense, flow).kernel.shape))


CHANGES = [
    enable_lora,
    quantize_layer,
    quantize_model,
    change_activation,
    change_attribute,
    change_dtype,
    change_prior,
    change_weight,
]


@pytest.mark.parametrize("change", slow_but([enable_lora], *CHANGES))
def test_the_next_call_sees_a_change(change):
    flow = flow_to_change()
    flow.compile("sgd")
    latent = flow.encode(VECTORS)
    methods = {
        "log_prob": lambda: flow.log_prob(VECTORS),
        "decode": lambda: flow.decode(latent),
        "predict": lambda: flow.predict(VECTORS, verbose=0)["log_prob"],
        "evaluate": lambda: flow.evaluate(VECTORS, verbose=0)[0],
    }
    before = {name: np.array(method()) for name, method in methods.items()}
    change(flow)
    after = {name: np.array(method()) for name, method in methods.items()}
    tf.config.run_functions_eagerly(True)
    try:
        expected = {name: np.array(method()) for name, method in methods.items()}
    finally:
        tf.config.run_functions_eagerly(False)
    # Eagerly, half precision is rounded more often than where oneDNN has several operations in one.
    tolerance = 1e-2 if change is change_dtype else 1e-5
    for name in methods:
        np.testing.assert_allclose(after[name], expected[name], tolerance, tolerance, err_msg=name)
        # The graph from before would give the very same numbers.
        unmoved = change is change_prior and name == "decode"
        assert np.array_equal(after[name], before[name]) == unmoved, name


@pytest.mark.slow
def test_sample_sees_a_change():
    flow = flow_to_change()
    before = flow.sample(3, seed=0)
    change_attribute(flow)
    after = flow.sample(3, seed=0)
    assert not np.allclose(after, before)


@pytest.mark.slow
def test_the_next_fit_sees_what_is_frozen():
    flow = flow_to_change()
    flow.compile("sgd")
    flow.fit(VECTORS, verbose=0)
    freeze_dense(flow)
    dense = one(networks.MLP, flow)._layers_in_order[0]
    before = dense.get_weights(), one(Dense, flow).get_weights()
    flow.fit(VECTORS, verbose=0)
    np.testing.assert_array_equal(dense.kernel, before[0][0])
    assert np.any(one(Dense, flow).kernel != before[1][0])


@pytest.mark.slow
def test_fit_refuses_weights_that_the_optimizer_does_not_know():
    flow = flow_to_change()
    flow.compile("sgd")
    flow.fit(VECTORS, verbose=0)
    enable_lora(flow)
    with pytest.raises(ValueError, match="Unknown variable.*lora_kernel_a"):
        flow.fit(VECTORS, verbose=0)
    flow.compile("sgd")
    flow.fit(VECTORS, verbose=0)


@pytest.mark.parametrize("run_eagerly", [True, pytest.param(False, marks=SLOW)])
def test_a_graph_stays_where_nothing_has_changed(run_eagerly, tmp_path):
    """What training sets on the model, or a layer on itself, is no change."""
    traces = []

    class Traced(layers.DiagonalScaling):
        def forward_and_log_det(self, x, condition=None, training=False):
            if not tf.executing_eagerly():
                traces.append(training)
            return super().forward_and_log_det(x, condition, training)

    flow = Flow(layers.Chain([Traced(), coupling(Bent())]), (4,))
    flow.compile("adam", run_eagerly=run_eagerly)

    def use():
        flow.fit(VECTORS, validation_data=(VECTORS,), verbose=0)
        flow.evaluate(VECTORS, verbose=0)
        flow.predict(VECTORS, verbose=0)
        flow.train_on_batch(VECTORS)
        flow(VECTORS)
        flow.log_prob(VECTORS)
        flow.encode(VECTORS)
        flow.save(tmp_path / "model.keras")

    use()
    once, version = len(traces), flow._graphs.version
    assert traces
    use()
    use()
    assert len(traces) == once
    assert flow._graphs.version == version


def test_distributions_and_checkpoints_see_weights_that_came_later(tmp_path):
    flow = flow_to_change()
    inverse = tfp.bijectors.Invert(flow.bijection)
    before = len(inverse.variables)
    enable_lora(flow)
    assert len(inverse.variables) == before + 2 == len(flow.bijection.variables)
    path = tf.train.Checkpoint(flow.bijection).write(str(tmp_path / "checkpoint"))
    stored = [name for name, _ in tf.train.list_variables(path) if "VARIABLE_VALUE" in name]
    assert len(stored) == before + 2


# Quantised, or with LoRA, and saved.


def mlp():
    return networks.MLP(6, 2)


def dense():
    return Dense(6, "relu")


def sequential():
    return keras.Sequential([Dense(6, "relu"), Dense(4)])


@pytest.mark.parametrize("copy", slow_but([by_file], *COPY))
@pytest.mark.parametrize("mode", ["int8", pytest.param("int4", marks=SLOW)])
@pytest.mark.parametrize("make_network", slow_but([mlp], mlp, dense, sequential))
@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method")
def test_a_copy_is_quantized_alike(make_network, mode, copy, tmp_path):
    flow = make_flow(coupling(make_network()), coupling(swap=True))
    precise = flow(VECTORS)["log_prob"]
    flow.quantize(mode)
    expected = flow(VECTORS)["log_prob"]
    assert not np.allclose(expected, precise, rtol=3e-5)
    other = copy(flow, tmp_path)
    np.testing.assert_allclose(other(VECTORS)["log_prob"], expected, rtol=1e-6)
    assert json.dumps(other.get_later()) == json.dumps(flow.get_later())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method")
def test_a_copy_is_quantized_as_configured(tmp_path):
    flow = make_flow(coupling(networks.MLP(6, 2)))
    quantizer = keras.quantizers.AbsMaxQuantizer(axis=0, value_range=(-7, 7))
    flow.quantize(config=keras.quantizers.Int8QuantizationConfig(weight_quantizer=quantizer))
    other = by_file(flow, tmp_path)
    np.testing.assert_allclose(other(VECTORS)["log_prob"], flow(VECTORS)["log_prob"], rtol=1e-6)
    assert json.dumps(other.get_later()) == json.dumps(flow.get_later())


@pytest.mark.slow
def test_a_copy_has_lora_alike(tmp_path):
    flow = flow_of_all_kinds()
    dense = flow.bijection.layers[1].network._layers_in_order[0]
    dense.enable_lora(2)
    flow.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    flow.fit(VECTORS, verbose=0, epochs=2)
    for copy in (by_file, by_preset, inside_another):
        other = copy(flow, tmp_path)
        np.testing.assert_allclose(
            other(VECTORS)["log_prob"], flow(VECTORS)["log_prob"], rtol=1e-4, atol=1e-5
        )
        assert frozen_parts(other) == frozen_parts(flow)
        if copy is by_file:
            assert other.optimizer.iterations == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda flow: flow.quantize("int8"),
        lambda flow: keras.Sequential([keras.Input((4,)), flow.bijection]).quantize("int8"),
        lambda flow: one(layers.Repeat, flow).quantize("int8"),
        lambda flow: one(layers.Repeat, flow).step.layers[1].quantize("int8"),
        lambda flow: one(layers.Repeat, flow).step.layers[1].network._layers[0].quantize("int8"),
        lambda flow: one(layers.Repeat, flow).step.layers[1].network._layers[0].enable_lora(2),
    ],
)
@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method")
def test_the_pattern_of_a_repeat_refuses_to_change(change):
    flow = flow_of_all_kinds()
    with pytest.raises(ValueError, match="a pattern: the weights of the steps are stacked in"):
        change(flow)


def test_a_flow_with_a_repeat_is_not_half_quantized():
    flow = flow_of_all_kinds()
    before = [weight.dtype for weight in flow.weights]
    with pytest.raises(ValueError, match="would change nothing in"):
        flow.quantize("int8")
    assert [weight.dtype for weight in flow.weights] == before


# Trained by another model.


def unadapted():
    keras.utils.set_random_seed(0)
    return Flow(layers.Chain([layers.ActNorm(), coupling()]), (4,), seed=0)


class WithLoss(keras.Model):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow
        self.head = Dense(1)

    def call(self, inputs):
        result = self.flow(inputs)
        self.add_loss(-keras.ops.mean(result["log_prob"]))
        return self.head(result["latent"])


def by_added_loss(flow, **options):
    model = WithLoss(flow)
    model.compile("sgd", "mse", **options)
    model.fit(VECTORS, VECTORS[:, :1], batch_size=6, verbose=0)
    return model


def in_a_functional_model(flow, **options):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, flow(inputs)["log_prob"])
    model.compile("sgd", lambda _, log_prob: -log_prob, **options)
    model.fit(VECTORS, VECTORS[:, 0], batch_size=6, verbose=0)
    return model


def by_hand(flow, run_eagerly=True):
    optimizer = keras.optimizers.SGD()

    def step():
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(flow(VECTORS)["log_prob"])
        weights = flow.trainable_weights
        optimizer.apply(tape.gradient(loss, weights), weights)

    (step if run_eagerly else tf.function(step))()


@pytest.mark.parametrize("run_eagerly", [True, pytest.param(False, marks=SLOW)])
@pytest.mark.parametrize("train", [by_added_loss, in_a_functional_model, by_hand])
def test_a_flow_that_another_model_trains_is_as_good_as_adapted(train, run_eagerly, tmp_path):
    flow = unadapted()
    flow(VECTORS, training=True)  # trains nothing
    assert not flow.adapted
    before = flow.get_weights()
    train(flow, run_eagerly=run_eagerly)
    assert flow.adapted and any(map(np.any, map(np.not_equal, flow.get_weights(), before)))
    assert np.isfinite(flow.log_prob(VECTORS)).all() and np.isfinite(flow.sample(2)).all()

    other = by_file(flow, tmp_path)
    assert other.adapted and same_weights(other, flow)
    flow.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    flow.fit(VECTORS, verbose=0)  # adapts an unadapted one
    assert same_weights(other, flow)


@pytest.mark.slow
def test_xla_notices_that_it_trains_a_flow():
    flow = unadapted()
    by_added_loss(flow, jit_compile=True)
    assert flow.adapted


def test_a_frozen_flow_is_not_trained_by_another_model():
    flow = unadapted()
    flow.trainable = False
    by_added_loss(flow, run_eagerly=True)
    assert not flow.adapted
    with pytest.raises(ValueError, match="needs a model that is adapted"):
        flow.log_prob(VECTORS)


@pytest.mark.slow
def test_gradients_through_an_unadapted_flow_are_those_of_an_adapted_one():
    x = tf.constant(VECTORS)
    results = []
    for adapted in (False, True):
        flow = unadapted()
        perturb(flow)
        flow._adapted.assign(adapted)
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                log_prob = flow(x)["log_prob"]
            gradient = tape.gradient(log_prob, x)
        results.append([log_prob, gradient, outer.batch_jacobian(gradient, x)])
    for actual, desired in zip(*results, strict=True):
        np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-6)
    assert np.any(results[0][2] != 0)
