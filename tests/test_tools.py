"""The command-line tools, from training to export, on the embedded digits."""

import csv
import fcntl
import json
import os
import pathlib
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import contents
from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

import keras_flows

TOOLS = pathlib.Path(__file__).parent.parent / "tools"


def test_commands_run_by_their_names():
    """As docstrings and pages write them, without `python`."""
    scripts = {path for path in TOOLS.rglob("*") if path.suffix in (".py", "") and path.is_file()}
    commands = {path for path in scripts if path.read_bytes()[:2] == b"#!"}
    assert TOOLS / "train.py" in commands
    assert {path for path in scripts if os.access(path, os.X_OK)} == commands


@pytest.fixture
def tool(monkeypatch):
    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.syspath_prepend(TOOLS)
        folder = TOOLS / name
        path = folder if folder.is_dir() else folder.with_suffix(".py")
        runpy.run_path(str(path), run_name="__main__")

    return run


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A preset's folder, not trained yet."""
    folder = tmp_path_factory.mktemp("presets") / "small"
    folder.mkdir()
    arguments = {"input_shape": [8, 8, 1], "levels": 1, "depth": 1, "width": 4, "num_classes": 10}
    files = {
        "config": {"registered_name": "keras_flows>Glow", "config": {**arguments, "seed": 0}},
        "metadata": {"description": "A small one."},
        "recipe": {
            "dataset": "digits",
            "train_split": "train[:128]",
            "validation_split": "train[128:192]",
            "test_split": "test[:100]",
            "epochs": 2,
            "optimizer": {"class_name": "Adamax", "config": {"beta_2": 0.99}},
            "learning_rate": 0.02,
            "decay": "none",
            "clip": 1000.0,
            "augmentation": {"flip": True, "shift": 0.2},
            "average": 0.9,
        },
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def train(tool, run, data_dir, preset, *more):
    tool("train", "--run", run, "--data_dir", data_dir, "--preset", preset, *more)


def losses(run, key="loss"):
    with open(run / "log.csv") as log:
        return [float(row[key]) for row in csv.DictReader(log)]


def validated(run):
    return losses(run, "val_loss")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir, preset):
    with pytest.MonkeyPatch.context() as patch:
        run = tmp_path_factory.mktemp("runs") / "digits"
        train(tool.__wrapped__(patch), run, data_dir, preset)
        return run


def test_train_leaves_a_model_and_a_log(trained):
    assert len(losses(trained)) == 2
    assert losses(trained)[1] < losses(trained)[0]
    assert keras.models.load_model(trained / "model.keras").num_classes == 10
    assert json.loads((trained / "settings.json").read_text())["dataset"] == "digits"
    optimizer = keras.models.load_model(trained / "model.keras").optimizer
    assert isinstance(optimizer, keras.optimizers.Adamax) and optimizer.beta_2 == 0.99
    assert optimizer.global_clipnorm == 1000 and optimizer.ema_momentum == 0.9


def test_train_refuses_a_folder_with_other_settings(tool, trained, data_dir, preset, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained.iterdir()}
    with pytest.raises(SystemExit):
        train(tool, trained, data_dir, preset, "--seed", 7)
    assert "a training with other settings: of ['seed']" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in trained.iterdir()}


def test_train_refuses_a_folder_with_another_architecture(tool, trained, data_dir, preset, capsys):
    config = (preset / "config.json").read_text()
    before = contents(trained)
    (preset / "config.json").write_text(config.replace('"width": 4', '"width": 5'))
    try:
        with pytest.raises(SystemExit):
            train(tool, trained, data_dir, preset)
    finally:
        (preset / "config.json").write_text(config)
    assert "a training with other settings: of ['config']" in capsys.readouterr().err
    assert contents(trained) == before


def test_train_refuses_a_folder_that_is_no_training_s(tool, tmp_path, data_dir, preset, capsys):
    (tmp_path / "model.keras").write_text("precious")
    with pytest.raises(SystemExit):
        train(tool, tmp_path, data_dir, preset)
    assert "holds what is no training" in capsys.readouterr().err
    assert contents(tmp_path) == {tmp_path / "model.keras": b"precious"}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--dataset", "digitss"], "error: --train_split: .*digitss"),
        (["--validation_split", "train[:0]"], "error: --validation_split: "),
        (["--arguments", '{"level": 1}'], "error: .*level"),
        (["--arguments", "[1]"], "--arguments: must be a JSON object"),
        (["--arguments", "{"], "--arguments: must be JSON .*Received: {"),
        (["--model", "NICE", "--augmentation", '{"flipp": true}'], "--augmentation: .*flipp"),
        (["--model", "NICE", "--augmentation", '{"flip": "no"}'], "`flip` must be a Boolean"),
        (["--model", "NICE", "--augmentation", '{"shift": 2}'], "`shift` must be a number in"),
        (
            ["--dataset", "moons", "--model", "NICE", "--augmentation", '{"flip": true}'],
            "Only images can be augmented",
        ),
        (["--average", "1.5"], r"--average: must be a number in \[0, 1\). Received: 1.5"),
        (["--warmup_epochs", "nan"], "--warmup_epochs: must be a number of at least 0"),
        (["--seed", "-1"], r"--seed: must be an integer in 0..2\^31 - 1"),
    ],
)
def test_train_leaves_no_folder_of_what_it_refuses(wrong, words, tool, tmp_path, data_dir, capsys):
    where = ["--run", tmp_path / "run", "--data_dir", data_dir, "--dataset", "digits"]
    with pytest.raises(SystemExit) as error:
        tool("train", *where, *wrong)
    assert re.search(words, f"{capsys.readouterr().err}{error.value}")
    assert not (tmp_path / "run").exists()


def test_train_leaves_no_folder_of_what_fit_refuses(tool, tmp_path, data_dir):
    """Else the mended command would be one of other settings."""
    where = ["--run", tmp_path / "run", "--data_dir", data_dir, "--dataset", "digits"]
    arguments = '{"depth": 1, "width": 4, "num_classes": 3}'
    with pytest.raises(ValueError, match=r"must be in 0..2, as num_classes=3"):
        tool("train", *where, "--model", "NICE", "--arguments", arguments)
    assert not (tmp_path / "run").exists()


def test_train_refuses_a_folder_where_another_trains(tool, tmp_path, data_dir, preset):
    run = tmp_path / "run"
    run.mkdir()
    with open(run / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="where another process trains"):
            train(tool, run, data_dir, preset)
    assert contents(run) == {run / ".lock": b""}


@pytest.mark.slow
def test_workers_end_with_the_command_that_started_them(tmp_path):
    sleep = f"import os, pathlib, time; pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch(); "
    code = f"import cluster, sys; cluster.run_workers([sys.executable, '-c', {sleep!r} "
    code += "'time.sleep(600)'], 2)"
    environment = {**os.environ, "PYTHONPATH": str(TOOLS)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as command:
        while len(workers := list(tmp_path.iterdir())) < 2:
            assert command.poll() is None
            time.sleep(0.1)
        command.terminate()
        assert command.wait() == 128 + signal.SIGTERM
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(int(worker.name), 0)


def test_train_keeps_a_preset_s_own_precision(tool, tmp_path, data_dir, preset, monkeypatch):
    config = json.loads((preset / "config.json").read_text())
    config["config"]["dtype"] = "float64"
    other = shutil.copytree(preset, tmp_path / "preset")
    (other / "config.json").write_text(json.dumps(config))
    seen = []
    monkeypatch.setattr(keras_flows.Flow, "fit", lambda self, *_, **__: seen.append(self))
    train(tool, tmp_path / "own", data_dir, other)
    train(tool, tmp_path / "flag", data_dir, other, "--dtype", "float32")
    assert [model.compute_dtype for model in seen] == ["float64", "float32"]


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_train_validates_and_keeps_the_average(tool, trained, tmp_path, data_dir, preset):
    """It is far behind; by it the epochs, which train alike, are worse."""
    recipe = json.loads((preset / "recipe.json").read_text())
    other = shutil.copytree(preset, tmp_path / "preset")
    (other / "recipe.json").write_text(json.dumps({**recipe, "average": 0.999}))
    train(tool, tmp_path / "run", data_dir, other)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(trained), rtol=1e-4)
    assert validated(tmp_path / "run")[-1] > 2 + validated(trained)[-1]

    kept = keras.models.load_model(tmp_path / "run" / "model.keras")
    validation = keras_flows.data.load(
        "digits", split=recipe["validation_split"], batch_size=64, data_dir=data_dir, labels=True
    )
    loss = kept.evaluate(validation, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(min(validated(tmp_path / "run")), rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--arguments", '{"seed": 1, "depth": 2}'], "--arguments takes no ['seed']"),
        (
            ["--optimizer", '{"class_name": "SGD", "config": {"learning_rate": 1.0}}'],
            "--optimizer takes no ['learning_rate']",
        ),
    ],
)
def test_train_takes_no_setting_twice(flags, words, tool, tmp_path, data_dir, capsys):
    with pytest.raises(SystemExit):
        tool(
            "train",
            "--run",
            tmp_path / "run",
            "--data_dir",
            data_dir,
            "--dataset",
            "digits",
            *flags,
        )
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_weights_that_are_lost_replace_none(tool, tmp_path, data_dir, preset, monkeypatch):
    """Neither the best model nor the backup: the training can be looked at, and resumed."""
    run = tmp_path / "run"
    train(tool, run, data_dir, preset, "--epochs", 1, "--decay", "none")
    kept = contents(run)
    settings = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps({**settings, "epochs": 2}))

    class Spoil(keras.callbacks.CSVLogger):
        def on_train_batch_begin(self, batch, logs=None):
            weight = self.model.trainable_weights[0]
            weight.assign(weight * np.nan)

    monkeypatch.setattr(keras.callbacks, "CSVLogger", Spoil)
    with pytest.raises(SystemExit, match=r"epoch 2 is not finite from batch 1 on; the best model"):
        train(tool, run, data_dir, preset, "--epochs", 2, "--decay", "none")
    after = contents(run)
    assert after.pop(run / "settings.json") and kept.pop(run / "settings.json")
    assert after == kept


@pytest.mark.slow  # the same of killed workers is in test_distribute.py
def test_stopped_training_ends_as_if_it_had_not_been(
    tool, trained, tmp_path, data_dir, preset, monkeypatch
):
    class Stop(keras.callbacks.ModelCheckpoint):
        def on_train_batch_begin(self, batch, logs=None):
            if self.model.optimizer.iterations.numpy() == 3:  # in the second of two epochs
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(keras.callbacks, "ModelCheckpoint", Stop)
        with pytest.raises(KeyboardInterrupt):
            train(tool, tmp_path / "run", data_dir, preset)
    train(tool, tmp_path / "run", data_dir, preset)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(trained), rtol=1e-6)


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        ({"epoch": 2}, "['epoch']"),
        ({"decay": "linear"}, "invalid choice: 'linear'"),
        ({"epochs": 2.5}, "--epochs: must be a positive integer. Received: 2.5"),
        ({"epochs": 0}, "--epochs: must be a positive integer. Received: 0"),
        ({"learning_rate": -0.1}, "--learning_rate: must be a positive number. Received: -0.1"),
        ({"workers": 2}, "['workers']"),  # each of which would start two
        ({"model": "NICE", "arguments": {}}, "['arguments', 'model']"),
    ],
)
def test_a_wrong_recipe_is_refused(flaw, message, tool, preset, tmp_path, data_dir, capsys):
    copy = shutil.copytree(preset, tmp_path / "copy")
    (copy / "recipe.json").write_text(json.dumps({"dataset": "digits", **flaw}))
    with pytest.raises(SystemExit):
        train(tool, tmp_path / "run", data_dir, copy)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "name", "content", "message"),
    [
        ("train", "settings.json", '{"dataset"', "settings.json cannot be read as JSON"),
        ("publish", "settings.json", '{"dataset"', "settings.json cannot be read as JSON"),
        ("train", "settings.json", "[1]", "must hold a JSON object. Received: list"),
        ("train", "log.csv", "epoch,loss\n0,1.0\n", "under 'val_loss'. Received: None"),
        ("train", "log.csv", "epoch,val_loss\n0,low\n", "under 'val_loss'. Received: 'low'"),
        ("publish", "log.csv", "epoch,seconds\n0,few\n", "under 'seconds'. Received: 'few'"),
    ],
)
def test_a_training_whose_files_are_spoilt_is_left_alone(
    command, name, content, message, tool, trained, tmp_path, data_dir, preset
):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / name).write_text(content)
    before = contents(run)
    flags = {"train": ("--preset", preset, "--run", run), "publish": (run, preset)}[command]
    with pytest.raises(SystemExit, match=re.escape(message)):
        tool(command, *flags, "--data_dir", data_dir)
    assert contents(run) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset", "digits", "--worker", 2), "unrecognized arguments: --worker"),
        (("--preset", "glow_digits", "--model", "NICE"), "--model: not allowed with"),
        (("--preset", "glow_digits", "--arguments", '{"depth": 3}'), "a preset has its own"),
        ((), "one of --dataset and --preset"),
    ],
)
def test_flags_that_contradict_each_other(flags, message, tool, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool("train", "--run", tmp_path / "run", *flags)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_augmentation_mirrors_and_moves(data_dir, monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    from augmentation import augmented

    def images(**options):
        split = {"split": "train[:64]", "batch_size": 32, "data_dir": data_dir, "seed": 1}
        batches = keras_flows.data.load("digits", **split)
        batches = augmented(batches, 3, **options) if options else batches
        return np.concatenate([batch.numpy() for batch in batches])

    def count(changed, original, *ways):
        """How many images are those that each way makes of them."""
        equal = [np.all(changed == way(original), axis=(1, 2, 3)) for way in ways]
        assert np.all(np.any(equal, axis=0))
        return [sum(each) for each in equal]

    def move(rows, columns):
        padded = np.pad(original, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        return lambda x: padded[:, 1 + rows : 9 + rows, 1 + columns : 9 + columns]

    original = images()
    flipped = images(flip=True)
    assert min(count(flipped, original, lambda x: x, lambda x: x[:, :, ::-1])) > 16
    moves = [move(rows, columns) for rows in (-1, 0, 1) for columns in (-1, 0, 1)]
    assert min(count(images(shift=0.13), original, *moves)) > 0
    np.testing.assert_array_equal(images(flip=True), flipped)


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_train_stopped_between_log_and_backup(
    tool, trained, tmp_path, data_dir, preset, monkeypatch
):
    back_up = keras.callbacks.BackupAndRestore.on_epoch_end

    def stop(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt
        back_up(self, epoch, logs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(keras.callbacks.BackupAndRestore, "on_epoch_end", stop)
        train(tool, tmp_path / "run", data_dir, preset)
    best = keras.models.load_model(tmp_path / "run" / "model.keras").get_weights()
    train(tool, tmp_path / "run", data_dir, preset)
    assert losses(tmp_path / "run", "epoch") == [0, 1, 1]
    np.testing.assert_allclose(losses(tmp_path / "run")[1:], [losses(trained)[1]] * 2, rtol=1e-4)
    kept = keras.models.load_model(tmp_path / "run" / "model.keras").get_weights()
    for actual, expected in zip(kept, best, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)

    monkeypatch.syspath_prepend(TOOLS)
    import publish

    assert publish.time_of(tmp_path / "run" / "log.csv")["epochs"] == 2


def test_a_training_on_gpus_is_told_by_their_minutes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    import card
    import publish

    (tmp_path / "log.csv").write_text("epoch,seconds,cpu_seconds\n0,60,600\n1,30,300\n")
    assert card.spent(publish.time_of(tmp_path / "log.csv"), "core-minutes") == "15 core-minutes"
    assert card.spent(publish.time_of(tmp_path / "log.csv", gpus=2)) == "3.0 GPU-minutes"


def test_a_log_is_replaced_with_each_row_and_takes_no_half_one_over(tmp_path, monkeypatch):
    """Such as a process leaves that was killed while it appended."""
    monkeypatch.syspath_prepend(TOOLS)
    train = runpy.run_path(str(TOOLS / "train.py"))
    (tmp_path / "log.csv").write_text("epoch,loss,val_loss\n0,2.5,3.5\n1,2.25,1.2")
    assert train["best_so_far"](tmp_path / "log.csv") == 3.5
    log = train["Log"](tmp_path / "log.csv")
    log.on_train_begin()
    log.on_epoch_end(1, {"val_loss": 3.25, "loss": 2.25})
    before = (tmp_path / "log.csv").read_bytes()
    assert losses(tmp_path, "epoch") == [0, 1] and validated(tmp_path) == [3.5, 3.25]
    monkeypatch.setattr(os, "replace", None)
    with pytest.raises(TypeError):
        log.on_epoch_end(2, {"val_loss": 3.0, "loss": 2.0})
    assert (tmp_path / "log.csv").read_bytes() == before


@pytest.fixture
def copy(preset, tmp_path):
    return shutil.copytree(preset, tmp_path / "zoo" / "copy")


@pytest.mark.usefixtures("eager")
def test_publish_makes_a_preset_that_evaluate_confirms(tool, trained, copy, data_dir, capsys):
    tool("publish", trained, copy, "--data_dir", data_dir, "--machine", "a machine")
    metadata = json.loads((copy / "metadata.json").read_text())
    here = metadata["results"]
    card = (copy / "README.md").read_text()
    assert f"**{here['bits_per_dim']:.3f} bits/dim**" in card and "a machine" in card
    assert here["epochs"] == 2 and here["training_core_minutes"] > 0
    assert 0 < here["webp_bits_per_dim"] < 8 > here["png_bits_per_dim"] > 0
    assert f"one PNG | {here['png_bits_per_dim']:.2f} " in card
    assert f"one lossless WebP | {here['webp_bits_per_dim']:.2f} " in card
    picture = tf.io.decode_png((copy / "samples.png").read_bytes())
    assert picture.shape == (8 * 58, 8 * 58, 1)

    tool("evaluate", copy, "--data_dir", data_dir)
    shown = capsys.readouterr().out.splitlines()[-1]
    bits, nats = shown.removeprefix(f"{copy}: ").split(" (")[0].split(", ")
    bits, nats = float(bits.removesuffix(" bits/dim")), float(nats.removesuffix(" nats"))
    assert bits == pytest.approx(nats / (64 * np.log(2)), abs=1e-3)
    assert bits == pytest.approx(here["bits_per_dim"], abs=1e-3)

    tool("evaluate", copy, "--data_dir", data_dir, "--split", "test[:100]")
    assert f": {bits:.4f} bits" in capsys.readouterr().out.splitlines()[-1]

    here["bits_per_dim"] -= 0.01
    (copy / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(SystemExit, match="Not within 0.005"):
        tool("evaluate", copy, "--data_dir", data_dir)


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_publish_replaces_weights_by_better_ones_only(tool, trained, copy, data_dir):
    tool("publish", trained, copy, "--data_dir", data_dir)
    metadata = json.loads((copy / "metadata.json").read_text())
    bits = metadata["results"]["bits_per_dim"]

    for gain in (0.0, 0.01):
        metadata["results"]["bits_per_dim"] = bits + gain
        (copy / "metadata.json").write_text(json.dumps(metadata))
        before = contents(copy)
        with pytest.raises(SystemExit):
            tool("publish", trained, copy, "--data_dir", data_dir)
        assert contents(copy) == before

    metadata["results"]["bits_per_dim"] = bits + 0.03
    (copy / "metadata.json").write_text(json.dumps(metadata))
    tool("publish", trained, copy, "--data_dir", data_dir)
    assert json.loads((copy / "metadata.json").read_text())["results"]["bits_per_dim"] == bits


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_publish_leaves_a_preset_alone_if_it_fails(
    tool, trained, copy, tmp_path, data_dir, monkeypatch, capsys
):
    before = contents(copy)
    model = keras.models.load_model(trained / "model.keras")
    model.set_weights(
        [weight * np.nan if weight.ndim else weight for weight in model.get_weights()]
    )
    (tmp_path / "diverged").mkdir()
    model.save(tmp_path / "diverged" / "model.keras")
    for name in ("log.csv", "settings.json"):
        shutil.copy(trained / name, tmp_path / "diverged")
    with pytest.raises(SystemExit):
        tool("publish", tmp_path / "diverged", copy, "--data_dir", data_dir)
    assert "no weights worth publishing: nan" in capsys.readouterr().err

    monkeypatch.setattr("PIL.Image.Image.save", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tool("publish", trained, copy, "--data_dir", data_dir)
    assert contents(copy) == before
    assert [*copy.parent.iterdir()] == [copy]


def test_publish_refuses_what_its_card_could_not_say(tool, trained, copy, data_dir, capsys):
    before = contents(copy)
    recipe = json.loads((copy / "recipe.json").read_text())
    for change, words in (
        ({"average": None}, "not the recipe's: {'average': 0.9}"),
        ({"seed": 7}, "not the recipe's: {'seed': 0}"),
        ({"train_split": None}, "must name what its card does: ['train_split']"),
    ):
        changed = {k: v for k, v in {**recipe, **change}.items() if v is not None}
        (copy / "recipe.json").write_text(json.dumps(changed))
        with pytest.raises(SystemExit):
            tool("publish", trained, copy, "--data_dir", data_dir)
        assert words in capsys.readouterr().err
    (copy / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(SystemExit):  # its folder is the cache of the hub's client
        tool("publish", trained, "hf://me/digits", "--data_dir", data_dir)
    assert "preset must be a name or a folder. Received: hf://me/digits" in capsys.readouterr().err
    assert contents(copy) == before


@pytest.mark.usefixtures("eager")
def test_evaluate_takes_a_preset_of_one_s_own(tool, trained, tmp_path, data_dir, capsys):
    keras.models.load_model(trained / "model.keras").save_to_preset(tmp_path / "own")
    with pytest.raises(SystemExit, match="name a --dataset"):
        tool("evaluate", tmp_path / "own")
    tool("evaluate", tmp_path / "own", "--dataset", "digits", "--data_dir", data_dir)
    assert "bits/dim" in capsys.readouterr().out


@pytest.mark.usefixtures("eager")
def test_a_density_conditional_on_floats(tool, tmp_path, data_dir, capsys):
    """Trained, evaluated and sampled by the tools."""
    arguments = json.dumps({"condition_shape": [2], "depth": 1, "width": 4, "num_blocks": 1})
    splits = ["--train_split", "train[:64]", "--validation_split", "train[64:128]"]
    dataset = ["--dataset", "two_moons_simulations", "--data_dir", data_dir]
    model = ["--model", "NSF", "--arguments", arguments]
    tool("train", "--run", tmp_path / "run", *model, *dataset, *splits, "--epochs", 1)
    best = tmp_path / "run" / "model.keras"
    tool("evaluate", best, *dataset, "--split", "test[:100]")
    assert " nats" in capsys.readouterr().out
    picture = tmp_path / "at.png"
    tool("sample", best, "--n", 5, "--condition", "[0.1, -0.2]", "--output", picture)
    assert tf.io.decode_png(picture.read_bytes()).shape == (400, 400, 1)
    with pytest.raises(SystemExit):
        tool("sample", best, "--condition", "[0.1]", "--output", tmp_path / "no.png")
    assert "`condition` must have shape (batch, 2)" in capsys.readouterr().err
    assert not (tmp_path / "no.png").exists()


def test_sample_writes_a_grid(tool, trained, tmp_path):
    output = tmp_path / "samples.png"
    tool("sample", trained / "model.keras", "--output", output, "--n", 5, "--zoom", 3)
    picture = tf.io.decode_png(output.read_bytes()).numpy()
    assert picture.shape == (2 * (3 * 8 + 2), 3 * (3 * 8 + 2), 1)
    assert picture.max() > 64  # more than the lines between the cells
    tool("sample", trained / "model.keras", "--output", output, "--n", 1, "--condition", 3)


def test_export_makes_what_tf_serving_mounts(tool, trained, tmp_path, capsys):
    served = tmp_path / "all served"
    served.mkdir()
    (served / "models.config").write_text(
        '# Ours.\nmodel_config_list { config { name: "other" base_path: "/models/other" } }'
    )
    (served / "our digits" / "9").mkdir(parents=True)
    tool("export", trained / "model.keras", "--output", served / "our digits")
    assert {path.name for path in (served / "our digits").iterdir()} == {"9", "10"}
    printed = capsys.readouterr().out
    assert "log_prob: " in printed and "x uint8(None, 8, 8, 1)" in printed
    assert f"-v '{served}:/models' tensorflow/serving" in printed
    assert "/v1/models/our%20digits:predict -d" in printed and "8500 'our digits' --n 2" in printed
    request = json.loads(printed.split("predict -d \\\n")[-1].split("'")[1])
    sample = tf.saved_model.load(str(served / "our digits" / "10")).signatures["sample"]
    sample(
        **{  # as printed, for the class-conditional model
            name: tf.constant(value, sample.structured_input_signature[1][name].dtype)
            for name, value in request["inputs"].items()
        }
    )
    config = text_format.Parse((served / "models.config").read_text(), ModelServerConfig())
    names = [(model.name, model.base_path) for model in config.model_config_list.config]
    assert names == [("other", "/models/other"), ("our digits", "/models/our digits")]
    assert (served / "models.config").read_text().startswith("# Ours.\n")
    assert "max_batch_size" in (served / "batching.config").read_text()
    assert sorted(path.name for path in served.iterdir()) == [
        *("batching.config", "models.config", "our digits")
    ]


def test_sample_refuses_what_it_cannot_draw(tool, tmp_path, capsys):
    line = tmp_path / "line.keras"
    keras_flows.Flow(keras_flows.layers.DiagonalScaling(), (1,)).save(line)
    before = line.read_bytes()
    for arguments, words in (
        (["realnvp_moons", "--condition", 3], "--condition is of a conditional model"),
        (["realnvp_moons", "--condition", "three"], "--condition: must be JSON"),
        (["realnvp_moons", "--zoom", 0], "--zoom: must be a positive integer. Received: 0"),
        (["realnvp_moons", "--output", tmp_path], "--output must be a .png in a folder that"),
        (["realnvp_moons", "--output", tmp_path / "no" / "a.png"], "--output must be a .png in"),
        ([line, "--output", line], "--output must be a .png"),  # nor is the model overwritten
        ([line], "draws single numbers"),
    ):
        with pytest.raises(SystemExit):
            tool("sample", "--output", tmp_path / "samples.png", *arguments)
        assert words in capsys.readouterr().err
    assert line.read_bytes() == before
    with pytest.raises(SystemExit, match="nowhere.keras"):
        tool("sample", tmp_path / "nowhere.keras", "--output", tmp_path / "samples.png")
    assert not (tmp_path / "samples.png").exists()


@pytest.mark.parametrize("name", ["sample", "export", "evaluate"])
def test_what_is_no_trained_flow(name, tool, tmp_path):
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]).save(tmp_path / "dense.keras")
    (tmp_path / "half.keras").write_bytes((tmp_path / "dense.keras").read_bytes()[:100])
    keras_flows.Flow(keras_flows.layers.ActNorm(), (2,)).save(tmp_path / "new.keras")
    output = [] if name == "evaluate" else ["--output", tmp_path / "out.png"]
    for file, words in (
        ("dense.keras", "must be a keras_flows.Flow. Received: a Sequential"),
        ("half.keras", "is no .keras file, or half of one"),
        ("new.keras", "was never adapted to data or trained"),
    ):
        with pytest.raises(SystemExit, match=words):
            tool(name, tmp_path / file, *output)
    assert not (tmp_path / "out.png").exists()


def test_help_of_card_writes_nothing(tool, monkeypatch, capsys):
    monkeypatch.setattr(pathlib.Path, "write_text", None)
    for flag, status in (("--help", 0), ("--nope", 2)):
        with pytest.raises(SystemExit) as ended:
            tool("card", flag)
        assert ended.value.code == status
    assert "Writes the presets' cards" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "# Ours.\n", "model_config_list {} # Ours."])
def test_export_starts_a_configuration(tmp_path, text, monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    import export

    (tmp_path / "models.config").write_text(text)
    extended = export.with_model(tmp_path / 'the "digits"')
    (model,) = text_format.Parse(extended, ModelServerConfig()).model_config_list.config
    assert (model.name, model.base_path) == ('the "digits"', '/models/the "digits"')
    assert ("# Ours." in extended) == ("# Ours." in text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no configuration", "is not a configuration of TF Serving"),
        ("model_config_list {} # {}", "cannot be extended.*\n  config {\n    name: "),
        ("custom_model_config {}", "cannot be extended"),
    ],
)
def test_export_leaves_a_file_alone_that_it_cannot_extend(tool, trained, tmp_path, text, words):
    (tmp_path / "models.config").write_text(text)
    with pytest.raises(SystemExit, match=words):
        tool("export", trained / "model.keras", "--output", tmp_path / "digits")
    assert (tmp_path / "models.config").read_text() == text
    assert not (tmp_path / "digits").exists()


def test_two_exports_at_a_time(tool, tmp_path, monkeypatch):
    """The first reads models.config, the second writes it, and only then does the first."""
    export, names = keras_flows.Flow.export, iter(["second", None])
    model, served = tmp_path / "model.keras", tmp_path / "served"
    keras_flows.Flow(keras_flows.layers.DiagonalScaling(), (2,)).save(model)  # soon traced
    served.mkdir()

    def after_another(self, path):
        if name := next(names):
            tool("export", model, "--output", served / name)
        export(self, path)

    monkeypatch.setattr(keras_flows.Flow, "export", after_another)
    tool("export", model, "--output", served / "first")
    written = (served / "models.config").read_text()
    models = text_format.Parse(written, ModelServerConfig()).model_config_list.config
    assert [model.name for model in models] == ["second", "first"]
    assert sorted(path.name for path in served.iterdir()) == [
        *("batching.config", "first", "models.config", "second")
    ]
    assert [path.name for path in served.glob("*/*")] == ["1", "1"]


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_anomalies_are_told_by_their_density(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tool("examples/anomalies", "--flows", "RealNVP", "--seeds", 1, "--epochs", 1)
    shown = capsys.readouterr().out
    rows = [line for line in shown.splitlines() if " +- " in line]
    names = ("RealNVP", "Gaussian, shrunk", "kernel density", "IsolationForest")
    for name, row in zip(names, rows, strict=True):
        auroc, *nats = (float(figure) for figure in re.findall(r"(\S+) \+- 0\.0", row))
        assert row.startswith(name) and 0.9 < auroc < 1
        assert len(nats) == 2 * (name != "IsolationForest") and all(0 < n < 60 for n in nats)
    picture = tf.io.decode_png((tmp_path / "demo" / "anomalies.png").read_bytes())
    assert picture.shape[0] > 400


@pytest.mark.slow
@pytest.mark.parametrize("model", ["real_nvp", "nsf"])
def test_benchmark_compares_in_turns(model, tool, tmp_path, capsys):
    path = tmp_path / "figures.json"
    sizes = ("--depth", 2, "--batch_size", 4, "--rounds", 2)
    tool("benchmark", model, *sizes, "--only", "bare", "zuko", "--json", path)
    shown = capsys.readouterr().out
    figures = json.loads(path.read_text())
    assert list(figures) == ["2"]
    for depth, contestants in figures.items():
        assert f"| depth {depth}, batch 4, float32 |" in shown
        machine = contestants.pop("machine")
        assert all(len(machine[call]["all"]) == 2 for call in machine) and len(machine) == 3
        assert list(contestants) == ["keras_flows", "bare", "zuko"]
        ours, bare, zuko = contestants.values()
        assert "missing" in zuko or zuko["parameters"] > 0  # its extra may not be installed
        assert 0.9 < bare["parameters"] / ours["parameters"] <= 1  # it has no linear maps
        for contestant in (ours, bare):
            assert contestant["nodes"] > 100 and contestant["first_step"] > 0
            for call in ("train_step", "log_prob", "sample"):
                seconds = contestant[call]["all"]
                assert len(seconds) == 2 and contestant[call]["median"] == np.median(seconds)


def test_benchmark_knows_its_contestants(tool, capsys):
    with pytest.raises(SystemExit):
        tool("benchmark", "--only", "jax")
    assert "--only takes keras_flows, reversible, bare" in capsys.readouterr().err


@pytest.mark.slow
def test_benchmark_times_what_is_served(tool, tmp_path, capsys):
    path = tmp_path / "figures.json"
    tool("benchmark", "--serving", "--depth", 1, "--rounds", 1, "--json", path)
    figures = json.loads(path.read_text())["1"]
    ours, naive = figures["size"].values()
    assert 0 < ours < naive
    signatures = ["serving_default", "log_prob", "encode", "decode", "sample"]
    assert list(figures["calls"]) == signatures
    for batches in figures["calls"].values():
        assert list(batches) == ["1", "8", "64"]
        for times in batches.values():
            assert list(times) == ["keras_flows", "naive export", "in Python"]
            assert all(len(seconds["all"]) == 1 for seconds in times.values())
    assert "| `sample` | 64 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch_size", 4], "--serving takes no --batch_size"),
        (["real_nvp"], "--serving times glow"),
    ],
)
def test_benchmark_of_serving_refuses(arguments, message, tool, capsys):
    with pytest.raises(SystemExit):
        tool("benchmark", "--serving", *arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_benchmark_compares_numbers_of_workers(tool, tmp_path, capsys):
    path = tmp_path / "figures.json"
    sizes = ("--depth", 1, "--batch_size", 4, "--rounds", 2)
    tool("benchmark", "--strategy", "multi_worker", *sizes, "--json", path)
    one, same_global, same_local = json.loads(path.read_text())["1"].values()
    for figures, examples in ((one, 4), (same_global, 4), (same_local, 8)):
        assert figures["images_per_second"] == pytest.approx(examples / np.median(figures["all"]))
    assert "| 2 workers, local batch 4 |" in capsys.readouterr().out


# Scale.


def test_scale_counts_loops_as_often_as_they_run(monkeypatch):
    """Of couplings of three convolutions: 16 cells, 4 channels, width 5."""
    monkeypatch.syspath_prepend(TOOLS)
    import scale

    def counted(depth, batch, **options):
        network = keras_flows.networks.ConvNet(5)
        step = keras_flows.layers.AffineCoupling(network)
        repeat = keras_flows.layers.Repeat(step, depth, **options)
        chain = keras_flows.layers.Chain([repeat, keras_flows.layers.Flatten()])
        model = keras_flows.Flow(chain, (4, 4, 4))
        return scale.count_forward(model, batch), scale.is_computed_again(model)

    (one, again), (two, _) = counted(2, batch=1), counted(2, batch=2)
    deep, deep_again = counted(4, batch=2, reversible=True)
    step = 2 * 16 * (9 * 2 * 5 + 5 * 5 + 9 * 5 * 4)
    assert two.flops - one.flops == 2 * step
    # Beside steps of the batch, convolutions of edges, of the weights alone.
    assert 4 * step < deep.flops - two.flops < 4.4 * step
    assert (again, deep_again) == (False, True)
    assert two.operations == one.operations < deep.operations
    assert one.moved > one.kept > 4 * 2 * 16 * (5 + 5 + 4)


def test_scale_predicts_a_row(tool, capsys):
    tool("scale", "nice_paper_mnist")
    *_, row = capsys.readouterr().out.splitlines()
    name, *figures = row.strip("| ").split(" | ")
    assert name == "`nice_paper_mnist`" and len(figures) == 8
    assert float(figures[0]) == round(2 * 19.1e6 / 1e9, 2)  # nearly all weights are of products
    assert 0 < float(figures[5].replace(",", "")) < float(figures[7].replace(",", ""))
