"""How the tools use the cores of a machine without GPUs."""

import contextlib
import os

import tensorflow as tf


def one_for_an_operation():
    """Gives each operation one thread, so that models divide batches among the cores instead.

    It must come before TensorFlow's first operation. What the environment says of threads stays.
    """
    if "TF_NUM_INTRAOP_THREADS" in os.environ or tf.config.list_physical_devices("GPU"):
        return
    with contextlib.suppress(RuntimeError):  # TensorFlow has begun, and stays as it is
        tf.config.threading.set_intra_op_parallelism_threads(1)
