"""What only private names of Keras and TensorFlow give; all that this package reaches is here.

`tests/test_private.py` tells, for each, when a release has made it needless.
"""

import collections.abc
import itertools
import weakref

import tensorflow as tf
from tensorflow.python.ops.parallel_for import control_flow_ops

_group_keys = itertools.count(1000, 1000)  # a strategy has a few groups of devices
_separated = weakref.WeakSet()


def flatten_layers(layer):
    """The Keras layer and all layers inside it, those that Keras does not see too.

    Such a layer, like the pattern of a `Repeat`, is named by its owner's `untracked_layers`.
    """
    for inner in layer._flatten_layers():
        yield inner
        for hidden in getattr(inner, "untracked_layers", ()):
            yield from flatten_layers(hidden)


def declared_trainable(layer):
    """The weights of the layer, and of those inside it, that are trainable unless frozen."""
    return [variable for inner in flatten_layers(layer) for variable in inner._trainable_variables]


def own_variables(layer):
    """The variables of the layer itself, without those of layers inside it."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


class TrackedByTensorFlow:
    """Mixin of a Keras layer whose variables `tf.Module`s and `tf.train.Checkpoint` find."""

    def _post_build(self):
        super()._post_build()
        # tfb.Chain and tfd.TransformedDistribution look for tf.Variables in the attributes of
        # tf.Modules, where Keras' own variables hide them.
        self.__dict__["_tf_variables"] = _TFVariables(self)

    def _trackable_children(self, *args, **kwargs):
        # Nor would tf.train.Checkpoint find those of layers in lists. Keras must not see the list:
        # it would count, and save, the weights of inner layers as this one's own.
        children = super()._trackable_children(*args, **kwargs)
        if not self.built:
            return children
        variables, tracked = self.variables, self.__dict__.get("_all_weights")
        if tracked is None or list(map(id, variables)) != list(map(id, tracked)):
            tracked = tf.__internal__.tracking.wrap(list(variables))
            self.__dict__["_all_weights"] = tracked
        return {**children, "all_weights": tracked}


class _TFVariables(collections.abc.Sequence):
    """The layer's variables as TensorFlow's own, those that it has at the time."""

    def __init__(self, layer):
        self._layer = layer

    def __len__(self):
        return len(self._layer.variables)

    def __getitem__(self, index):
        return self._layer.variables[index].value

    def __iter__(self):
        return iter([variable.value for variable in self._layer.variables])


class BuiltByConstructor:
    """Mixin of a model whose constructor builds it: `fit` makes no attempt of its own."""

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras' own reads a batch, of which it takes the mean over replicas, as if they all had
        # examples, and as many.
        pass


class OwnMoments:
    """Mixin of a `keras.layers.BatchNormalization` whose batch's moments are `moments(inputs)`."""

    def _moments(self, inputs, mask):
        return self.moments(inputs)


def apply_reduced_gradients(optimizer, gradients, weights):
    """`optimizer.apply` of gradients that are sums over all replicas already."""
    # Keras would clip each replica's gradients, look for infinities in them, and sum last.
    inner = _innermost(optimizer)
    inner._all_reduce_sum_gradients = lambda gradients_and_weights: gradients_and_weights
    optimizer.apply(gradients, weights)


def batches_trained_on(optimizer):
    """How many batches `optimizer` has had: if it accumulates gradients, not its `iterations`."""
    return _innermost(optimizer)._iterations


def _innermost(optimizer):
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def separate_collectives(strategy):
    """Gives the collective operations of `strategy` keys that no other's in this process have.

    TensorFlow starts from the same ones with each strategy, but remembers what it has seen of them:
    it refuses other shapes and devices, and from then on all.
    """
    if strategy in _separated or not hasattr(strategy.extended, "_collective_keys"):
        return
    _separated.add(strategy)
    keys = strategy.extended._collective_keys
    keys._known_groups.clear()
    keys._group_key = next(_group_keys)
    for name in ("_collective_ops", "_cross_device_ops", "_host_cross_device_ops"):
        operations = getattr(strategy.extended, name, None)
        for launcher in getattr(operations, "_launchers", ()):
            launcher._group_key = keys.get_group_key(operations._devices)


def get_initial_epoch(model):
    """The epoch that `fit` begins with, which a `BackupAndRestore` has set; None if nobody has."""
    return model._initial_epoch


def set_initial_epoch(model, epoch):
    model._initial_epoch = epoch


def vectorized_map(function, stacks):
    """`tf.vectorized_map` that XLA compiles once.

    Under XLA TensorFlow makes a function of it, whose gradient is another one, to which the first
    hands the axes of sums. XLA wants those as constants, so it makes constants of all that the
    first reads: of weights, which change with each step.
    """
    if tf.executing_eagerly():
        return tf.vectorized_map(function, stacks)
    tensors = tf.nest.map_structure(tf.convert_to_tensor, stacks)
    depth = tf.nest.flatten(tensors)[0].shape[0]
    return control_flow_ops._pfor_impl(
        lambda i: function(tf.nest.map_structure(lambda stack: tf.gather(stack, i), tensors)),
        depth,
        fallback_to_while_loop=True,
    )


def clear_losses(model):
    """Forgets what `add_loss` has added since."""
    model._clear_losses()


def datasets_of(dataset):
    """The datasets that a `tf.data.Dataset` is made of, by `map` for instance."""
    return dataset._inputs()
