"""What `Repeat` promises beyond what every bijection does; test_bijections.py has its cases."""

import collections
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import RandomElements, RandomHalf, SinhCoupling, UserBijection
from conftest import perturb, run_python

from keras_flows import Bijection, Flow, layers, networks, zoo

SHAPE = (4, 4, 4)


def glow_step(network=None):
    coupling = layers.AffineCoupling(network or networks.ConvNet(8))
    return layers.Chain([layers.ActNorm(), layers.InvertibleConv1x1(), coupling])


def make_repeat(step, depth, shape, scale=0.05, **options):
    """Built, with perturbed weights."""
    repeat = layers.Repeat(step, depth, **options)
    repeat.build((None, *shape))
    perturb(repeat, scale)
    return repeat


def batch(shape, size=3):
    return np.random.default_rng(1).normal(size=(size, *shape)).astype(keras.config.floatx())


def with_gradients(layer, x, condition=None, traced=True):
    """(z, log_det, gradient in x, gradients in the weights) of a loss that needs all of them."""

    def compute(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z, log_det = layer.forward_and_log_det(x, condition, training=True)
            # Not symmetric, so that no term can take another's place.
            loss = tf.reduce_sum(tf.sin(z) + z**2) - tf.reduce_sum(log_det * (1 + log_det))
        return z, log_det, *tape.gradient(loss, [x, *layer.trainable_weights])

    compute = tf.function(compute, autograph=False) if traced else compute
    z, log_det, dx, *gradients = compute(tf.convert_to_tensor(x))
    return z, log_det, dx, gradients


def distance(actual, desired):
    return np.linalg.norm(np.subtract(actual, desired)) / (np.linalg.norm(desired) or 1)


@pytest.mark.parametrize(
    "policy", ["float64", pytest.param("float32", marks=pytest.mark.slow)], indirect=True
)
def test_gradients_are_those_of_single_steps(policy):
    # Deep where rounding adds up; each of the single steps takes its time.
    depth, tolerance = {"float64": (6, 1e-10), "float32": (32, 1e-4)}[policy]
    loop = make_repeat(glow_step(), depth, SHAPE, 0.03)
    reversible = layers.Repeat(glow_step(), depth, reversible=True)
    reversible.build((None, *SHAPE))
    reversible.set_weights(loop.get_weights())
    x = batch(SHAPE)

    steps = loop.get_steps()
    *desired, by_step = with_gradients(layers.Chain(steps), x, traced=False)  # sooner than a trace
    count = len(steps[0].trainable_weights)
    for repeat in (loop, reversible):
        *actual, gradients = with_gradients(repeat, x)
        for value, wanted in zip(actual, desired, strict=True):
            assert distance(value, wanted) < tolerance
        assert count == len(gradients) == len(repeat.trainable_weights)
        for i, (weight, gradient) in enumerate(zip(repeat.trainable_weights, gradients)):
            assert distance(gradient, np.stack(by_step[i::count])) < tolerance, weight.path


STEPS = {
    "no network": lambda: layers.AffineCoupling(None, scale="exp"),
    "tanh": lambda: layers.AffineCoupling(networks.MLP(5), swap=True, scale="tanh"),
    "additive": lambda: layers.AdditiveCoupling(networks.MLP(5), partition="even_odd"),
    "network with batch norm": lambda: layers.AffineCoupling(
        # Without a bias, in which the gradient would be zero but for rounding.
        keras.Sequential([keras.layers.Dense(5, use_bias=False), keras.layers.BatchNormalization()])
    ),
    "spline, dropout": lambda: layers.SplineCoupling(
        networks.ResidualMLP(5, 1, dropout=0.5), bins=3
    ),
    "act norm": layers.ActNorm,
    "scaling": layers.DiagonalScaling,
    "repeat": lambda: layers.Chain([layers.Repeat(glow_step(networks.MLP(5)), 2)]),
    "reversible repeat": lambda: layers.Repeat(glow_step(networks.MLP(5)), 2, reversible=True),
    "partition of one's own": lambda: layers.AffineCoupling(
        networks.MLP(5), partition=RandomHalf()
    ),
    "masks of one's own": lambda: SinhCoupling(networks.MLP(5), partition=RandomElements()),
    "checkerboard": lambda: layers.AffineCoupling(
        networks.ConvNet(3), partition="checkerboard", scale="tanh"
    ),
    "tokens": lambda: glow_step(networks.MLP(5)),
}
SHAPES = {"checkerboard": (3, 2, 2), "tokens": (3, 4)}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name == "repeat" else name for name in STEPS],
)
@pytest.mark.parametrize("policy", ["float64"], indirect=True)
def test_a_reversible_gradient_is_that_of_the_loop(name, policy):
    shape = SHAPES.get(name, (5,))
    repeat = make_repeat(STEPS[name](), 3, shape, 0.2, reversible=True)
    weights = repeat.get_weights()
    actual = with_gradients(repeat, batch(shape))
    repeat.set_weights(weights)  # among them what Dropout draws from
    desired = with_gradients(repeat, batch(shape), traced=False)  # eagerly, nothing is inverted
    for value, wanted in zip((*actual[:3], *actual[3]), (*desired[:3], *desired[3]), strict=True):
        assert distance(value, wanted) < 1e-10


@pytest.mark.parametrize("policy", ["float64"], indirect=True)
def test_a_reversible_gradient_of_the_gradient_is_that_of_the_loop(policy):
    def step():
        coupling = layers.AffineCoupling(None, scale="tanh")
        return layers.Chain([layers.ActNorm(), layers.InvertibleConv1x1(), coupling])

    shape = (4,)
    repeat = make_repeat(step(), 2, shape, 0.2, reversible=True)

    def penalty_gradients(x):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                z, log_det = repeat.forward_and_log_det(x, training=True)
                log_prob = log_det - tf.reduce_sum(z**2, axis=range(1, len(z.shape)))
            penalty = tf.reduce_sum(inner.gradient(log_prob, x) ** 2)
        return outer.gradient(penalty, repeat.trainable_weights)

    x = tf.constant(batch(shape))
    traced = tf.function(penalty_gradients, autograph=False)(x)
    for actual, desired in zip(traced, penalty_gradients(x), strict=True):  # nothing is inverted
        assert (actual is None) == (desired is None)
        assert actual is None or distance(actual, desired) < 1e-9


@keras.saving.register_keras_serializable(package="test_repeat")
class SlowToInvert(UserBijection):
    """As a user's layer says it."""

    inverts_cheaply = False


def causal_affine(num_layers=1):
    network = networks.CausalTransformer(4, num_layers, num_heads=2)
    return layers.CausalAffine(network, condition_shape=(2,))


@pytest.mark.parametrize(
    "make", [SlowToInvert, pytest.param(causal_affine, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("policy", ["float64"], indirect=True)
def test_a_recomputed_gradient_is_that_of_single_steps(make, policy):
    repeat = make_repeat(make(), 3, (3, 2), 0.2)
    x, condition = batch((3, 2)), tf.constant(batch((2,)))
    actual = with_gradients(repeat, x, condition)
    desired = with_gradients(repeat, x, condition, traced=False)  # where steps run one by one
    for value, wanted in zip((*actual[:3], *actual[3]), (*desired[:3], *desired[3]), strict=True):
        assert distance(value, wanted) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float64"], indirect=True)
def test_recomputed_gradients_of_the_second_order(policy):
    repeat = make_repeat(SlowToInvert(), 3, (3,), 0.5)

    def penalty_gradients(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                z, log_det = repeat.forward_and_log_det(x, training=True)
                log_prob = log_det - tf.reduce_sum(z**2, axis=1)
            penalty = tf.reduce_sum(inner.gradient(log_prob, x) ** 3)
        return outer.gradient(penalty, [x, *repeat.trainable_weights])

    x = tf.constant(batch((3,)))
    traced = tf.function(penalty_gradients, autograph=False)(x)
    for actual, desired in zip(traced, penalty_gradients(x), strict=True):
        assert np.any(desired) and distance(actual, desired) < 1e-9


def test_each_step_draws_its_own_constants():
    np.random.seed(0)
    repeat = make_repeat(layers.AdditiveCoupling(None, partition=RandomHalf()), 4, (5,))
    orders, _ = (weight for weight in repeat.weights if weight.dtype == "int64")
    assert len({tuple(order) for order in np.asarray(orders)}) > 1
    before = np.asarray(orders)
    with_gradients(repeat, batch((5,)))
    np.testing.assert_array_equal(orders, before)
    x = batch((5,))
    z, log_det = layers.Chain(repeat.get_steps()).forward_and_log_det(x)
    traced = tf.function(repeat.forward_and_log_det, autograph=False)
    for value, wanted in zip(traced(x), (z, log_det), strict=True):
        assert distance(value, wanted) < 1e-5


@keras.saving.register_keras_serializable(package="test_repeat")
class Told(Bijection):
    """z = x + offset, with what a user's layer may say of itself."""

    def __init__(self, constant=False, undone=True, **kwargs):
        super().__init__(**kwargs)
        self.constant = constant
        self.undone = undone
        self.invertible_in_training = undone

    def build(self, input_shape):
        self.offset = self.add_weight(name="offset", shape=(), initializer="ones", trainable=False)
        if self.constant:
            self.constant_weights = [self.offset]

    def forward_and_log_det(self, x, condition=None, training=False):
        return x + self.offset, tf.zeros(tf.shape(x)[0])

    def inverse_and_log_det(self, z, condition=None, training=False):
        return z - self.offset, tf.zeros(tf.shape(z)[0])


def test_a_users_layer_says_what_is_constant_and_what_is_not_invertible():
    def operations(layer):
        function = tf.function(
            lambda x: layer.forward_and_log_det(x, training=True)[0], autograph=False
        )
        graph = function.get_concrete_function(tf.zeros((2, 4))).graph
        return [operation.type for operation in graph.get_operations()]

    for constant in (False, True):
        repeat = layers.Repeat(Told(constant), 3)
        repeat.build((None, 4))
        assert ("AssignVariableOp" in operations(repeat)) != constant  # a state is written back
        np.testing.assert_array_equal(repeat(np.zeros((2, 4))), np.full((2, 4), 3))
    layers.Repeat(Told(), 2, reversible=True)
    with pytest.raises(ValueError, match="`reversible` must be False.*'told"):
        layers.Repeat(layers.Chain([Told(undone=False)]), 2, reversible=True)


def test_gradient_of_the_inverse():
    repeat = make_repeat(glow_step(networks.MLP(5)), 3, (4,), reversible=True)
    z = tf.convert_to_tensor(batch((4,)))

    def gradient(z, layer=repeat):
        with tf.GradientTape() as tape:
            tape.watch(z)
            x, log_det = layer.inverse_and_log_det(z)
            loss = tf.reduce_sum(x**2) + tf.reduce_sum(log_det)
        return tape.gradient(loss, z)

    traced = tf.function(gradient, autograph=False)(z)
    assert distance(traced, gradient(z, layers.Chain(repeat.get_steps()))) < 1e-4


def test_condition_reaches_the_backward_pass():
    repeat = make_repeat(layers.LearnedPrior(num_classes=3), 2, (4,), reversible=True)
    labels = tf.constant([2, 0, 1])
    actual, desired = (
        with_gradients(repeat, batch((4,)), labels, traced) for traced in (True, False)
    )
    for value, wanted in zip((actual[2], *actual[3]), (desired[2], *desired[3]), strict=True):
        assert distance(value, wanted) < 1e-4


@keras.saving.register_keras_serializable(package="test_repeat")
class Shift(Bijection):
    """z = x + condition * weight."""

    def build(self, input_shape):
        self.weight = self.add_weight(name="weight", shape=(), initializer="ones")

    def forward_and_log_det(self, x, condition=None, training=False):
        return x + condition * self.weight, tf.zeros(tf.shape(x)[0])

    def inverse_and_log_det(self, z, condition=None, training=False):
        return z - condition * self.weight, tf.zeros(tf.shape(z)[0])


@keras.saving.register_keras_serializable(package="test_repeat")
class SlowShift(Shift):
    inverts_cheaply = False


@pytest.mark.parametrize(("step", "reversible"), [(Shift, True), (SlowShift, False)])
def test_gradient_in_a_condition(step, reversible):
    repeat = make_repeat(step(), 3, (4,), reversible=reversible)

    @tf.function(autograph=False)
    def gradient(x, condition):
        with tf.GradientTape() as tape:
            tape.watch(condition)
            z, _ = repeat.forward_and_log_det(x, condition, training=True)
        return tape.gradient(z, condition)

    condition = tf.constant(batch((4,)))
    actual = gradient(tf.constant(batch((4,))), condition)
    np.testing.assert_allclose(actual, np.full((3, 4), sum(repeat.get_weights()[0])), rtol=1e-6)


# What does not grow with the depth.


def nodes(function, *arguments):
    graph = tf.function(function, autograph=False).get_concrete_function(*arguments).graph
    definition = graph.as_graph_def()
    return len(definition.node) + sum(len(f.node_def) for f in definition.library.function)


@pytest.mark.parametrize("reversible", [False, True])
def test_graph_does_not_grow_with_depth(reversible):
    def training_step(depth):
        model = zoo.Glow((4,), depth=depth, width=4, reversible=reversible)
        model.compile("sgd")
        model.optimizer.build(model.trainable_variables)
        return nodes(model.train_step, tf.zeros((2, 4)))

    assert training_step(6) == training_step(2)


def loop_bodies(graph):
    """How many operations of each type are in the body of each loop, in order."""
    for operation in graph.get_operations():
        if operation.type in ("While", "StatelessWhile"):
            body = graph._get_function(operation.get_attr("body").name).graph
            yield collections.Counter(inner.type for inner in body.get_operations())


PRODUCTS = ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter", "MatMul", "BatchMatMulV2")


@pytest.mark.parametrize(
    ("make", "forward", "backward", "most"),
    [
        pytest.param(
            lambda: zoo.Glow((8, 8, 1), levels=1, depth=2, width=8),
            {"Conv2D": 2, "MatMul": 2},  # a 1x1 convolution is a product of matrices
            {"Conv2DBackpropInput": 1, "Conv2DBackpropFilter": 1, "MatMul": 6},
            (155, 190),
            id="glow",
        ),
        pytest.param(
            lambda: zoo.NSF((4,), depth=2, width=8),
            {"MatMul": 7},
            {"MatMul": 14},
            (390, 590),
            id="nsf",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: zoo.Jet((8, 8, 1), depth=2, width=8),
            {"MatMul": 8, "BatchMatMulV2": 2},
            {"MatMul": 16, "BatchMatMulV2": 4},
            (370, 570),
            id="jet",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_operations_of_a_step(make, forward, backward, most):
    """No product is computed twice; all operations, that the graph gets no heavier unseen."""
    model = make()

    @tf.function(autograph=False)
    def gradients(x):
        with tf.GradientTape() as tape:
            _, log_prob = model.latent_and_log_prob(x, training=True)
        return tape.gradient(log_prob, model.trainable_variables)

    x = tf.TensorSpec((None, *model.input_shape), tf.float32)
    bodies = list(loop_bodies(gradients.get_concrete_function(x).graph))
    products = [{name: body[name] for name in PRODUCTS if name in body} for body in bodies]
    assert products == [forward, backward]
    idle = ("Const", "Identity", "NoOp", "Placeholder")
    counts = [sum(n for name, n in body.items() if name not in idle) for body in bodies]
    assert all(count <= bound for count, bound in zip(counts, most, strict=True)), counts


@pytest.mark.slow
@pytest.mark.parametrize("num_layers", [1, 3])
def test_what_a_gradient_stores_does_not_grow_with_the_layers_of_a_step(num_layers):
    """Of the loop forward the one backward reads what each step was given alone."""
    repeat = make_repeat(causal_affine(num_layers), 2, (3, 4))

    def gradients(x, condition):
        with tf.GradientTape() as tape:
            z, _ = repeat.forward_and_log_det(x, condition, training=True)
        return tape.gradient(z, repeat.trainable_weights)

    specs = [tf.TensorSpec((None, *shape), tf.float32) for shape in ((3, 4), (2,))]
    traced = tf.function(gradients, autograph=False).get_concrete_function(*specs)
    loops = [operation for operation in traced.graph.get_operations() if "While" in operation.type]
    forward, _ = loops
    lists = [x for x in forward.outputs if x.dtype == tf.variant and x.consumers()]
    (stack,) = (reader.outputs[0] for written in lists for reader in written.consumers())
    assert stack.shape.as_list() == [2, None, 3, 4]


@keras.saving.register_keras_serializable(package="tests")
class Counted(keras.layers.Dense):
    """Counts how often it is computed, wherever that happens."""

    evaluations = None

    def call(self, inputs):
        with tf.control_dependencies([Counted.evaluations.assign_add(1)]):
            return super().call(tf.identity(inputs))


@pytest.mark.parametrize(("reversible", "evaluations"), [(False, 1), (True, 2)])
def test_evaluations_of_the_networks(reversible, evaluations):
    """Of each step's network in a training step: forward, and once more to invert."""
    Counted.evaluations = tf.Variable(0, trainable=False)
    repeat = make_repeat(glow_step(Counted(5)), 4, (4,), reversible=reversible)
    Counted.evaluations.assign(0)
    with_gradients(repeat, batch((4,)))
    assert Counted.evaluations.numpy() == 4 * evaluations


MEMORY = """
import keras
import tensorflow as tf
from keras_flows import layers

# One op at a time: how many are under way at once is chance.
tf.config.threading.set_inter_op_parallelism_threads(1)


def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def gradients(reversible):
    network = keras.layers.Dense(128, activation="relu")  # much to hold, little to compute
    step = layers.AffineCoupling(network, output_layer=keras.layers.Dense(4))
    repeat = layers.Repeat(step, 16, reversible=reversible)
    repeat.build((None, 32, 32, 4))

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((None, 32, 32, 4))])
    def compute(x):
        with tf.GradientTape() as tape:
            z, log_det = repeat.forward_and_log_det(x, training=True)
            loss = tf.reduce_sum(z**2) - tf.reduce_sum(log_det)
        return tape.gradient(loss, repeat.trainable_weights)

    compute(tf.zeros((1, 32, 32, 4)))  # traced before the count starts
    return compute


functions = gradients(reversible=True), gradients(reversible=False)
before = peak()
for compute in functions:
    compute(tf.zeros((16, 32, 32, 4)))
    print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how much memory was used")
def test_memory_of_a_reversible_gradient_is_that_of_few_steps(monkeypatch):
    # What is freed is given back, so that the peak is of what is held and not of the heap's holes.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    # MiB above those of a batch of one. Each step's activations take 16 * 32**2 * 128 floats,
    # 8 MiB; a step and its gradient some more, and threads and kernels some 20, at any depth.
    reversible, loop = map(float, run_python(MEMORY).split())
    assert 8 < reversible < 8 * 8
    assert loop > 16 * 8


# Single steps.


def test_steps_come_out_and_go_in():
    repeat = make_repeat(glow_step(), 3, SHAPE)
    steps = repeat.get_steps()
    for k, step in enumerate(steps):
        single = [*step.trainable_weights, *step.non_trainable_weights]
        stacks = [*repeat.trainable_weights, *repeat.non_trainable_weights]
        for weight, stack in zip(single, stacks, strict=True):
            np.testing.assert_array_equal(weight, stack[k])

    x = batch(SHAPE)
    z, log_det = layers.Chain(steps).forward_and_log_det(x)
    steps[1].layers[0].bias.assign_add(np.ones(4))
    np.testing.assert_array_equal(repeat.forward_and_log_det(x)[0], z)  # copies
    other = layers.Repeat(glow_step(), 3)
    other.build((None, *SHAPE))
    other.set_steps(steps)
    assert not np.allclose(other(x), z)
    other.set_steps(step for step in repeat.get_steps())
    np.testing.assert_array_equal(other.forward_and_log_det(x)[1], log_det)


def test_steps_start_apart_and_as_the_seed_says():
    def weights():
        keras.utils.set_random_seed(7)
        repeat = layers.Repeat(glow_step(), 3)
        repeat.build((None, *SHAPE))
        return repeat.get_weights()

    for stack, same in zip(weights(), weights()):
        np.testing.assert_array_equal(stack, same)
        if np.any(stack != stack[:1]):
            assert not np.array_equal(stack[1], stack[2])
    assert sum(np.any(stack != stack[:1]) for stack in weights()) > 5


def test_adapt_is_that_of_single_steps():
    repeat = make_repeat(glow_step(), 3, SHAPE)
    chain = layers.Chain(repeat.get_steps())
    x = 3 + 2 * batch(SHAPE, size=50)
    repeat.adapt(x)
    chain.adapt(x)
    for step, single in zip(repeat.get_steps(), chain.layers):
        for actual, desired in zip(step.get_weights(), single.get_weights(), strict=True):
            np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-5)
    z, _ = repeat.get_steps()[0].layers[0].forward_and_log_det(x)
    np.testing.assert_allclose(np.std(z, axis=(0, 1, 2)), 1, rtol=1e-3)


def test_moving_averages_are_those_of_single_steps():
    def step():
        network = keras.Sequential([keras.layers.Dense(5), keras.layers.BatchNormalization()])
        return layers.Chain([layers.AffineCoupling(network), layers.BatchNorm()])

    x = batch((4,), size=20)
    for call in (lambda f, x: f(x), lambda f, x: tf.function(f, autograph=False)(x)):
        repeat = make_repeat(step(), 3, (4,))
        chain = layers.Chain(repeat.get_steps())
        for layer in (repeat, chain):
            call(lambda x, layer=layer: layer.forward_and_log_det(x, training=True), x)
        for single, actual in zip(chain.layers, repeat.get_steps(), strict=True):
            for value, desired in zip(actual.get_weights(), single.get_weights(), strict=True):
                np.testing.assert_allclose(value, desired, rtol=1e-5, atol=1e-6)
        assert not np.allclose(chain.layers[1].get_weights()[-2], 0)


def test_each_step_drops_other_units_at_each_call():
    network = networks.ResidualMLP(5, 1, dropout=0.5)
    repeat = make_repeat(layers.AdditiveCoupling(network), 3, (4,), scale=1.0)
    chain = layers.Chain(repeat.get_steps())
    run = tf.function(lambda x: repeat.forward_and_log_det(x, training=True)[0], autograph=False)
    x = batch((4,))
    first, second = run(x), run(x)
    for z in (first, second):
        np.testing.assert_allclose(chain.forward_and_log_det(x, training=True)[0], z, rtol=1e-5)
    assert not np.allclose(first, second)
    (states,) = (w.numpy() for w in repeat.weights if w.dtype == "int64")
    assert len(set(states[:, 0])) == 3 and set(states[:, 1]) == {2}


def test_frozen_steps_keep_their_moving_averages():
    repeat = make_repeat(layers.BatchNorm(), 2, (4,))
    before = repeat.get_weights()
    repeat.trainable = False
    traced = tf.function(repeat.forward_and_log_det, autograph=False)
    z, _ = traced(batch((4,)), training=True)
    np.testing.assert_allclose(z, repeat(batch((4,))), rtol=1e-6)
    for value, desired in zip(repeat.get_weights(), before):
        np.testing.assert_array_equal(value, desired)
    assert not repeat.trainable_weights


@pytest.mark.parametrize("frozen", ["all", "a layer of the step"])
def test_frozen_steps_are_restored_and_can_be_trained_again(frozen, tmp_path):
    def flow_of(step):
        return Flow(layers.Chain([layers.Repeat(step, 2), layers.Flatten()]), (2, 2, 2))

    step = glow_step()
    if frozen == "a layer of the step":
        step.layers[2].network.trainable = False
    flow = flow_of(step)
    flow.adapt(np.random.default_rng(0).integers(0, 256, (16, 2, 2, 2), "uint8"))
    (repeat, _) = flow.bijection.layers
    if frozen == "all":
        repeat.trainable = False
    assert len(repeat.trainable_weights) < len(repeat.weights) - 3  # three never are

    flow.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras").bijection.layers[0]
    for value, desired in zip(restored.weights, repeat.weights, strict=True):
        assert value.name == desired.name
        np.testing.assert_array_equal(value, desired)
    assert len(restored.trainable_weights) == len(repeat.trainable_weights)
    restored.trainable = False  # an assignment that changes nothing does nothing
    restored.trainable = True
    assert len(restored.trainable_weights) == len(flow_of(glow_step()).trainable_weights)


def test_regularizers_and_constraints_are_those_of_single_steps():
    def dense(**options):
        return keras.layers.Dense(
            5, kernel_regularizer="l2", kernel_constraint=keras.constraints.MaxNorm(0.5), **options
        )

    repeat = make_repeat(layers.AffineCoupling(dense()), 3, (4,), scale=1.0)
    penalties = [sum(step.losses) for step in repeat.get_steps()]
    np.testing.assert_allclose(sum(repeat.losses), sum(penalties), rtol=1e-6)
    kernels = [weight for weight in repeat.weights if weight.constraint is not None]
    assert len(kernels) == 1
    constrained = kernels[0].constraint(kernels[0].value)
    for step, kernel in zip(repeat.get_steps(), constrained):
        np.testing.assert_allclose(kernel, step.network.kernel_constraint(step.network.kernel))


# In a model.


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            lambda **options: zoo.Glow((4, 4, 1), levels=1, depth=3, width=4, seed=0, **options),
            marks=pytest.mark.slow,
        ),
        lambda **options: zoo.NICE((5,), depth=7, width=4, num_hidden=1, seed=0, **options),
        pytest.param(
            lambda **options: zoo.RealNVP(
                (5,), depth=6, width=4, batch_norm=False, seed=0, **options
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda **options: zoo.Jet((4, 4, 1), depth=3, width=4, seed=0, **options),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["Glow", "NICE", "RealNVP", "Jet"],
)
def test_reversible_models_take_the_same_weights_and_learn_the_same(make, tmp_path):
    keras.utils.set_random_seed(0)
    model = make()
    x = np.random.default_rng(0).integers(0, 256, (12, *model.input_shape)).astype("uint8")
    x = x if model.is_image else x / np.float32(256)
    model.adapt(x)
    model.save_weights(tmp_path / "model.weights.h5")
    other = make(reversible=True)
    other.load_weights(tmp_path / "model.weights.h5")
    losses = []
    for trained in (model, other):
        trained.compile(keras.optimizers.SGD(1e-3), run_eagerly=not trained.reversible)
        batches = tf.data.Dataset.from_tensor_slices(x).batch(5)
        losses.append(trained.fit(batches, epochs=3, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert len(set(losses[0])) == 3
    assert type(other).from_config(other.get_config()).reversible


@pytest.mark.slow
@pytest.mark.parametrize("reversible", [True, False])
def test_xla_compiles_the_loop(reversible):
    x = tf.convert_to_tensor(batch((4,)))
    repeat = make_repeat(glow_step(networks.MLP(5)), 3, (4,), reversible=reversible)

    def gradients(x):
        with tf.GradientTape() as tape:
            z, log_det = repeat.forward_and_log_det(x, training=True)
            loss = tf.reduce_sum(z**2) - tf.reduce_sum(log_det)
        return tape.gradient(loss, repeat.trainable_weights)

    plain = tf.function(gradients, autograph=False)(x)
    compiled = tf.function(gradients, autograph=False, jit_compile=True)(x)
    for actual, desired in zip(compiled, plain, strict=True):
        assert distance(actual, desired) < 1e-4


# Bad input.


@keras.saving.register_keras_serializable(package="tests")
class AddsLoss(keras.layers.Dense):
    def call(self, inputs):
        self.add_loss(tf.reduce_sum(inputs))
        return super().call(inputs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Repeat(keras.layers.Dense(3), 2), "`step` must"),
        (lambda: layers.Repeat(layers.ActNorm(), 0), "`depth` must be an integer of at least 1"),
        (
            lambda: layers.Repeat(layers.Chain([layers.BatchNorm()]), 2, reversible=True),
            "`reversible` must be False .* cannot be inverted in training",
        ),
        (
            lambda: layers.Repeat(layers.Chain([SlowToInvert()]), 2, reversible=True),
            "`reversible` must be False .* does not invert cheaply.*'slow_to_invert",
        ),
        (
            lambda: zoo.RealNVP((4,), batch_norm=True, reversible=True),
            "`reversible` needs batch_norm=False",
        ),
        (
            lambda: layers.Repeat(layers.Squeeze(), 2).build((None, 4, 4, 1)),
            "`step` must keep the shape",
        ),
        (
            lambda: make_repeat(layers.ActNorm(), 2, (3,)).set_steps([]),
            "`steps` must hold 2 steps",
        ),
        (
            lambda: with_gradients(
                make_repeat(layers.AffineCoupling(AddsLoss(3)), 2, (4,)), batch((4,))
            ),
            "must not add losses",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_built_step_is_refused():
    step = layers.ActNorm()
    step.build((None, 3))
    with pytest.raises(ValueError, match="`step` must not be built"):
        layers.Repeat(step, 2).build((None, 3))
