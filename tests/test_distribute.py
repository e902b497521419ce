"""Many devices and many processes learn what one device learns; what is killed goes on."""

import csv
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_flows import layers, zoo
from keras_flows.flow import Flow

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import cluster  # noqa: E402

MODELS = [
    f"{name}_{data}" for name in ("nice", "real_nvp", "glow") for data in ("vectors", "images")
]
TIMEOUT = 500  # seconds


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("TF_CONFIG", raising=False)


# The same numbers.


def replicas(strategy, output, cases):
    return [sys.executable, *map(str, (ROOT / "tests" / "replicas.py", strategy, output)), *cases]


def finish(processes, log):
    try:
        assert [process.wait(TIMEOUT) for process in processes] == [0] * len(processes)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        raise AssertionError(log.read_text()[-10000:]) from error
    finally:
        for process in processes:
            process.kill()


def assert_same(output, desired, cases):
    for case in cases:
        results, wanted = np.load(f"{output}-{case}.npz"), np.load(f"{desired}-{case}.npz")
        assert len(set(wanted["loss"])) == 3 and np.isfinite(wanted["loss"]).all()
        for name in wanted.files:
            value = wanted[name]
            if name.startswith("arr_"):  # weights, by replica
                value = np.broadcast_to(value, results[name].shape)
            np.testing.assert_allclose(
                *(results[name], value),
                rtol=1e-9,
                atol=1e-9 * np.abs(value).max(),
                err_msg=f"{case} {name}",
            )


def check_replicas(count, cases, folder):
    """That `count` devices of one process learn what one does."""
    with open(folder / "log", "w") as log:
        one, many = (
            subprocess.Popen(replicas(*arguments, cases), stderr=log)
            for arguments in (("none", folder / "one"), (count, folder / "many"))
        )
    finish([one, many], folder / "log")
    assert_same(folder / "many", folder / "one", cases)


def check_workers(count, cases, folder):
    """That `count` processes learn what one does."""
    with open(folder / "log", "w") as log:
        one = subprocess.Popen(replicas("none", folder / "one", cases), stderr=log)
        command = replicas("multi_worker", folder / "many", cases)
        workers = cluster.start_workers(command, count, stderr=log)
    finish([one, *workers], folder / "log")
    for i in range(count):
        assert_same(folder / f"many-{i}", folder / "one", cases)


def test_replicas_learn_the_same(tmp_path):
    check_replicas(3, ["nice_vectors", "real_nvp_images", "glow_images"], tmp_path)
    assert np.load(tmp_path / "many-stock.npz")["error"], (
        "Keras now trains on a first batch that replicas cannot share evenly: "
        "take `_maybe_symbolic_build` out of DistributedModel."
    )


def test_workers_learn_the_same(tmp_path):
    check_workers(2, ["nice_images", "real_nvp_vectors", "glow_vectors"], tmp_path)
    examples, bias, log_scale = zip(
        *(np.load(tmp_path / f"many-{i}-adapt.npz").values() for i in range(2))
    )
    examples = np.concatenate(examples)
    np.testing.assert_allclose(bias, [-np.mean(examples, 0)] * 2, rtol=1e-9)
    np.testing.assert_allclose(np.exp(3 * np.array(log_scale)), [1 / np.std(examples, 0)] * 2, 1e-5)
    assert "Invalid reduction dimension" in str(np.load(tmp_path / "many-0-stock.npz")["error"]), (
        "Keras now reduces scalar logs over workers: "
        "take the reshape out of DistributedModel.get_metrics_result."
    )


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("check", [check_replicas, check_workers])
def test_all_models_learn_the_same(check, count, tmp_path):
    check(count, [*MODELS, "glow_reversible"], tmp_path)


# tools/train.py.


def train_command(run, data_dir, *more):
    return [
        *(sys.executable, str(ROOT / "tools" / "train.py"), "--run", str(run)),
        *("--model", "RealNVP", "--arguments", '{"depth": 2, "width": 8}', "--epochs", "40"),
        *("--dataset", "moons", "--data_dir", str(data_dir), "--batch_size", "20"),
        *("--train_split", "train[:210]", "--validation_split", "train[210:300]", *more),
    ]


def logged(run):
    with open(run / "log.csv") as log:
        return [[float(value) for value in row.values()] for row in csv.DictReader(log)]


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_training_goes_on_after_a_worker_was_killed(victim, tmp_path):
    with open(tmp_path / "whole.log", "w") as log:
        whole = subprocess.Popen(
            train_command(tmp_path / "whole", tmp_path), stdout=log, stderr=log
        )
    with open(tmp_path / "killed.log", "w") as log:
        command = train_command(tmp_path / "run", tmp_path, "--strategy", "multi_worker")
        workers = cluster.start_workers(command, 2, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + TIMEOUT
        while not ((tmp_path / "run" / "log.csv").exists() and logged(tmp_path / "run")):
            assert time.monotonic() < deadline and not any(p.poll() for p in workers), (
                tmp_path / "killed.log"
            ).read_text()
            time.sleep(0.02)
        workers.pop(victim).send_signal(signal.SIGKILL)
        assert workers[0].wait(60) == 1
        assert "another worker was lost" in (tmp_path / "killed.log").read_text().splitlines()[-1]
        finish([whole], tmp_path / "whole.log")
    finally:
        for process in (whole, *workers):
            process.kill()
    epochs = len(logged(tmp_path / "run"))
    assert 1 <= epochs < 40

    with open(tmp_path / "resumed.log", "w") as log:
        command = train_command(tmp_path / "run", tmp_path, "--workers", "2")
        resumed = subprocess.Popen(command, stdout=log, stderr=log)
    finish([resumed], tmp_path / "resumed.log")
    assert f"Epoch {epochs + 1}/40" in (tmp_path / "resumed.log").read_text()
    np.testing.assert_allclose(logged(tmp_path / "run"), logged(tmp_path / "whole"), rtol=1e-4)
    assert keras.models.load_model(tmp_path / "run" / "model.keras").adapted
