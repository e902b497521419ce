import keras
import tensorflow as tf

from keras_flows import adaptation
from keras_flows.bijection import add_gradients, constant_log_det
from keras_flows.context import are_gradients_taken
from keras_flows.layers.scan import scan
from keras_flows.layers.stacked import Stacked
from keras_flows.precomputation import Precomputes, leaves_of, supply
from keras_flows.private import flatten_layers, vectorized_map


@keras.saving.register_keras_serializable(package="keras_flows")
class Repeat(Precomputes, Stacked):
    """`depth` steps of one form, each with weights of its own, in a loop.

    z = f_K(... f_2(f_1(x))); log_det is the sum of theirs.

    Each weight is a stack, (depth, ...), of the steps' weights, and one `tf.while_loop` runs the
    step on slices of the stacks: the graph, and the time to trace it, do not grow with the depth.
    With `reversible=True` nor does the memory of the gradient, in training: it rebuilds what each
    step was given by inverting it (Gomez et al. 2017, arXiv:1707.04585), for one more evaluation of
    each coupling's network. The weights are the same in both. With `training=False`, and eagerly,
    where steps run one by one, the gradient remembers.

    Of a step with a layer that does not invert cheaply (`inverts_cheaply`), as `CausalAffine`, the
    gradient remembers, in training, what each step was given, and computes the step again.

    An optimizer sees stacks: its `clipnorm` is of all steps together, as `global_clipnorm` of all.

    `get_steps` gives single steps to look at, `set_steps` takes them.

    Args:
        step: a bijection, not built yet, that keeps the shape of its input. It is the pattern; a
            `Chain` is one, too.
        depth: K, the number of steps.
        reversible: whether the gradient inverts instead of remembering.

    Raises:
        ValueError: if the step changes the shape, is built, adds losses, or cannot be inverted in
            training, or not cheaply, although `reversible` is set.

    Example:

    ```python
    step = keras_flows.layers.Chain([
        keras_flows.layers.InvertibleConv1x1(),
        keras_flows.layers.AffineCoupling(keras_flows.networks.MLP(32)),
    ])
    layer = keras_flows.layers.Repeat(step, depth=8, reversible=True)
    layer(np.zeros((2, 6)))                      # (2, 6)
    len(layer.get_steps())                       # 8
    ```
    """

    def __init__(self, step, depth, *, reversible=False, **kwargs):
        super().__init__(step, depth, **kwargs)
        self.reversible = reversible
        layers = list(flatten_layers(step))
        self._recomputes = not all(getattr(layer, "inverts_cheaply", True) for layer in layers)
        for layer in layers:
            if reversible and not getattr(layer, "inverts_cheaply", True):
                raise ValueError(
                    "Argument `reversible` must be False for a step that does not invert cheaply: "
                    "its gradient computes each step again, of what it was given, anyway. "
                    f"Received: reversible={reversible}, with {layer.name!r} in the step"
                )
            if reversible and not getattr(layer, "invertible_in_training", True):
                raise ValueError(
                    "Argument `reversible` must be False for a step that cannot be inverted in "
                    "training: batch normalisation forgets the mean and the variance of its batch. "
                    f"Received: reversible={reversible}, with {layer.name!r} in the step"
                )

    def build(self, input_shape):
        super().build(input_shape)
        ahead = self._indices(v for leaf in self._leaves() for v in leaf.precomputed_weights)
        # What the loop must hold beside what is precomputed.
        self._read_in_loop = [i for i in range(len(self._stacks)) if i not in ahead]
        self._states = [i for i in self._states if i in self._read_in_loop]

    @property
    def depends_on_direction(self):
        return bool(_that_depend_on_direction(self._leaves()))

    def precompute(self, inverse):
        """What the leaves of each step precompute, stacked; and what the way back needs besides."""
        leaves = self._leaves()
        back = _that_depend_on_direction(leaves) if self.reversible and not inverse else []
        if not leaves:
            return [], []

        def of_one(weights):
            with self.holding(weights):
                return (
                    [leaf.precompute(inverse) for leaf in leaves],
                    [leaf.precompute(inverse=True) for leaf in back],
                )

        return vectorized_map(of_one, self.stacks(range(len(self._stacks))))

    @property
    def precomputed_weights(self):
        return [stack for i, stack in enumerate(self._stacks) if i not in self._read_in_loop]

    def forward_and_log_det(self, x, condition=None, training=False):
        changing = self._states if training else []
        if adaptation.is_adapting():
            changing = range(len(self._stacks))
        if self._is_unrolled(training):
            y, log_det, changed = self._run(x, condition, training, changing, unroll=True)
        elif (self.reversible or self._recomputes) and (training or are_gradients_taken()):
            y, log_det, changed = self._run_forgetting(x, condition, training, changing)
        else:
            y, log_det, changed = self._run(x, condition, training, changing)
        for i, value in zip(changing, changed, strict=True):
            self._stacks[i].assign(value)
        return y, log_det

    def inverse_and_log_det(self, z, condition=None, training=False):
        unroll = self._is_unrolled(training)
        return self._run(z, condition, training, inverse=True, unroll=unroll)[:2]

    def _run(
        self,
        x,
        condition,
        training,
        changing=(),
        sources=None,
        *,
        inverse=False,
        unroll=False,
        keep=False,
    ):
        """(y, log_det) and the new stacks of the weights `changing`.

        `sources` are the weights that are read and what is precomputed, if given. To `keep` adds
        what each step was given, as one more stack.
        """
        leaves = [] if unroll else self._leaves()  # by itself, each makes its values when it runs
        if sources is None and unroll:
            sources = [self.stacks(range(len(self._stacks))), []]
        elif sources is None:
            sources = [self.stacks(self._read_in_loop), self.precomputed(inverse)[0]]
        method = self.step.inverse_and_log_det if inverse else self.step.forward_and_log_det

        def body(state, slices):
            (x, total), (weights, values) = state, slices
            with self.holding(weights) as values_of, supply(leaves, values, inverse):
                y, log_det = method(x, condition, training)
                return (y, total + log_det), [*values_of(changing), *([x] if keep else [])]

        (y, total), changed = scan(
            body,
            (x, constant_log_det(0, x)),
            sources,
            self.depth,
            reverse=inverse,
            outputs=[
                *(self._stacks[i] for i in changing),
                *([tf.TensorSpec((self.depth, *x.shape), x.dtype)] if keep else []),
            ],
            unroll=unroll,
            parallel=self._parallel,
        )
        return y, total, changed

    def _run_forgetting(self, x, condition, training, changing):
        """`_run` whose gradient does not remember what was computed inside of the steps."""
        values, inverses = self.precomputed(inverse=False)
        conditions = [] if condition is None else [tf.convert_to_tensor(condition)]
        structure = [[self.stacks(self._read_in_loop), values], conditions]

        @tf.custom_gradient
        def run(x, *flat):
            sources, conditions = tf.nest.pack_sequence_as(structure, flat)
            (condition,) = conditions or [None]
            z, total, changed = self._run(
                x, condition, training, changing, sources, keep=self._recomputes
            )
            given = [changed.pop()] if self._recomputes else []

            def gradient(dz, dtotal, *_):
                return self._run_backward(
                    z, dz, dtotal, sources, inverses, given, conditions, training
                )

            return (z, total, *changed), gradient

        z, total, *changed = run(x, *tf.nest.flatten(structure))
        return z, total, changed

    def _run_backward(self, z, dz, dlog_det, sources, inverses, given, conditions, training):
        """From the last step to the first: rebuilds what each was given, and differentiates it.

        What they were `given` is a stack, if it was kept. All steps read the condition, if there is
        one: its gradient is the sum of theirs.
        """
        leaves = self._leaves()
        (condition,) = conditions or [None]
        shared = _floating(conditions)

        def body(state, slices):
            (z, dz, dshared), ((weights, values), inverse, given) = state, slices
            read = [*shared, *_floating([weights, values])]
            with (
                self.holding(weights),
                supply(leaves, values, inverse=False),
                supply(_that_depend_on_direction(leaves), inverse, inverse=True),
            ):
                further = (dz, dlog_det, read, condition, training)
                if given:
                    x, dx, gradients = *given, *self.step.differentiate(*given, *further)
                else:
                    x, dx, gradients = self.step.backward(z, *further)
            sums = [add_gradients(*pair) for pair in zip(dshared, gradients, strict=False)]
            return (x, dx, sums), gradients[len(shared) :]

        (_, dx, dshared), gradients = scan(
            body,
            (z, dz, [tf.zeros_like(tensor) for tensor in shared]),
            [sources, inverses, given],
            self.depth,
            reverse=True,
            outputs=_floating(sources),
            parallel=self._parallel,
        )
        gradients = iter([*gradients, *dshared])
        flat = tf.nest.flatten([sources, conditions])
        return dx, *(next(gradients) if tensor.dtype.is_floating else None for tensor in flat)

    def _leaves(self):
        return leaves_of(self.step)

    @property
    def _parallel(self):
        # Iterations at once: each holds its activations.
        return 2 if self.reversible or self._recomputes else 10

    def _is_unrolled(self, training):
        """Whether steps run one by one: eagerly, and where TensorFlow could not sum in a loop."""
        if tf.executing_eagerly():
            return True
        if not training or tf.distribute.get_strategy().num_replicas_in_sync == 1:
            return False
        return any(getattr(layer, "synchronized", False) for layer in flatten_layers(self.step))


def _that_depend_on_direction(leaves):
    return [leaf for leaf in leaves if leaf.depends_on_direction]


def _floating(tensors):
    return [tensor for tensor in tf.nest.flatten(tensors) if tensor.dtype.is_floating]
