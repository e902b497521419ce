#!/usr/bin/env python
"""Trains a model of the zoo on a dataset. Started again with the same arguments, it resumes.

    tools/train.py --model Glow --arguments '{"levels": 3, "depth": 8}' --dataset cifar10 \
        --epochs 10 --run runs/cifar10

The folder of the run holds model.keras (the best by validation so far), log.csv, the settings, and
what it needs to resume.

`--strategy mirrored` trains on all GPUs of this machine, `--strategy multi_worker` on those of all
machines that the environment variable TF_CONFIG lists; the same command is started on each of them.
`--workers 2` starts two such processes on this machine, to try it out.
"""

import argparse
import csv
import json
import pathlib
import sys

import cluster
import keras

import keras_flows
from keras_flows import distribute


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, type=pathlib.Path, help="folder of this training")
    parser.add_argument("--model", default="Glow", choices=sorted(keras_flows.zoo.__all__))
    parser.add_argument("--arguments", default={}, type=json.loads, help="the model's, as JSON")
    parser.add_argument("--dataset", required=True, help="a TFDS name, digits or moons")
    parser.add_argument("--data_dir", help="where TFDS keeps prepared data")
    parser.add_argument("--train_split", default="train[:95%]")
    parser.add_argument("--validation_split", default="train[95%:]")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=64, help="over all replicas")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="at its peak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategy", default="none", choices=cluster.STRATEGIES)
    parser.add_argument("--workers", type=int, help="processes to start here, to try it out")
    options = parser.parse_args()
    if options.workers is not None:
        if options.workers < 1 or options.strategy == "mirrored":
            parser.error("--workers takes a positive number, and --strategy multi_worker")
        sys.exit(start_workers(options.workers))
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
        record_settings(parser, options)
    try:
        train(options, strategy)
    except ConnectionError as error:
        sys.exit(str(error))


def start_workers(count):
    """Runs this command as `count` workers on this machine, and returns their exit code."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workers")
    parser.add_argument("--strategy")
    _, arguments = parser.parse_known_args()
    command = [sys.executable, __file__, *arguments, "--strategy", "multi_worker"]
    return max(map(abs, cluster.run_workers(command, count)))


def record_settings(parser, options):
    """Refuses a folder that holds a training with other settings; where it runs is none of them."""
    where = ("run", "data_dir", "strategy", "workers")
    settings = json.dumps(
        {name: value for name, value in vars(options).items() if name not in where},
        indent=2,
        default=str,
    )
    options.run.mkdir(parents=True, exist_ok=True)
    recorded = options.run / "settings.json"
    if recorded.exists() and recorded.read_text() != settings:
        parser.error(f"{options.run} holds a training with other settings: {recorded}")
    recorded.write_text(settings)


def train(options, strategy):
    keras.utils.set_random_seed(options.seed)
    labels = "num_classes" in options.arguments
    training, validation = (
        keras_flows.data.load(
            options.dataset,
            split=split,
            batch_size=options.batch_size,
            data_dir=options.data_dir,
            labels=labels,
            seed=options.seed,
        )
        for split in (options.train_split, options.validation_split)
    )
    spec = training.element_spec[0] if labels else training.element_spec
    # Up in the first tenth of the training, then down to 0.
    steps = options.epochs * int(training.cardinality())
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=options.learning_rate, warmup_steps=max(1, steps // 10)
    )
    with strategy.scope():
        model = getattr(keras_flows.zoo, options.model)(
            tuple(spec.shape[1:]), seed=options.seed, **options.arguments
        )
        model.compile(keras.optimizers.Adam(rate))
    if distribute.is_chief(strategy):
        model.summary()
    model.fit(
        training,
        validation_data=validation,
        epochs=options.epochs,
        callbacks=[
            # Kept, so that a finished training started again has nothing left to do; two of them,
            # as it may be stopped while it writes one.
            keras.callbacks.BackupAndRestore(
                options.run / "backup", double_checkpoint=True, delete_checkpoint=False
            ),
            keras.callbacks.CSVLogger(options.run / "log.csv", append=True),
            keras.callbacks.ModelCheckpoint(
                options.run / "model.keras",
                monitor="val_loss",
                save_best_only=True,
                initial_value_threshold=best_so_far(options.run / "log.csv"),
            ),
            keras.callbacks.TerminateOnNaN(),
        ],
    )


def best_so_far(log):
    """The lowest val_loss that a stopped training logged, None if there is none."""
    if not log.exists():
        return None
    with open(log) as rows:
        return min((float(row["val_loss"]) for row in csv.DictReader(rows)), default=None)


if __name__ == "__main__":
    main()
