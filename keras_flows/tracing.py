"""Graphs of a model that follow its layers: made once, and anew after a layer has changed."""

import contextlib
import functools
import operator

import keras
import tensorflow as tf

from keras_flows.batch_parts import dividing_batches
from keras_flows.private import flatten_layers, own_variables

# What is set on a model as it compiles, trains, evaluates and predicts.
_OF_TRAINING = {
    "compiled",
    "epochs_trained",
    "history",
    "loss",
    "optimizer",
    "predict_function",
    "stop_evaluating",
    "stop_predicting",
    "stop_training",
    "test_function",
    "train_function",
}


class TracedModel(keras.Model):
    """A `keras.Model` whose graphs are made anew when a layer has changed since.

    TensorFlow bakes into a graph what layers are when it is traced: which weights they have (LoRA
    adds some, quantisation replaces some), what is frozen, dtype policies and public attributes, a
    dropout's rate for instance. All that is looked through at each call, which takes a few
    microseconds for each layer.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._graphs = _Graphs()

    def traced(self, method):
        """`method` as a tf.function; within another one as it is, to be a part of its graph.

        (Of a loop in a function of its own TensorFlow vectorises no second-order gradient.)
        """
        if not tf.executing_eagerly():
            return method
        name, functions = method.__name__, self._graphs.functions
        if self._is_outdated(name) or name not in functions:
            own = dividing_batches()(method)
            functions[name] = tf.function(own, autograph=False, reduce_retracing=True)
        return functions[name]

    def make_train_function(self, force=False):
        return super().make_train_function(self._is_outdated("train") or force)

    def make_test_function(self, force=False):
        return super().make_test_function(self._is_outdated(self._graphs.test) or force)

    @contextlib.contextmanager
    def other_test_function(self, name):
        """Within this context `evaluate` has a graph of this name, which is kept for the next."""
        graphs = self._graphs
        before = graphs.test, self.test_function
        graphs.test, self.test_function = name, graphs.tests.get(name)
        try:
            yield
        finally:
            graphs.tests[name] = self.test_function
            graphs.test, self.test_function = before

    def compile(self, *args, **kwargs):
        super().compile(*args, **kwargs)
        self._graphs.tests.clear()

    def make_predict_function(self, force=False):
        return super().make_predict_function(self._is_outdated("predict") or force)

    def _is_outdated(self, name):
        """Whether a layer has changed since it was last asked of this graph."""
        graphs = self._graphs
        graphs.look_at(self)
        before = graphs.versions.setdefault(name, graphs.version)
        graphs.versions[name] = graphs.version
        return before != graphs.version


class _Graphs:
    """A model's tf.functions, and which version of its layers each graph is of.

    Keras and TensorFlow, which save what they find in lists and dicts, do not look in here.
    """

    def __init__(self):
        self.functions = {}
        self.tests = {}  # of `other_test_function`
        self.test = "test"  # the name of the one that is in use
        self.versions = {}
        self.version = 0
        self._seen = []

    def look_at(self, model):
        """Counts a version if something has changed."""
        state = _state(model)
        if len(state) != len(self._seen) or not all(map(operator.is_, state, self._seen)):
            self._seen = state
            self.version += 1

    def take_as_it_is(self, model):
        self._seen = _state(model)


def computes(method):
    """`method` of a `TracedModel` runs the layers, and what they note of it is no change."""

    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        graphs = self._graphs
        graphs.look_at(self)
        result = method(self, *args, **kwargs)
        graphs.take_as_it_is(self)
        return result

    return wrapped


def _state(model):
    """All that a graph depends on but the weights' values, as objects to compare by identity."""
    state = [
        value for name, value in vars(model).items() if name[0] != "_" and name not in _OF_TRAINING
    ]
    for layer in flatten_layers(model):
        state += [layer.trainable, layer.dtype_policy, *own_variables(layer)]
        if layer is not model:
            state += [value for name, value in vars(layer).items() if name[0] != "_"]
    return state
