"""The sizes that all contestants share, and data of them."""

import os

import numpy as np

IMAGE = (32, 32, 3)
FEATURES = 64  # of a vector
LEVELS = 3
WIDTH = 128
BLOCKS = 2  # of a spline coupling's residual network
BINS = 8
TAIL_BOUND = 3.0
LEARNING_RATE = 1e-4


def random_images(number):
    return np.random.default_rng(0).integers(0, 256, (number, *IMAGE), "uint8")


def random_vectors(number):
    return np.random.default_rng(0).normal(size=(number, FEATURES)).astype("float32")


def number_of_cores():
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
