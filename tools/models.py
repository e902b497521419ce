"""What the tools take as a model, and the data that belongs to it."""

import pathlib
import sys
import zipfile

import keras

import keras_flows
from keras_flows import presets

HELP = "a .keras file, or the name, folder or address (hf://...) of a preset"


def load(name):
    """The model; SystemExit, with the reason, for what is none."""
    if name.endswith(".keras") and pathlib.Path(name).exists() and not zipfile.is_zipfile(name):
        sys.exit(f"{name} is no .keras file, or half of one")
    try:
        if name.endswith(".keras"):
            model = keras.models.load_model(name)
        else:
            model = keras_flows.Flow.from_preset(name)
    except ValueError as error:
        sys.exit(str(error))
    if not isinstance(model, keras_flows.Flow):
        sys.exit(f"{name} must be a keras_flows.Flow. Received: a {type(model).__name__}")
    if not model.adapted:
        sys.exit(f"{name} was never adapted to data or trained")
    return model


def test_data(name, model, *, dataset=None, split=None, data_dir=None, batch_size=100):
    """The batches that a model is evaluated on: by default those that the preset's recipe names."""
    has_recipe = not name.endswith(".keras") and (presets.find(name) / presets.RECIPE).exists()
    recipe = presets.read(name, presets.RECIPE) if has_recipe else {}
    dataset = dataset or recipe.get("dataset")
    if dataset is None:
        raise SystemExit(f"{name} does not say what it was trained on: name a --dataset")
    return keras_flows.data.load(
        dataset,
        split=split or recipe.get("test_split", "test"),
        batch_size=batch_size,
        data_dir=data_dir,
        labels=model.is_conditional,
    )
