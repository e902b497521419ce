"""Muon moves each step's kernel as Keras' own moves that kernel by itself, and the rest as Adam."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import perturb

from keras_flows import Flow, layers, networks, optimizers, zoo

RATE, STEPS = 0.01, 3


def moved(optimizer, variables, gradients):
    """The variables after as many steps as there are gradients for each."""
    for each in gradients:
        optimizer.apply([tf.constant(gradient) for gradient in each], variables)
    return [variable.numpy() for variable in variables]


def variable(shape, name="kernel", stack_axes=0):
    value = np.random.default_rng(1).normal(size=shape).astype("float32")
    made = keras.Variable(value, name=name)
    made.stack_axes = stack_axes
    return made


@pytest.mark.parametrize("options", [{}, {"nesterov": False, "rms_rate": None}])
@pytest.mark.parametrize(
    ("shape", "axes"), [((4, 6), 0), ((3, 4, 6), 1), ((2, 3, 6, 4), 2), ((2, 3, 3, 4, 6), 1)]
)
def test_each_matrix_moves_as_by_keras(shape, axes, options):
    """Those of a stack, of stacks of stacks and, with height and width, of convolutions."""
    gradients = np.random.default_rng(2).normal(size=(STEPS, *shape)).astype("float32")
    stacked = variable(shape, stack_axes=axes)
    (ours,) = moved(optimizers.Muon(RATE, **options), [stacked], [[each] for each in gradients])

    def as_matrices(x):
        return x.reshape(-1, int(np.prod(shape[axes:-1])), shape[-1])

    each_step = [as_matrices(gradient) for gradient in gradients]
    alone = [keras.Variable(matrix) for matrix in as_matrices(variable(shape).numpy())]
    options = {"weight_decay": None, "adam_weight_decay": None, **options}
    expected = moved(keras.optimizers.Muon(RATE, **options), alone, each_step)
    np.testing.assert_allclose(as_matrices(ours), expected, atol=1e-6)
    assert np.abs(ours - variable(shape).numpy()).max() > RATE / 10


def test_all_else_moves_as_by_adam():
    shapes = {"bias": (4,), "edge_kernel": (2, 3, 3, 1, 4), "lower": (2, 4, 4), "places": (5, 4)}
    rng = np.random.default_rng(0)
    gradients = [[rng.normal(size=shape) for shape in shapes.values()] for _ in range(STEPS)]
    gradients = [[np.float32(each) for each in step] for step in gradients]
    ours, adams = (
        moved(optimizer, [variable(shape, name) for name, shape in shapes.items()], gradients)
        for optimizer in (optimizers.Muon(RATE), keras.optimizers.Adam(RATE))
    )
    for a, b in zip(ours, adams, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def kinds(optimizer, model):
    """The names of the weights that Muon moves, and of those that Adam does."""
    names = ([], [])
    optimizer.build(model.trainable_variables)
    for weight, velocity in zip(model.trainable_variables, optimizer.adam_velocities, strict=True):
        names[velocity is not None].append(weight.name)
    return names


def test_which_weights_are_matrices():
    glow = zoo.Glow((4, 4, 3), levels=2, depth=2, width=8)
    by_muon, by_adam = kinds(optimizers.Muon(), glow)
    assert {name.split("_")[-1] for name in by_muon} == {"kernel"} and len(by_muon) > 6
    assert any("edge_kernel" in name for name in by_adam)
    assert any("lower" in name for name in by_adam)
    by_muon, _ = kinds(optimizers.Muon(exclude_layers=["output_layer"]), glow)
    assert by_muon and not any("output_layer" in name for name in by_muon)
    # Keras' own, which is why there is this one, takes stacks of vectors for matrices.
    by_muon, _ = kinds(keras.optimizers.Muon(), glow)
    assert any("bias" in name for name in by_muon)
    assert not any("kernel" in name for name in by_muon)


def make(**options):
    keras.utils.set_random_seed(0)
    step = layers.AffineCoupling(networks.MLP(8, 2))
    model = Flow(layers.Repeat(step, 2), (4,), seed=0)
    perturb(model, 0.1)
    model.compile(optimizers.Muon(keras.optimizers.schedules.CosineDecay(0.02, 8)), **options)
    return model


def test_xla_compiles_it():
    x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    models = [make(jit_compile=jit_compile) for jit_compile in (False, True)]
    for model in models:
        model.fit(x, batch_size=10, shuffle=False, epochs=2, verbose=0)
    for a, b in zip(*(model.weights for model in models), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=a.path)


def test_a_file_goes_on_with_it(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    options = {"batch_size": 10, "shuffle": False, "verbose": 0}
    model = make()
    losses = model.fit(x, epochs=2, **options).history["loss"]
    assert losses[1] < losses[0]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.optimizer) is optimizers.Muon
    for each in (model, again):
        each.fit(x, epochs=3, initial_epoch=2, **options)
    for a, b in zip(model.weights, again.weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=a.path)


def test_names_and_arguments():
    assert type(keras.optimizers.get("keras_flows>Muon")) is optimizers.Muon
    made = optimizers.Muon(0.5, momentum=0.9, weight_decay=0.1, exclude_layers=["first"])
    again = type(made).from_config(made.get_config())
    assert again.get_config() == made.get_config()
    assert (again.momentum, again.weight_decay, again.adam_weight_decay) == (0.9, 0.1, None)
