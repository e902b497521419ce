"""The weights of many steps of one form."""

import contextlib
import functools

import keras
import numpy as np
from keras import ops

from keras_flows.arguments import check_integers
from keras_flows.batch_parts import counters_of
from keras_flows.bijection import Bijection, check_bijections
from keras_flows.private import declared_trainable, flatten_layers, vectorized_map


class Stacked(Bijection):
    """A step as a pattern, which it never changes, and `depth` sets of its weights, stacked.

    Each weight is a stack, (depth, ...), of the steps' weights. `holding` puts a step's values in
    the place of the pattern's own.
    """

    def __init__(self, step, depth, **kwargs):
        # Keras and TensorFlow search attributes for what to save and train. The pattern's own
        # weights are no part of the layer, only places where slices of the stacks are put.
        self.__dict__["_pattern"] = lambda: step
        super().__init__(**kwargs)
        check_bijections(step=[step])
        check_integers(1, depth=depth)
        self.depth = depth

    @property
    def step(self):
        """The pattern of the steps. Its weights are not used; see `get_steps`."""
        return self._pattern()

    @property
    def untracked_layers(self):
        return [self.step]

    @property
    def layers(self):
        """The pattern, where Keras' `summary(expand_nested=True)` looks for it."""
        return [self.step]

    def __dir__(self):
        # Else Keras would save the pattern.
        hidden = ("step", "layers", "untracked_layers")
        return [name for name in super().__dir__() if name not in hidden]

    def get_config(self):
        config = super().get_config()
        config["step"].pop("build_config", None)  # a pattern comes unbuilt
        return config

    @property
    def trainable(self):
        return super().trainable

    @trainable.setter
    def trainable(self, value):
        keras.layers.Layer.trainable.fset(self, value)
        self.step.trainable = value

    # All that Keras tells of weights, to whoever holds this layer, comes by these two.

    @property
    def variables(self):
        self._freeze_as_the_pattern()
        return super().variables

    @property
    def weights(self):
        self._freeze_as_the_pattern()
        return super().weights

    @property
    def constant_weights(self):
        return [self._stacks[i] for i in self._constant]

    @property
    def counters(self):
        return [self._stacks[i] for i in self._counters] if self.built else []

    def build(self, input_shape):
        if self.step.built:
            raise ValueError(
                "Argument `step` must not be built: `Repeat` makes weights for each step. "
                f"Received: {self.step.name!r}, which is built"
            )
        initial = self._initial_weights(input_shape)
        self.step.build(input_shape)
        if tuple(self.step.compute_output_shape(input_shape)) != tuple(input_shape):
            raise ValueError(
                "Argument `step` must keep the shape of its input. Received: a step from "
                f"{tuple(input_shape)} to {self.step.compute_output_shape(input_shape)}"
            )
        # As declared, whatever is frozen now: the order of weights in files is made of it.
        trainable = self._indices(declared_trainable(self.step))
        self._stacks = [
            self._add_stack(variable, stack, i in trainable)
            for i, (variable, stack) in enumerate(zip(self.step.variables, initial, strict=True))
        ]
        self._frozen = [not variable.trainable for variable in self.step.variables]
        layers = list(flatten_layers(self.step))
        for layer in layers:
            for name in {"quantize", "enable_lora"} & set(dir(layer)):
                setattr(layer, name, functools.partial(self._refuse, name, layer))
        self._constant = self._indices(
            variable for layer in layers for variable in getattr(layer, "constant_weights", ())
        )
        self._counters = self._indices(counters_of(self.step))
        # Which of them a step may change in training: moving averages, states of random seeds.
        self._states = sorted(set(range(len(self._stacks))) - {*trainable, *self._constant})

    def quantize(self, mode=None, type_check=True, config=None):
        self._refuse("quantize", self.step)

    def get_steps(self):
        """The steps, each a layer of its own with a copy of its weights."""
        steps = [self._new_step((None, *self.event_shape), k) for k in range(self.depth)]
        for k, step in enumerate(steps):
            for variable, stack in zip(step.variables, self._stacks, strict=True):
                variable.assign(stack[k])
        return steps

    def set_steps(self, steps):
        """Copies the weights of `steps`, as many built layers of the step's form."""
        steps = list(steps)
        shapes = [tuple(variable.shape) for variable in self.step.variables]
        received = [[tuple(variable.shape) for variable in step.variables] for step in steps]
        if received != [shapes] * self.depth:
            raise ValueError(
                f"Argument `steps` must hold {self.depth} steps with weights of shapes {shapes}. "
                f"Received: {received}"
            )
        columns = zip(*(step.variables for step in steps), strict=True)
        for stack, variables in zip(self._stacks, columns, strict=True):
            stack.assign(ops.stack([variable.value for variable in variables]))

    def stacks(self, indices):
        """{index: tensor (depth, ...)} of these weights of the step."""
        return {i: ops.convert_to_tensor(self._stacks[i]) for i in indices}

    @contextlib.contextmanager
    def holding(self, weights):
        """Within this context the pattern's weights have the values `weights`, {index: value}.

        It gives a function: the values, at the time, of the weights of some indices.
        """
        variables = self.step.variables
        mapping = [(variables[i], value) for i, value in weights.items()]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            yield lambda indices: [scope.get_current_value(variables[i]) for i in indices]
        if scope.losses:
            raise ValueError(
                "Argument `step` must not add losses (`add_loss`, activity regularizers): they "
                f"cannot leave the loop. Received: {self.step.name!r}, which adds some"
            )

    def _refuse(self, name, layer, *args, **kwargs):
        raise ValueError(
            f"`{name}` would change nothing in {layer.name!r}, a pattern: the weights of the steps "
            f"are stacked in {self.name!r}. Change the steps as layers of their own, those that "
            "its `get_steps()` gives, in a `Chain`."
        )

    def _freeze_as_the_pattern(self):
        """Hands on to the stacks what was frozen, or unfrozen, inside of the pattern."""
        for i, stack in enumerate(self._stacks if self.built else ()):
            if self._frozen[i] == self.step.variables[i].trainable:
                self._frozen[i] = not self._frozen[i]
                stack.trainable = not self._frozen[i]

    def _indices(self, variables):
        """Which of the step's weights these are."""
        wanted = {id(variable) for variable in variables}
        return [i for i, variable in enumerate(self.step.variables) if id(variable) in wanted]

    def _new_step(self, input_shape, k):
        step = type(self.step).from_config(self.step.get_config())
        for layer in flatten_layers(step):
            if hasattr(layer, "step_index"):
                layer.step_index = k
        step.build(input_shape)
        return step

    def _initial_weights(self, input_shape):
        """The weights of `depth` new steps, stacked, as arrays."""
        steps = (self._new_step(input_shape, k) for k in range(self.depth))
        weights = ([ops.convert_to_numpy(v) for v in step.variables] for step in steps)
        return [np.stack(each) for each in zip(*weights, strict=True)]

    def _add_stack(self, variable, initial, trainable):
        regularizer, constraint = variable.regularizer, variable.constraint
        stack = self.add_weight(
            name="_".join(variable.path.split("/")[-2:]),
            shape=(self.depth, *variable.shape),
            dtype=variable.dtype,
            initializer=lambda shape, dtype: ops.convert_to_tensor(initial, dtype),
            trainable=trainable,
            regularizer=regularizer and (lambda w: ops.sum(vectorized_map(regularizer, w))),
            constraint=constraint and (lambda w: vectorized_map(constraint, w)),
        )
        stack.trainable = variable.trainable
        # For optimizers, to which the last axes are those of a matrix.
        stack.stack_axes = 1 + getattr(variable, "stack_axes", 0)
        return stack
