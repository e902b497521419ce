"""What stock Keras lacks, or breaks, under tf.distribute; all of it is here."""

import os

import keras
import tensorflow as tf

from keras_flows import distribute, folders, private, resume

# Callbacks that write files.
_WRITERS = (
    keras.callbacks.BackupAndRestore,
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.TensorBoard,
)

# What TensorFlow raises when a worker of a cluster is gone.
_LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.UnavailableError,
)


class DistributedModel(private.BuiltByConstructor, keras.Model):
    """A `keras.Model` that its constructor builds, and that learns on many devices as on one.

    Make and compile it within `strategy.scope()`; a `MirroredStrategy` or a
    `MultiWorkerMirroredStrategy` has been tried. Beyond what Keras does:

    - gradients are clipped after they have been summed over the replicas, not before;
    - the progress bar's figures are those of all replicas;
    - any batch will do, so that some replicas may get more examples than others, or none;
    - on several workers only the chief writes: the files of `save`, `save_weights` and of Keras'
      callbacks, and the progress bar. At the start of `fit` all get its weights, its optimizer's
      state and its first epoch, so that `BackupAndRestore` has to restore them on the chief only.

    Raises:
        ValueError: before training, for variables made outside of the strategy's scope and for what
            Keras does not support on several replicas.
        ConnectionError: from `fit`, when another worker is lost.
    """

    epochs_trained = None  # by the `fit` that runs, or ran last

    def __init__(self, *args, **kwargs):
        strategy = tf.distribute.get_strategy()
        if isinstance(strategy, tf.distribute.ParameterServerStrategy):
            raise ValueError(
                "Keras 3 does not support ParameterServerStrategy. Use a MirroredStrategy, or for "
                "several machines a MultiWorkerMirroredStrategy."
            )
        private.separate_collectives(strategy)
        super().__init__(*args, **kwargs)

    def compile(self, *args, **kwargs):
        with self.distribute_strategy.scope():
            super().compile(*args, **kwargs)

    def fit(
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, **kwargs
    ):
        self._check_strategy()
        strategy = self.distribute_strategy
        if self.compiled and self.optimizer is not None and not self.optimizer.built:
            # Variables made while a step is traced would have it traced twice.
            with strategy.scope():
                self.optimizer.build(self.trainable_variables)
        if distribute.num_workers(strategy) > 1:
            callbacks = keras.tree.flatten(getattr(callbacks, "callbacks", callbacks) or [])
            if not distribute.is_chief(strategy):
                callbacks = [c for c in callbacks if not isinstance(c, _WRITERS)]
            callbacks = [*callbacks, _StartAsTheChief()]
        verbose = self._verbose(verbose)
        try:
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)
        except _LOST as error:
            if distribute.num_workers(strategy) == 1:
                raise
            lines = error.message.strip().splitlines()
            reason = next((line for line in lines if "aborted by" in line), lines[0])
            raise ConnectionError(
                f"Training has stopped: another worker was lost, or was out of reach ({reason}). "
                "Start all workers again; with a BackupAndRestore callback they go on from the "
                "last epoch that it saved."
            ) from error

    def evaluate(self, x=None, y=None, batch_size=None, verbose="auto", *args, **kwargs):
        self._check_strategy()
        return super().evaluate(x, y, batch_size, self._verbose(verbose), *args, **kwargs)

    def predict(self, x, batch_size=None, verbose="auto", *args, **kwargs):
        self._check_strategy()
        return super().predict(x, batch_size, self._verbose(verbose), *args, **kwargs)

    def save(self, filepath, overwrite=True, *args, **kwargs):
        """As in Keras; of several workers, only the chief writes. The file is replaced at once."""
        self._save(super().save, ".keras", filepath, overwrite, *args, **kwargs)

    def save_weights(self, filepath, overwrite=True, *args, **kwargs):
        """As in Keras; of several workers, only the chief writes. The file is replaced at once."""
        self._save(super().save_weights, ".weights.h5", filepath, overwrite, *args, **kwargs)

    def apply_gradients(self, gradients):
        """Updates the weights by gradients of each replica's share of the loss."""
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            reduced = iter(distribute.global_sum([g for g in gradients if g is not None]))
            gradients = [g if g is None else next(reduced) for g in gradients]
            private.apply_reduced_gradients(self.optimizer, gradients, self.trainable_weights)
        else:
            self.optimizer.apply(gradients, self.trainable_weights)

    def get_metrics_result(self):
        """As in Keras; in a replica, those of all replicas."""
        strategy = tf.distribute.get_strategy()
        if tf.distribute.in_cross_replica_context() or strategy.num_replicas_in_sync == 1:
            return super().get_metrics_result()
        variables = {metric.name: metric.variables for metric in self.metrics}
        sums = keras.tree.pack_sequence_as(
            variables,
            distribute.global_sum([tf.convert_to_tensor(v) for v in keras.tree.flatten(variables)]),
        )
        results = {m.name: m.stateless_result(sums[m.name]) for m in self.metrics if m.variables}
        if distribute.num_workers(strategy) > 1:
            # Keras takes the mean over axis 0, which a scalar has not.
            results = {name: tf.reshape(result, [1]) for name, result in results.items()}
        return results

    def _save(self, write, suffix, path, overwrite, *args, **kwargs):
        if not distribute.is_chief(self.distribute_strategy):
            return
        # All else, as to ask before it overwrites, to write folders or elsewhere, is Keras' own.
        is_file = str(path).endswith(suffix) and "://" not in str(path) and not (args or kwargs)
        if is_file and (overwrite or not os.path.lexists(path)):
            with folders.replaced_file(path) as scratch:
                write(scratch)
                if suffix == ".weights.h5":
                    resume.stamp(scratch, self.epochs_trained)
        else:
            write(path, overwrite, *args, **kwargs)

    def _verbose(self, verbose):
        return verbose if distribute.is_chief(self.distribute_strategy) else 0

    def _check_strategy(self):
        strategy, optimizer = self.distribute_strategy, getattr(self, "optimizer", None)
        for variable in [*self.variables, *getattr(optimizer, "variables", [])]:
            if not strategy.extended.variable_created_in_scope(variable.value):
                raise ValueError(
                    "The model, its bijection and its optimizer must be made within the scope of "
                    f"the strategy that they are used with, here a {type(strategy).__name__}: "
                    f"`with strategy.scope(): ...`. Received: {variable.path}, made outside"
                )
        if strategy.num_replicas_in_sync == 1:
            return
        unsupported = {
            "jit_compile": self.jit_compile,
            "steps_per_execution": self.steps_per_execution > 1,
            "gradient_accumulation_steps": getattr(optimizer, "gradient_accumulation_steps", None),
            "ema_overwrite_frequency": getattr(optimizer, "ema_overwrite_frequency", None),
        }
        for name, received in unsupported.items():
            if received:
                raise ValueError(
                    f"Keras does not support `{name}` on several replicas. Received: {name} in a "
                    f"model on {strategy.num_replicas_in_sync} replicas"
                )


class _StartAsTheChief(keras.callbacks.Callback):
    """Gives all workers the weights, optimizer state and first epoch of the chief."""

    def on_train_begin(self, logs=None):
        model, strategy = self.model, self.model.distribute_strategy

        def of_the_chief(value):
            value = tf.cast(value, tf.float64)  # which can be summed, and holds all types exactly
            is_chief = distribute.is_chief(strategy)
            return distribute.global_sum(value if is_chief else tf.zeros_like(value))

        with strategy.scope():
            # One by one, as copies of all of them together may not fit into memory.
            for variable in [*model.weights, *model.optimizer.variables]:
                variable.assign(tf.cast(of_the_chief(variable), variable.dtype))
            epoch = private.get_initial_epoch(model) or 0
            private.set_initial_epoch(model, int(of_the_chief(epoch)))
