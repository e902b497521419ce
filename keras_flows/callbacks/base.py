import keras

from keras_flows.arguments import require
from keras_flows.batches import tensor_if_one
from keras_flows.flow import Flow


class FlowCallback(keras.callbacks.Callback):
    """A callback of `Flow.fit`; TypeError for another model's."""

    def set_model(self, model):
        require(
            isinstance(model, Flow),
            f"{type(self).__name__} is a callback for `fit` of a Flow",
            error=TypeError,
            model=model,
        )
        super().set_model(model)


class ExampleMetrics(FlowCallback):
    """Adds `entries(x, condition)` of given examples, {name: float}, to the logs of each epoch.

    All workers compute them, as they have the same weights and examples, so that a callback which
    monitors an entry decides alike on all.
    """

    def __init__(self, examples, condition=None):
        super().__init__()
        self.examples = examples
        self.condition = condition

    def on_train_begin(self, logs=None):
        # Refused before the first epoch, not after it.
        spec = self.model.data_spec
        try:
            self._x = spec.check(tensor_if_one(spec.array(self.examples)))
            self._condition = spec.condition.check(self.condition, len(self._x))
        except (TypeError, ValueError) as error:
            name = type(self).__name__
            raise type(error)(f"Of the `examples` and `condition` of {name}: {error}") from error

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs.update(self.entries(self._x, self._condition))

    def entries(self, x, condition):
        raise NotImplementedError
