"""Runs signatures of a SavedModel in C++, without Python: builds and calls saved_model_runner.cc.

A test module takes the session fixture with

    import saved_model_runner as smr

    saved_model_runner = smr.saved_model_runner
"""

import math
import os
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf


class RunnerError(Exception):
    """A status that TensorFlow (or the runner, for a request) gave: see `tf.errors` for codes."""

    def __init__(self, code, message):
        super().__init__(code, message)
        self.code, self.message = code, message


def build(directory):
    """Compiles the runner against the installed TensorFlow; gives the path of the executable."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise RuntimeError("a C++ compiler is needed (Debian: apt install g++); or set CXX")
    source = Path(__file__).with_suffix(".cc")
    executable = Path(directory) / "saved_model_runner"
    lib = tf.sysconfig.get_lib()
    # The default linker takes 6 s for the 1 GB of TensorFlow; these take 1 or 2 s.
    fast = [f"-fuse-ld={name}" for name in ("lld", "gold") if shutil.which(f"ld.{name}")][:1]
    command = [
        compiler,
        "-std=c++17",
        "-pthread",
        "-Wall",
        "-Wextra",
        "-Werror",
        source,
        "-o",
        executable,
    ]
    command += ["-isystem", tf.sysconfig.get_include(), f"-Wl,-rpath,{lib}", *fast]
    command += [f"{lib}/libtensorflow_cc.so.2", f"{lib}/libtensorflow_framework.so.2"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"cannot compile {source.name}:\n{done.stderr}")
    return executable


@pytest.fixture(scope="session")
def saved_model_runner(tmp_path_factory):
    if "CI" not in os.environ and not any(
        map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++"))
    ):
        pytest.skip("needs a C++ compiler (Debian: apt install g++)")
    # pytest counts the fixture anew in each module that imports it: look for an earlier build.
    executable = tmp_path_factory.getbasetemp() / "saved_model_runner"
    return executable if executable.exists() else build(executable.parent)


def run(executable, saved_model_dir, requests, timeout=120):
    """Runs (signature, {name: array}) requests; gives for each {name: array} or a RunnerError.

    Raises RunnerError when the model does not load.
    """
    return _run(executable, saved_model_dir, requests, timeout)[0]


def soak(executable, saved_model_dir, requests, threads, rounds, timeout=120):
    """Each of the threads runs the requests for that many rounds.

    Gives the responses of the last round, a list for each thread, and by how many KiB the process
    grew after a first round.
    """
    responses, grown = _run(executable, saved_model_dir, requests, timeout, threads, rounds)
    count = len(requests)
    return [responses[i * count : (i + 1) * count] for i in range(threads)], int(grown)


def _run(executable, saved_model_dir, requests, timeout, *options):
    with tempfile.TemporaryDirectory() as directory:
        inputs, outputs = Path(directory, "requests"), Path(directory, "responses")
        inputs.write_bytes(_encode(requests))
        command = [executable, saved_model_dir, inputs, outputs, *map(str, options)]
        done = subprocess.run(command, check=False, capture_output=True, timeout=timeout)
        log = done.stderr.decode(errors="replace")
        status = re.search(r"saved_model_runner: status (\d+): (.*)", log, re.DOTALL)
        if done.returncode == 3 and status:
            raise RunnerError(int(status[1]), status[2].strip())
        if done.returncode != 0:
            raise RuntimeError(f"saved_model_runner: exit {done.returncode}\n{log}")
        with outputs.open("rb") as file:
            return [_read_response(file) for _ in range(_read_int(file))], done.stdout


def _ints(*values):
    return struct.pack(f"={len(values)}q", *values)


def _string(text):
    return _ints(len(text.encode())) + text.encode()


def _encode(requests):
    parts = [_ints(len(requests))]
    for signature, inputs in requests:
        parts += [_string(signature), _ints(len(inputs))]
        for name, array in inputs.items():
            array = np.asarray(array)
            dtype = tf.as_dtype(array.dtype).as_datatype_enum
            parts += [_string(name), _ints(dtype, array.ndim, *array.shape), array.tobytes()]
    return b"".join(parts)


def _read_int(file):
    return struct.unpack("=q", file.read(8))[0]


def _read_response(file):
    code, message = _read_int(file), file.read(_read_int(file)).decode()
    outputs = {}
    for _ in range(_read_int(file)):
        name = file.read(_read_int(file)).decode()
        dtype = np.dtype(tf.as_dtype(_read_int(file)).as_numpy_dtype)
        shape = [_read_int(file) for _ in range(_read_int(file))]
        data = bytearray(file.read(math.prod(shape) * dtype.itemsize))  # a writable array
        outputs[name] = np.frombuffer(data, dtype).reshape(shape)
    return RunnerError(code, message) if code else outputs
