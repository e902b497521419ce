"""What test files share; without TensorFlow, as xdist's main process, which runs none, has it."""

import gc
import os
import pathlib
import re
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent

# TensorFlow takes 5 s to import, and 15 s where nobody may keep the bytecode: the tests keep their
# own, for the processes they start and for the next time.
if sys.dont_write_bytecode:
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(ROOT / ".pytest_cache" / "bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def perturb(layer, scale=0.1, seed=0):
    """Adds noise to the weights of a layer or a model: fresh ones are too near the identity.

    To statistics, too, of which variances and deviations stay positive; not to what is fixed.
    """
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        noise = rng.normal(scale=scale, size=weight.shape)
        if weight.name.endswith(("moving_variance", "deviation")):
            weight.assign(weight * np.exp(noise))
        elif weight.trainable or weight.name.endswith("mean"):
            weight.assign_add(noise)


def same_weights(model, other):
    return all(np.array_equal(a, b) for a, b in zip(model.weights, other.weights, strict=True))


def contents(folder):
    """All that is below a folder: {path: bytes, or None for a folder}."""
    paths = pathlib.Path(folder).rglob("*")
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def run_python(code, *arguments, python_path=ROOT, **options):
    """What `code` prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(python_path)},
        capture_output=True,
        **options,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def what_xla_reads(code, *arguments):
    """The kinds of arguments of all that XLA compiles in a process of its own.

    A weight that it reads is a "resource"; one of which it makes a constant, so that it compiles
    again when the weight changes, a "constant-resource".
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TF_CPP_MIN_LOG_LEVEL": "0",
            "TF_CPP_VMODULE": "device_compiler=4",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"\d: kind=(\S+)", done.stderr))


@contextmanager
def precision(policy):
    """Keras' dtype policy, and of float32 and float64 its floatx, too; put back afterwards."""
    from keras import config

    floatx, before = config.floatx(), config.dtype_policy()
    if policy in ("float32", "float64"):
        config.set_floatx(policy)
    config.set_dtype_policy(policy)
    try:
        yield policy
    finally:
        config.set_floatx(floatx)
        config.set_dtype_policy(before)


@pytest.fixture
def policy(request):
    """The dtype policy that a test is parametrised with, indirectly."""
    with precision(request.param):
        yield request.param


@pytest.fixture(scope="module")
def float64():
    with precision("float64"):
        yield


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where `digits` and `moons` are prepared with their first use."""
    return tmp_path_factory.mktemp("tensorflow_datasets")


def pytest_configure(config):
    # With `eager` functions of tf.data are traced still, as they should be.
    config.addinivalue_line("filterwarnings", "ignore:Even though the `tf.config.*:UserWarning")


def pytest_collection_finish():
    gc.freeze()  # what is imported stays: the collector need not look at it over and over


@pytest.fixture
def eager():
    """Nothing is traced, which takes most of the time where little is computed."""
    from tensorflow import config

    config.run_functions_eagerly(True)
    yield
    config.run_functions_eagerly(False)
