"""Changes to training images, as JSON: {"flip": true, "shift": 0.1} mirrors half of them, and moves
each by up to a tenth of its size."""

import tensorflow as tf

from keras_flows.arguments import check_in, require


def augmented(data, seed, flip=False, shift=0.0):
    """Batches of `data.load`; what becomes of an image depends on seed, epoch and place alone.

    Raises:
        ValueError: for `flip` that is no Boolean, a `shift` that is not in [0, 1), or vectors.
    """
    check_in("[0, 1)", shift=shift)
    require(isinstance(flip, bool), "Argument `flip` must be a Boolean", flip=flip)
    shape = tf.nest.flatten(data.element_spec)[0].shape
    require(shape.rank == 4, "Only images can be augmented", shape=shape)

    def change(index, batch):
        x, *label = batch if isinstance(batch, tuple) else (batch,)
        key = tf.stack([seed, data.epoch * 2**32 + index])
        if flip:
            x = tf.image.stateless_random_flip_left_right(x, key)
        for axis in (1, 2) if shift else ():
            size = x.shape[axis]
            furthest = int(shift * size)
            steps = tf.random.stateless_uniform(
                [tf.shape(x)[0], 1], key + axis * 2**31, -furthest, furthest + 1, tf.int32
            )
            # Beyond the edge, the edge goes on.
            places = tf.clip_by_value(tf.range(size) + steps, 0, size - 1)
            x = tf.gather(x, places, axis=axis, batch_dims=1)
        return (x, *label) if label else x

    return data.enumerate().map(change, num_parallel_calls=tf.data.AUTOTUNE)
