"""Many devices and many processes learn what one device learns; what is killed goes on."""

import csv
import json
import multiprocessing
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import precision

from keras_flows import dequantization, zoo

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
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")  # also where it is slower


# The same numbers.


def replicas(strategy, output, cases):
    return [sys.executable, *map(str, (ROOT / "tests" / "replicas.py", strategy, output)), *cases]


# Processes fork from one that has imported TensorFlow, which takes longer than to learn.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["keras_flows"])


class Fork(FORKS.Process):
    """As `subprocess.Popen` runs a Python script."""

    def __init__(self, command, *, env=os.environ, stderr):
        super().__init__()
        self.command, self.environment, self.log = command, dict(env), stderr.name
        self.start()

    def run(self):
        os.environ.update(self.environment)
        os.dup2(os.open(self.log, os.O_WRONLY | os.O_APPEND), 2)
        sys.argv = self.command[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")

    def wait(self, timeout):
        self.join(timeout)
        return self.exitcode


@pytest.fixture
def run_here(monkeypatch):
    """Runs a script in this process, which has imported all that it needs."""
    for name in ("uniform_noise", "normal_noise"):  # which the script replaces: put back
        monkeypatch.setattr(dequantization, name, getattr(dequantization, name))

    def run(command):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", command[1:])
            runpy.run_path(command[1], run_name="__main__")

    with precision("float32"):  # puts back what the script sets
        yield run


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
            tolerance = 1e-4 if case.endswith("float32") else 1e-9
            np.testing.assert_allclose(
                *(results[name], value),
                rtol=tolerance,
                atol=tolerance / 1000,  # a gradient of 0 is rounding noise
                err_msg=f"{case} {name}",
            )


def check_replicas(count, cases, folder, run_here):
    """That `count` devices of one process learn what one does."""
    with open(folder / "log", "w") as log:
        many = Fork(replicas(count, folder / "many", cases), stderr=log)
    run_here(replicas("none", folder / "one", cases))
    finish([many], folder / "log")
    assert_same(folder / "many", folder / "one", cases)


def check_workers(count, cases, folder, run_here):
    """That `count` processes learn what one does."""
    with open(folder / "log", "w") as log, pytest.MonkeyPatch.context() as patch:
        command = replicas("multi_worker", folder / "many", cases)
        patch.setattr(subprocess, "Popen", Fork)
        workers = cluster.start_workers(command, count, stderr=log)
    run_here(replicas("none", folder / "one", cases))
    finish(workers, folder / "log")
    for i in range(count):
        assert_same(folder / f"many-{i}", folder / "one", cases)


def stock_error(kind, output):
    """What goes wrong in Keras' own fit; with a strategy."""
    return str(np.load(f"{output}-stock.npz")[kind])


def test_replicas_learn_the_same(tmp_path, run_here):
    cases = ["nice_of_features", "one_coupling", "glow_reversible_float32"]
    check_replicas(2, cases, tmp_path, run_here)
    assert "must have the same size" in stock_error("symbolic_build", tmp_path / "many"), (
        "Keras now trains on a first batch that replicas cannot share evenly: "
        "private.BuiltByConstructor can go."
    )
    assert float(stock_error("clipped", tmp_path / "many")) == 0, (
        "Keras now sums gradients before it clips them: private.apply_reduced_gradients can go."
    )
    noisy = np.load(tmp_path / "many-noise.npz")
    assert noisy["arr_0"] != noisy["arr_1"]  # bits of the same image, with each replica's noise
    assert np.load(tmp_path / "many-opened.npz")["arr_0"] == 1
    with np.load(tmp_path / "many-strategies.npz") as strategies:
        assert len(strategies["interrupted"]) == 0
        for name, size in (
            ("first", 2),
            ("other_shape", 3),
            ("other_devices", 4),
            ("first_again", 5),
        ):
            expected = size * (1 + np.log(2 * np.pi)) / 2
            np.testing.assert_allclose(strategies[name], [expected], rtol=1e-6, err_msg=name)
    with np.load(tmp_path / "many-bad.npz") as bad:
        assert "Data must be finite" in str(bad["message"])
        weights, iterations = [bad[f"arr_{i}"] for i in (0, 1)], [bad[f"arr_{i}"] for i in (2, 3)]
        assert np.all(np.array(weights) == 1) and not np.any(iterations)
    with np.load(tmp_path / "many-refused.npz") as refused:
        errors = {name: str(error) for name, error in refused.items()}
    for name in ("model", "bijection", "optimizer"):
        assert "must be made within the scope of the strategy" in errors.pop(name), name
    assert errors.pop("batch") == (
        "A batch must have an example for each of the 2 replicas, which share it. "
        "Received: a batch of 1"
    )
    for name, error in errors.items():
        assert f"Keras does not support `{name}` on several replicas" in error


def test_workers_learn_the_same(tmp_path, run_here):
    # Which is traced soonest; all models, slowly, below.
    check_workers(2, ["nice_images"], tmp_path, run_here)
    model = keras.models.load_model(tmp_path / "many.keras")
    x = np.random.default_rng(0).integers(0, 256, (5, *model.input_shape), "uint8")
    exported = tf.saved_model.load(tmp_path / "many-exported").signatures["log_prob"]
    np.testing.assert_allclose(exported(x=tf.constant(x))["log_prob"], model.log_prob(x), rtol=1e-5)
    examples, bias, log_scale = zip(
        *(np.load(tmp_path / f"many-{i}-adapt.npz").values() for i in range(2))
    )
    examples = np.concatenate(examples)
    np.testing.assert_allclose(bias, [-np.mean(examples, 0)] * 2, rtol=1e-9)
    np.testing.assert_allclose(np.exp(3 * np.array(log_scale)), [1 / np.std(examples, 0)] * 2, 1e-5)
    assert "Invalid reduction dimension" in stock_error("scalar_logs", tmp_path / "many-0"), (
        "Keras now reduces scalar logs over workers: "
        "take the reshape out of DistributedModel.get_metrics_result."
    )


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("check", [check_replicas, check_workers])
def test_all_models_learn_the_same(check, count, tmp_path, run_here):
    others = [f"{name}_float32" for name in ("real_nvp_images", "glow_images", "glow_reversible")]
    others += [
        "glow_reversible",
        "nice_of_features",
        "nice_by_muon",
        "jet_images",
        "tarflow_images",
    ]
    check(count, [*MODELS, *others], tmp_path, run_here)


# tools/train.py.


def train_command(run, data_dir, *more):
    return [
        *(sys.executable, str(ROOT / "tools" / "train.py"), "--run", str(run)),
        *(
            "--model",
            "NICE",
            "--arguments",
            '{"depth": 3, "width": 8, "num_hidden": 1}',
            "--epochs",
            "6",
        ),
        *("--dataset", "moons", "--data_dir", str(data_dir), "--batch_size", "20"),
        *("--train_split", "train[:190]", "--validation_split", "train[190:240]", *more),
    ]


def logged(run):
    with open(run / "log.csv") as log:
        rows = list(csv.DictReader(log))
    return [[float(row[key]) for key in row if "seconds" not in key] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_training_goes_on_after_a_worker_was_killed(victim, tmp_path, run_here):
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
        shown = (tmp_path / "killed.log").read_text()
        # Not always the last line: a pool of TensorFlow's may complain as Python ends.
        assert "\nTraining has stopped: another worker was lost" in shown and "Replicas: 2" in shown
    finally:
        for process in workers:
            process.kill()
    epochs = len(logged(tmp_path / "run"))
    assert 1 <= epochs < 6

    with open(tmp_path / "resumed.log", "w") as log:
        # By as many workers again, or by one alone.
        as_before = () if victim else ("--workers", "2")
        command = train_command(tmp_path / "run", tmp_path, *as_before)
        resumed = subprocess.Popen(command, stdout=log, stderr=log)
    run_here(train_command(tmp_path / "whole", tmp_path))
    finish([resumed], tmp_path / "resumed.log")
    assert f"Epoch {epochs + 1}/6" in (tmp_path / "resumed.log").read_text()
    # Killed between log and backup, an epoch comes again.
    rows = {epoch: figures for epoch, *figures in logged(tmp_path / "run")}
    whole = {epoch: figures for epoch, *figures in logged(tmp_path / "whole")}
    assert list(rows) == list(whole) == list(range(6))
    np.testing.assert_allclose(list(rows.values()), list(whole.values()), rtol=1e-4)
    assert keras.models.load_model(tmp_path / "run" / "model.keras").adapted


def test_slurm_job_of_the_docs(tmp_path, monkeypatch):
    """On a cluster of two hosts, with Slurm's commands and the training replaced."""
    job = (ROOT / "docs" / "devices.md").read_text().split("```bash\n")[1].split("```")[0]
    for name, body in (
        ("scontrol", "echo gpu17; echo gpu18"),
        ("srun", 'shift; for i in 0 1; do SLURM_PROCID=$i "$@"; done'),
        ("train", 'echo "$TF_CONFIG" | tr -d "\\n"; echo'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    job = job.replace(".venv/bin/python tools/train.py", "train")
    done = subprocess.run(["bash", "-c", job], capture_output=True, text=True, check=True)
    texts = done.stdout.splitlines()
    assert len(texts) == 2
    for index, text in enumerate(texts):
        cluster.check_tf_config(text)
        config = json.loads(text)
        assert config["cluster"] == {"worker": ["gpu17:12345", "gpu18:12345"]}
        assert config["task"]["index"] == index


# Bad input.


HOSTS = '"cluster": {"worker": ["a:1", "b:1"]}'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "it is not set"),
        ("{", "it is no JSON"),
        ("[]", "no cluster"),
        ('{"task": {"type": "worker", "index": 0}}', "no cluster"),
        ('{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}}', r"\['ps'\] are not among"),
        ('{"cluster": {"worker": "a:1"}}', "hosts must be lists"),
        ('{"cluster": {"worker": ["a"]}}', "a host has no port"),
        ('{"cluster": {}}', "no hosts"),
        ('{"cluster": {"worker": ["a:1", "a:1"]}}', "listed twice"),
        ("{" + HOSTS + "}", "no task of the cluster"),
        ("{" + HOSTS + ', "task": {"type": "chief", "index": 0}}', "no task of the cluster"),
        ("{" + HOSTS + ', "task": {"type": "worker", "index": 2}}', r"must be in 0\.\.1"),
        ("{" + HOSTS + ', "task": {"type": "worker", "index": "0"}}', r"must be in 0\.\.1"),
    ],
)
def test_malformed_tf_config_is_refused(text, why, monkeypatch, capsys):
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=f"TF_CONFIG must be like .* {why}.*Received: TF_CONFIG="):
        cluster.make_strategy("multi_worker")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--strategy", "parameter_server"), "invalid choice: 'parameter_server'"),
        (("--strategy", "multi_worker"), "TF_CONFIG must be like"),
        (
            ("--strategy", "mirrored", "--batch_size", "0"),
            "must be a positive integer. Received: 0",
        ),
        (("--workers", "0"), "--workers takes a positive number"),
        (("--strategy", "mirrored", "--workers", "2"), "--workers takes a positive number"),
    ],
)
def test_training_tool_refuses(arguments, message, tmp_path, run_here, capsys):
    with pytest.raises(SystemExit):
        run_here(train_command(tmp_path / "run", tmp_path, *arguments))
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="A strategy must be one of .* Received: 'horovod'"):
        cluster.make_strategy("horovod")


def test_parameter_servers_are_refused(monkeypatch):
    strategy = object.__new__(tf.distribute.ParameterServerStrategy)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: strategy)
    with pytest.raises(ValueError, match="does not support ParameterServerStrategy"):
        zoo.NICE((4,))
