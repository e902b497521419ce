import os

import tensorflow as tf

from keras_flows import distribute, folders, pictures
from keras_flows.arguments import check_in, check_integers, require
from keras_flows.callbacks.base import FlowCallback


class SampleGrid(FlowCallback):
    """Draws samples of the same latents as they change with training, a PNG an epoch.

    `directory/epoch_0001.png`, after the first epoch, and so on: a grid of images, or the first two
    coordinates of vectors as points, which fill the picture. The latents are a function of `seed`
    alone, so that resumed training goes on with the same pictures; with several workers only the
    chief writes.

    ```python
    grid = keras_flows.callbacks.SampleGrid("samples", n=16, temperature=0.7)
    model.fit(images, epochs=1, callbacks=[grid], verbose=0)
    ```

    Args:
        directory: a folder, made with `fit`; pictures of an epoch that comes again are replaced.
        n: how many samples; of vectors, some thousands.
        frequency: epochs from one picture to the next.
        temperature: factor on the latents, at least 0.
        condition: as `model.sample` takes it. By default the classes of a class-conditional model
            take turns.
        seed: an integer in 0 .. 2^31 - 1.
        log_dir: of TensorBoard, whose images get the pictures as `samples`, too.

    Raises:
        ValueError, TypeError: for arguments out of their range; from `fit`, for a condition that
            the model does not take, vectors of one number, and a model that is no Flow.
    """

    def __init__(
        self,
        directory,
        n=64,
        *,
        frequency=1,
        temperature=1.0,
        condition=None,
        seed=0,
        log_dir=None,
    ):
        super().__init__()
        for name, path in (("directory", directory), ("log_dir", log_dir)):
            require(
                isinstance(path, str | os.PathLike) or (name == "log_dir" and path is None),
                f"Argument `{name}` must be a path",
                error=TypeError,
                **{name: path},
            )
        check_integers(1, n=n, frequency=frequency)
        check_integers(0, seed=seed)
        check_in("[0, inf)", temperature=temperature)
        self.directory = os.fspath(directory)
        self.n = n
        self.frequency = frequency
        self.temperature = temperature
        self.condition = condition
        self.seed = seed
        self.log_dir = None if log_dir is None else os.fspath(log_dir)
        self._writer = None

    def on_train_begin(self, logs=None):
        model = self.model
        require(
            model.size > 1,
            "SampleGrid draws images, or vectors of two numbers and more",
            input_shape=model.input_shape,
        )
        if self.condition is not None or model.num_classes is None:  # refused before training
            model.data_spec.condition.for_samples(self.n, self.condition)
        if distribute.is_chief(model.distribute_strategy):
            os.makedirs(self.directory, exist_ok=True)
            if self.log_dir is not None:
                self._writer = tf.summary.create_file_writer(self.log_dir)

    def on_epoch_end(self, epoch, logs=None):
        # Nothing in it is collective: the other workers need not draw.
        if (epoch + 1) % self.frequency or not distribute.is_chief(self.model.distribute_strategy):
            return
        zoom = max(1, 56 // self.model.input_shape[0])
        picture = pictures.of_samples(
            self.model, self.n, self.temperature, self.condition, self.seed, zoom
        )
        png = pictures.png(picture)
        path = os.path.join(self.directory, f"epoch_{epoch + 1:04}.png")
        with folders.replaced_file(path) as scratch, open(scratch, "wb") as file:
            file.write(png)
        if self._writer is not None:
            _write_summary(self._writer, png, picture.shape, epoch)

    def on_train_end(self, logs=None):
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _write_summary(writer, png, shape, step):
    """What `tf.summary.image` writes, which would need TensorBoard installed here, too."""
    metadata = tf.compat.v1.SummaryMetadata(
        plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="images")
    )
    height, width, _ = shape
    with writer.as_default():
        tf.summary.write("samples", tf.constant([str(width), str(height), png]), step, metadata)
    writer.flush()
