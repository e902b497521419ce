"""Private names of Keras and TensorFlow: a test that fails here tells what can go."""

import pathlib
import re

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from conftest import what_xla_reads

from keras_flows import layers, networks, private
from keras_flows.bijector import BijectorLayer

PACKAGE = pathlib.Path(private.__file__).parent
OWN = re.compile(r"\b(self|cls|super\(\))\._")


def test_they_are_reached_from_one_file():
    """Elsewhere only a name of `self`'s own, or of a module's, begins with an underscore."""
    reached = {
        f"{path.name}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text().splitlines()
        if path.name != "private.py"
        if re.search(r"\w\)?\._[a-z]", OWN.sub("", line)) and not line.lstrip().startswith("#")
    }
    assert not reached


def test_keras_walks_through_layers_in_private():
    assert not hasattr(keras.layers.Layer, "flatten_layers"), "private.flatten_layers"
    repeat = layers.Repeat(layers.Chain([layers.ActNorm()]), 2)
    kinds = [type(layer) for layer in private.flatten_layers(layers.Chain([repeat]))]
    assert kinds == [layers.Chain, layers.Repeat, layers.Chain, layers.ActNorm]


def test_keras_forgets_in_public_what_was_declared_trainable():
    dense = keras.layers.Dense(2)
    dense.build((None, 3))
    dense.trainable = False
    assert not dense.trainable_variables, "private.declared_trainable"
    assert private.declared_trainable(dense) == [dense.kernel, dense.bias]


def test_keras_tells_in_public_no_variables_of_a_layer_without_those_inside():
    model = keras.Sequential([keras.layers.Dense(2)])
    model.build((None, 3))
    assert model.variables and not private.own_variables(model), "private.own_variables"
    assert private.own_variables(model.layers[0]) == model.variables


class Plain(BijectorLayer):
    """A layer as `Bijection`, but for `private.TrackedByTensorFlow`."""

    def build(self, input_shape):
        self.inner = [keras.layers.Dense(3)]
        self.inner[0].build(input_shape)

    def compute_output_shape(self, input_shape):
        return input_shape


class Tracked(private.TrackedByTensorFlow, Plain):
    pass


def test_tensorflow_does_not_see_the_variables_of_keras(tmp_path):
    seen, saved = {}, {}
    for kind in (Plain, Tracked):
        layer = kind()
        layer.build((None, 3))
        seen[kind] = len(tfp.bijectors.Invert(layer).trainable_variables)
        path = tf.train.Checkpoint(layer).write(str(tmp_path / kind.__name__))
        saved[kind] = sum("VARIABLE_VALUE" in name for name, _ in tf.train.list_variables(path))
    assert seen == {Plain: 0, Tracked: 2}, "private.TrackedByTensorFlow._post_build"
    assert saved == {Plain: 0, Tracked: 2}, "private.TrackedByTensorFlow._trackable_children"


def test_keras_moments_of_all_replicas_cancel():
    x = np.random.default_rng(0).normal(1e4, 1, (1000, 1, 1, 2)).astype("float32")
    stock = keras.layers.BatchNormalization(synchronized=True)
    ours = networks.ResNet(2, 1)._output_norm
    assert ours.synchronized
    errors = []
    for norm in (stock, ours):
        norm.build(x.shape)
        _, variance = norm._moments(tf.constant(x), None)
        errors.append(np.max(np.abs(variance - x.astype("float64").var(axis=(0, 1, 2)))))
    assert errors[0] > 0.1, "private.OwnMoments"
    assert errors[1] < 1e-3


def test_tensorflow_gives_all_strategies_the_same_keys():
    def key(strategy):
        return strategy.extended._collective_ops._launchers[0]._group_key

    first, second = (tf.distribute.MirroredStrategy(["CPU:0"]) for _ in range(2))
    assert key(first) == key(second), "private.separate_collectives"
    keys = []
    for strategy in (first, second, first):
        private.separate_collectives(strategy)
        keys.append(key(strategy))
    assert keys[0] == keys[2] != keys[1]
    private.separate_collectives(tf.distribute.get_strategy())  # has none


GRADIENT_BY_XLA = """
import sys, tensorflow as tf
from keras_flows import private

mapped = {"private": private.vectorized_map, "tf": tf.vectorized_map}[sys.argv[1]]
weights = tf.Variable(tf.ones((2, 3)))

@tf.function(jit_compile=True)
def gradient():
    with tf.GradientTape() as tape:
        sums = mapped(lambda row: tf.reduce_sum(tf.exp(row)), tf.convert_to_tensor(weights))
    return tape.gradient(sums, weights)

gradient()
"""


def test_xla_makes_constants_of_what_tensorflow_vectorizes():
    assert what_xla_reads(GRADIENT_BY_XLA, "tf") == {"constant-resource"}, "private.vectorized_map"
    assert what_xla_reads(GRADIENT_BY_XLA, "private") == {"resource"}


def test_keras_keeps_the_first_epoch_and_the_losses_private():
    assert not hasattr(keras.Model, "initial_epoch"), "private.get_initial_epoch"
    assert not hasattr(keras.Model, "clear_losses"), "private.clear_losses"


def test_tf_data_keeps_the_inputs_of_a_dataset_private():
    dataset = tf.data.Dataset.range(3)
    assert not hasattr(dataset, "inputs"), "private.datasets_of"
    assert list(private.datasets_of(dataset.map(lambda x: x))) == [dataset]
