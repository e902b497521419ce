#!/usr/bin/env python
"""Trains a model of the zoo on a dataset. Started again with the same arguments, it resumes.

    tools/train.py --model Glow --arguments '{"levels": 3, "depth": 8}' --dataset cifar10 \
        --epochs 10 --run runs/cifar10

The folder of the run holds model.keras (the best by validation so far), log.csv, the settings, and
what it needs to resume.
"""

import argparse
import csv
import json
import pathlib

import keras

import keras_flows


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
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="at its peak")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    settings = json.dumps(
        {name: value for name, value in vars(options).items() if name not in ("run", "data_dir")},
        indent=2,
        default=str,
    )
    options.run.mkdir(parents=True, exist_ok=True)
    recorded = options.run / "settings.json"
    if recorded.exists() and recorded.read_text() != settings:
        parser.error(f"{options.run} holds a training with other settings: {recorded}")
    recorded.write_text(settings)

    keras.utils.set_random_seed(options.seed)
    labels = "num_classes" in options.arguments
    train, validation = (
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
    spec = train.element_spec[0] if labels else train.element_spec
    model = getattr(keras_flows.zoo, options.model)(
        tuple(spec.shape[1:]), seed=options.seed, **options.arguments
    )
    # Up in the first tenth of the training, then down to 0.
    steps = options.epochs * int(train.cardinality())
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=options.learning_rate, warmup_steps=max(1, steps // 10)
    )
    model.compile(keras.optimizers.Adam(rate))
    model.summary()
    model.fit(
        train,
        validation_data=validation,
        epochs=options.epochs,
        callbacks=[
            # Kept, so that a finished training started again has nothing left to do.
            keras.callbacks.BackupAndRestore(options.run / "backup", delete_checkpoint=False),
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
