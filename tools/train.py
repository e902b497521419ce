#!/usr/bin/env python
"""Trains a model of the zoo on a dataset. Started again with the same arguments, it resumes.

    tools/train.py --model Glow --arguments '{"levels": 3, "depth": 8}' --dataset cifar10 \
        --epochs 10 --run runs/cifar10
    tools/train.py --preset glow_mnist --run runs/glow_mnist

The folder of the run holds model.keras (the best by validation so far), log.csv, the settings, and
what it needs to resume. A preset brings its architecture, config.json, and its recipe, recipe.json:
values for the flags from --dataset to --seed, which others on the command line override.

`--strategy mirrored` trains on all GPUs of this machine, `--strategy multi_worker` on those of all
machines that the environment variable TF_CONFIG lists; the same command is started on each of them.
`--workers 2` starts two such processes on this machine, to try it out.
"""

import argparse
import contextlib
import copy
import csv
import fcntl
import functools
import json
import math
import pathlib
import sys
import time

import augmentation
import cluster
import keras
import refusals
import tensorflow as tf
import threads
from flag_types import (
    json_object,
    json_or_name,
    natural_float,
    positive_float,
    positive_int,
    seed,
    share,
)

import keras_flows
from keras_flows import distribute, folders, presets

# Where a training runs is none of its settings, and a recipe does not say it.
WHERE = ("run", "data_dir", "strategy", "workers")
MODEL = ("preset", "model", "arguments")
SETTINGS = "settings.json"


def main():
    parser = flags()
    options = parse(parser, sys.argv[1:])
    if options.workers is not None:
        if options.workers < 1 or options.strategy == "mirrored":
            parser.error("--workers takes a positive number, and --strategy multi_worker")
        sys.exit(start_workers(options.workers))
    if not depends_on_the_batch(options):  # else a batch is not divided
        threads.one_for_an_operation()
    try:
        strategy = cluster.make_strategy(options.strategy)
    except ValueError as error:
        parser.error(str(error))
    if options.batch_size < strategy.num_replicas_in_sync:
        parser.error(
            "--batch_size must be at least the number of replicas, "
            f"{strategy.num_replicas_in_sync}. Received: {options.batch_size}"
        )
    if distribute.is_chief(strategy):
        check_run(parser, options)
        if options.strategy != "none":
            print(f"Replicas: {strategy.num_replicas_in_sync}", flush=True)
    with refusals.telling():
        model, data = prepare(options, strategy)
    try:
        train(options, strategy, model, **data)
    except ConnectionError as error:
        sys.exit(str(error))


def flags():
    # No abbreviations: what starts the workers must find its own flags among those given.
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--run", required=True, type=pathlib.Path, help="folder of this training")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--preset", help="name, folder or address of a preset, with its recipe")
    model.add_argument("--model", default="Glow", choices=sorted(keras_flows.zoo.__all__))
    parser.add_argument("--arguments", default={}, type=json_object, help="the model's, as JSON")
    parser.add_argument("--dataset", help="a TFDS name, or an embedded one, such as digits")
    parser.add_argument("--data_dir", help="where TFDS keeps prepared data")
    parser.add_argument("--train_split", default="train[:95%]")
    parser.add_argument("--validation_split", default="train[95%:]")
    parser.add_argument("--test_split", default="test", help="of a recipe, for tools/evaluate.py")
    parser.add_argument("--epochs", type=positive_int, default=10)
    parser.add_argument("--batch_size", type=positive_int, default=64, help="over all replicas")
    parser.add_argument("--optimizer", default="adam", type=json_or_name, help="name or JSON")
    parser.add_argument("--learning_rate", type=positive_float, default=1e-3, help="at its peak")
    parser.add_argument("--warmup_epochs", type=natural_float, help="by default a tenth of all")
    parser.add_argument("--decay", default="cosine", choices=("cosine", "none"))
    parser.add_argument("--average", type=share, help="momentum of an average of the weights")
    parser.add_argument("--clip", type=positive_float, help="the largest norm of all gradients")
    parser.add_argument(
        "--augmentation", default={}, type=json_object, help="JSON; see augmentation.py"
    )
    parser.add_argument("--dtype", help='policy of the model, such as "mixed_bfloat16"')
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--strategy", default="none", choices=cluster.STRATEGIES)
    parser.add_argument("--workers", type=int, help="processes to start here, to try it out")
    return parser


def parse(parser, arguments):
    """The options of a command line, on top of the recipe of the preset that it names."""
    options = parser.parse_args(arguments)
    if options.preset is not None:
        if options.arguments:
            parser.error("--arguments are those of --model; a preset has its own")
        try:
            recipe = presets.read(options.preset, presets.RECIPE)
        except ValueError as error:
            parser.error(str(error))
        unknown = sorted(recipe.keys() - (vars(options).keys() - {*WHERE, *MODEL}))
        if unknown:
            parser.error(f"the recipe of {options.preset} has what is no flag of one: {unknown}")
        # As flags in front of the given ones, so that they are checked alike.
        recipe_flags = [
            text
            for name, value in recipe.items()
            if value is not None
            for text in (f"--{name}", value if isinstance(value, str) else json.dumps(value))
        ]
        options = parser.parse_args([*recipe_flags, *arguments])
    if options.dataset is None:
        parser.error("one of --dataset and --preset is needed")
    own = {"input_shape", "seed", "dtype"} & options.arguments.keys()
    if own:
        parser.error(f"--arguments takes no {sorted(own)}: the data and flags give them")
    if isinstance(options.optimizer, dict):
        own = {"learning_rate", "global_clipnorm"} & options.optimizer.get("config", {}).keys()
        if own:
            parser.error(f"--optimizer takes no {sorted(own)}: --learning_rate and --clip do")
    return options


def start_workers(count):
    """Runs this command as `count` workers on this machine, and returns their exit code."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workers")
    parser.add_argument("--strategy")
    _, arguments = parser.parse_known_args()
    command = [sys.executable, __file__, *arguments, "--strategy", "multi_worker"]
    return max(map(abs, cluster.run_workers(command, count)))


def check_run(parser, options):
    """Refuses a folder that holds a training with other settings, or what is no training."""
    recorded = options.run / SETTINGS
    if recorded.exists():
        ours = settings(options)
        with refusals.telling():
            theirs = presets.read_json(recorded)
        others = sorted(
            name for name in theirs | ours if theirs.get(name, ...) != ours.get(name, ...)
        )
        if others:
            parser.error(f"{recorded} is of a training with other settings: of {others}")
    elif any(path.name[0] != "." for path in options.run.glob("*")):  # half a file may be hidden
        parser.error(f"{options.run} holds what is no training of this tool: no {SETTINGS}")


def settings(options):
    """All that decides the course of a training; where it runs does not."""
    values = {name: value for name, value in vars(options).items() if name not in WHERE}
    if options.preset is not None:
        values["config"] = presets.read(options.preset, presets.CONFIG)
    return values


def depends_on_the_batch(options):
    """Whether a step on images computes across rows, as batch normalisation does.

    Vectors are divided among the cores however many threads an operation has.
    """
    name = options.model
    if options.preset is not None:
        name = presets.read(options.preset, presets.CONFIG)["registered_name"]
    return name.endswith(("RealNVP", "NSF"))


def prepare(options, strategy):
    """The compiled model, and what it is trained and validated on, as `train` takes them."""
    keras.utils.set_random_seed(options.seed)
    # Else 1x1 convolutions and their inverses, which `reversible` trains by, differ on a GPU.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    with strategy.scope():
        model = None
        labels = not {"num_classes", "condition_shape"}.isdisjoint(options.arguments)
        if options.preset is not None:
            dtype = {} if options.dtype is None else {"dtype": options.dtype}
            model = keras_flows.Flow.from_preset(
                options.preset, load_weights=False, seed=options.seed, **dtype
            )
            labels = model.is_conditional
    load = functools.partial(
        keras_flows.data.load,
        options.dataset,
        batch_size=options.batch_size,
        data_dir=options.data_dir,
        labels=labels,
        seed=options.seed,
    )
    with refusals.telling("--train_split"):
        training = load(split=options.train_split)
    with refusals.telling("--validation_split"):
        validation = load(split=options.validation_split)
    spec = training.element_spec[0] if labels else training.element_spec
    with strategy.scope():
        if model is None:
            model = getattr(keras_flows.zoo, options.model)(
                tuple(spec.shape[1:]), seed=options.seed, dtype=options.dtype, **options.arguments
            )
        model.compile(make_optimizer(options, int(training.cardinality())))
    if options.augmentation:
        with refusals.telling("--augmentation"):
            training = augmentation.augmented(training, options.seed, **options.augmentation)
    return model, {"training": training, "validation": validation}


def train(options, strategy, model, training, validation):
    if distribute.is_chief(strategy):
        model.summary()
    average = keras.callbacks.SwapEMAWeights() if options.average is not None else None
    callbacks = [
        Seconds(),
        *([average] if average else []),  # by which the model is validated
        # These before the backup: if it is stopped in between, the epoch comes again.
        FiniteLoss(options.run),
        BestModel(
            average,
            options.run / "model.keras",
            monitor="val_loss",
            save_best_only=True,
            initial_value_threshold=best_so_far(options.run / "log.csv"),
        ),
        Log(options.run / "log.csv"),
        # Kept, so that a finished training started again has nothing left to do; two of them, as it
        # may be stopped while it writes one.
        keras.callbacks.BackupAndRestore(
            options.run / "backup", double_checkpoint=True, delete_checkpoint=False
        ),
    ]
    with contextlib.ExitStack() as stack:
        if distribute.is_chief(strategy):
            callbacks = [Folder(options, stack), *callbacks]
        model.fit(training, validation_data=validation, epochs=options.epochs, callbacks=callbacks)


def make_optimizer(options, steps_per_epoch):
    """Its rate goes up in the first epochs; then, by default, down to 0."""
    total = options.epochs * steps_per_epoch
    warmup_epochs = options.epochs / 10 if options.warmup_epochs is None else options.warmup_epochs
    rate = keras.optimizers.schedules.CosineDecay(
        0.0,
        max(1, total - int(warmup_epochs * steps_per_epoch)),
        alpha=0.0 if options.decay == "cosine" else 1.0,
        warmup_target=options.learning_rate,
        warmup_steps=max(1, int(warmup_epochs * steps_per_epoch)),
    )
    optimizer = keras.optimizers.get(copy.deepcopy(options.optimizer))  # Keras changes it
    config = optimizer.get_config() | {"learning_rate": rate, "global_clipnorm": options.clip}
    if options.average is not None:
        config |= {"use_ema": True, "ema_momentum": options.average}
    return type(optimizer).from_config(config)


class Folder(keras.callbacks.Callback):
    """Makes the run's folder, and keeps others out: only now, so that what is refused has none."""

    def __init__(self, options, stack):
        super().__init__()
        self.options = options
        self.stack = stack  # as long as it is open, the folder is this training's alone

    def on_train_begin(self, logs=None):
        run = self.options.run
        with refusals.telling("--run"):
            run.mkdir(parents=True, exist_ok=True)
            lock = self.stack.enter_context(open(run / ".lock", "w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                sys.exit(f"{run} is where another process trains")
            presets.write_json(run / SETTINGS, settings(self.options))


class Seconds(keras.callbacks.Callback):
    """Logs how long each epoch took, validation included: of the clock, and of all CPU cores."""

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.monotonic(), time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        logs["seconds"] = time.monotonic() - self.start[0]
        logs["cpu_seconds"] = time.process_time() - self.start[1]


class FiniteLoss(keras.callbacks.Callback):
    """Ends the program, with an error, before weights that are lost replace those of the backup."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            self.end(f"batch {batch + 1}")

    def on_epoch_end(self, epoch, logs=None):
        if math.isnan(logs["val_loss"]):  # the last batch spoiled them
            self.end("its validation")

    def end(self, where):
        best = self.run / "model.keras"
        kept = f"the best model until then is {best}" if best.exists() else "no model was saved"
        sys.exit(
            f"The loss of epoch {self.epoch + 1} is not finite from {where} on; {kept}. Train in "
            "another folder, with a lower --learning_rate or with --clip."
        )


class Log(keras.callbacks.CSVLogger):
    """Keras', but for a file that is replaced with each epoch, so that no row is ever half there.

    It keeps those of a training before; an epoch that comes again is there twice.
    """

    def on_train_begin(self, logs=None):
        self.rows = logged(self.filename)

    def on_epoch_end(self, epoch, logs=None):
        self.rows.append({"epoch": epoch, **dict(sorted(logs.items()))})
        with folders.replaced_file(self.filename) as scratch, open(scratch, "w") as file:
            writer = csv.DictWriter(file, self.rows[0], restval="NA", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)

    def on_train_end(self, logs=None):
        pass


class BestModel(keras.callbacks.ModelCheckpoint):
    """Saves what was validated: the average of the weights, if there is one.

    Keras can leave the average in the model for its `ModelCheckpoint`, but then for the backup too,
    which would train on from it.
    """

    def __init__(self, average, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.average = average

    def on_epoch_end(self, epoch, logs=None):
        if self.average is not None:
            self.average.on_test_begin()
        super().on_epoch_end(epoch, logs)
        if self.average is not None:
            self.average.on_test_end()


def logged(log):
    """The rows of a log that are whole; none if it does not exist."""
    if not pathlib.Path(log).exists():
        return []
    lines = pathlib.Path(log).read_text().splitlines(keepends=True)
    return list(csv.DictReader(line for line in lines if line.endswith("\n")))


def column(log, name):
    """What a log has under `name`, a number for each of its rows."""
    values = []
    for row in logged(log):
        try:
            values.append(float(row.get(name)))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{log} must have a number for each epoch under {name!r}. "
                f"Received: {row.get(name)!r}"
            ) from error
    return values


def best_so_far(log):
    """The lowest val_loss that a stopped training logged, None if there is none."""
    with refusals.telling():
        losses = column(log, "val_loss")
    return min((loss for loss in losses if not math.isnan(loss)), default=None)


if __name__ == "__main__":
    main()
