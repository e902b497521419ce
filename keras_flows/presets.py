"""Presets: folders of a model's architecture, its weights and what was measured of it.

config.json         the class and the constructor's arguments
metadata.json       who made it, the parameters' number, the weights' SHA-256, results
model.weights.h5    may be missing: an architecture alone, or weights behind a URL
recipe.json, README.md, samples.png, log.csv    how it was trained, for tools and people
"""

import datetime
import difflib
import hashlib
import json
import math
import os
import pathlib
import re
import tempfile

import h5py
import keras

from keras_flows import hub
from keras_flows.arguments import require, shown
from keras_flows.folders import new_folder, replaced_file
from keras_flows.version import __version__

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
RECIPE, CARD, SAMPLES, LOG = "recipe.json", "README.md", "samples.png", "log.csv"
FILES = {CONFIG, METADATA, WEIGHTS, RECIPE, CARD, SAMPLES, LOG}

# What Keras would run, or load from elsewhere, to restore it.
CODE = ("Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")

# The checkout's folder `zoo` is inside of the package once it is installed.
_PACKAGE = pathlib.Path(__file__).parent
ZOO = _PACKAGE / "zoo" / "presets"
if not ZOO.is_dir():
    ZOO = _PACKAGE.parent / "zoo"


class PresetsOf:
    """The class attribute `presets`: from the name of each preset of the class to its metadata."""

    def __get__(self, instance, owner):
        return Presets(
            (name, read_json(ZOO / name / METADATA))
            for name in _names()
            if _class_of(read_json(ZOO / name / CONFIG), owner)
        )


class Presets(dict):
    """A dict from names of presets to their metadata, printed as the names alone."""

    def __repr__(self):
        return f"{type(self).__name__}({[*self]})"


def load(cls, preset, load_weights=True, **arguments):
    """The model of class `cls`, or a subclass, that `preset` describes; see `Flow.from_preset`."""
    folder = find(preset)
    config, metadata = read_json(folder / CONFIG), read_json(folder / METADATA)
    made_by = str(metadata.get("keras_flows_version", __version__))
    if not re.match(r"\d+\.\d+", made_by):
        raise ValueError(f"{folder / METADATA} names no version of keras_flows: {made_by!r}")
    if _release(made_by) > _release(__version__):
        raise ValueError(
            f"Preset {preset!r} was made by keras_flows {made_by}, and this is {__version__}: "
            "install a newer one."
        )
    model_class = _class_of(config, cls)
    if model_class is None:
        raise ValueError(
            f"Preset {preset!r} is not one of class {cls.__name__}. "
            f"Received: registered_name={config.get('registered_name')!r} in {CONFIG}"
        )
    weights = _weights_file(preset, folder, metadata.get("weights")) if load_weights else None
    if not isinstance(config.get("config"), dict):
        raise ValueError(f"{folder / CONFIG} must have the constructor's arguments as `config`.")
    architecture = f"{folder / CONFIG}" + (f" with {arguments}" if arguments else "")
    try:
        _check_trusted(config["config"], folder / CONFIG)
        model = model_class.from_config({**config["config"], **arguments})
    except Exception as error:  # of many kinds, by what is wrong with the arguments
        raise ValueError(f"{architecture} does not fit {model_class.__name__}: {error}") from error
    if weights is not None:
        try:
            _check_size(weights, model)
            model.load_weights(weights)
        except Exception as error:  # of many kinds, by what is wrong with the file
            raise ValueError(f"{weights} does not fit {architecture}: {error}") from error
    model.compile()  # so that `evaluate` works at once
    return model


def config_of(flow):
    """The config of `flow`, which must be all that it takes to make it again, as `load` will."""
    config = flow.get_config()
    _check_trusted(config, "The model")
    if type(flow).from_config(config).count_params() != flow.count_params():
        raise ValueError(
            "The model has a layer in two places, which no config tells: give each its own."
        )
    return config


def save(flow, config, folder):
    """Writes `flow` and its config as a preset; see `Flow.save_to_preset`."""
    with new_folder(folder, "preset_dir") as scratch:
        scratch = pathlib.Path(scratch)
        flow.save_weights(scratch / WEIGHTS)
        name = keras.saving.get_registered_name(type(flow))
        write_json(scratch / CONFIG, {"registered_name": name, "config": config})
        write_json(
            scratch / METADATA,
            {
                "keras_flows_version": __version__,
                "date": datetime.date.today().isoformat(),
                "parameter_count": flow.count_params(),
                "weights": {"sha256": sha256(scratch / WEIGHTS)},
            },
        )


def find(preset):
    """The folder of a preset's name or address, strs, or path.

    One with unexpected files is refused; of what is at an address, only a preset's are read.
    """
    if hub.is_address(preset):
        require(hub.has_form(preset), f"An address must be {hub.FORMS}", preset=preset)
        folder = pathlib.Path(hub.download(preset, FILES))
        if not _is_preset(folder):
            raise ValueError(f"{preset} is no preset: there is no {CONFIG}.")
        return folder
    is_name = isinstance(preset, str) and preset in _names()
    folder = pathlib.Path(preset) if isinstance(preset, str | os.PathLike) and preset else None
    if is_name:
        if _is_preset(folder) and not folder.samefile(ZOO / preset):
            raise ValueError(
                f"Argument `preset` is the name of a preset and of a folder here: for the folder, "
                f"pass './{preset}'; for the preset, rename the folder. Received: preset={preset!r}"
            )
        folder = ZOO / preset
    if folder is None or not _is_preset(folder):
        close = difflib.get_close_matches(str(preset), _names(), cutoff=0.4) or _names()
        raise ValueError(
            f"Argument `preset` must be the name of a preset, or a folder with a {CONFIG}, "
            f"or an address, {hub.FORMS}. "
            f"Received: preset={shown(preset)}. Near: {close}"
        )
    for path in folder.iterdir():
        if path.resolve().parent != folder.resolve():
            raise ValueError(f"{path} leads out of its folder, to {path.resolve()}")
        if path.name not in FILES or not path.is_file():
            raise ValueError(f"{folder} has what no preset has: {path.name!r}")
    return folder


def read(preset, name):
    """One of a preset's JSON files as a dict."""
    return read_json(find(preset) / name)


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path):
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object. Received: {type(value).__name__}")
    return value


def write_json(path, value):
    with replaced_file(path) as scratch:
        pathlib.Path(scratch).write_text(json.dumps(value, indent=2) + "\n")


def _names():
    # One that somebody is about to add may lack its metadata yet.
    return sorted(p.parent.name for p in ZOO.glob(f"*/{CONFIG}") if (p.parent / METADATA).is_file())


def _is_preset(folder):
    try:
        return (folder / CONFIG).is_file()
    except (OSError, ValueError):  # no path of any file: too long, or with a null byte
        return False


def _class_of(config, cls):
    """`cls` or the subclass of it that a config names; None if there is none."""
    pending = [cls]
    while pending:
        candidate = pending.pop()
        if keras.saving.get_registered_name(candidate) == config.get("registered_name"):
            return candidate
        pending.extend(candidate.__subclasses__())
    return None


def _weights_file(preset, folder, expected):
    """The path of weights whose hash is that of the metadata, fetched if they are elsewhere."""
    path = folder / WEIGHTS
    if expected is None:
        raise ValueError(f"Preset {preset!r} has no weights. Pass `load_weights=False`.")
    digest = expected.get("sha256") if isinstance(expected, dict) else None
    if not re.fullmatch("[0-9a-f]{64}", str(digest)):
        raise ValueError(f"{folder / METADATA} must give the SHA-256 of the weights.")
    if not path.exists() and "url" in expected:
        return _fetch(str(expected["url"]), digest)
    if not path.exists():
        raise ValueError(f"Preset {preset!r} lacks its {WEIGHTS}.")
    if sha256(path) != digest:
        raise ValueError(
            f"{path} is not what {METADATA} promises: it is incomplete or was altered. "
            f"Expected SHA-256 {digest}. Received: {sha256(path)}, {path.stat().st_size} bytes"
        )
    return path


def _check_size(weights, model):
    """Refuses a file with more or fewer values than the model; Keras would pass over the rest."""
    values = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/"):
            values.append(item.size)

    with h5py.File(weights) as file:
        file.visititems(visit)
    # Keras adds what LoRA has learned to the kernels that it writes.
    kept = [weight for weight in model.weights if not weight.name.startswith("lora_")]
    expected = sum(math.prod(weight.shape) for weight in kept)
    if sum(values) != expected:
        raise ValueError(f"it has {sum(values):,} values, the model {expected:,}")


def _fetch(url, digest):
    if not re.match("https?://", url):
        raise ValueError(f"Weights are fetched from http(s) addresses only. Received: {url!r}")
    home = pathlib.Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    path = home / "keras_flows" / f"{digest}.weights.h5"
    try:
        if path.is_file():
            if sha256(path) == digest:
                return path
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Each download in a folder of its own: Keras writes under the final name, and two at a
        # time would spoil each other's.
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            fetched = keras.utils.get_file(
                path.name,
                url,
                file_hash=digest,
                hash_algorithm="sha256",
                cache_dir=scratch,
                cache_subdir="",
            )
            os.replace(fetched, path)
    except Exception as error:
        raise ValueError(f"The weights at {url} could not be had: {error}") from error
    return path


def _check_trusted(config, where):
    """Refuses a config that names anything but Keras' own and registered classes, or holds code."""
    if isinstance(config, list):
        for value in config:
            _check_trusted(value, where)
    if not isinstance(config, dict):
        return
    if "class_name" in config and not _is_trusted(config):
        raise ValueError(
            f"{where} names what is neither Keras' own nor registered "
            "(keras.saving.register_keras_serializable), or is code, which no preset may hold: "
            f"{config.get('module')}.{config['class_name']}"
        )
    for value in config.values():
        _check_trusted(value, where)


def _is_trusted(config):
    # Without the entry it is Keras' own, such as a "__tuple__"; others have null there.
    module, name = config.get("module", "keras"), config["class_name"]
    if name in CODE:  # whatever it is registered as: Keras does not look there first
        return False
    is_function = (module, name) == ("builtins", "function")
    registered = config.get("config") if is_function else config.get("registered_name") or name
    is_registered = (
        isinstance(registered, str) and keras.saving.get_registered_object(registered) is not None
    )
    return is_registered or (isinstance(module, str) and module.split(".")[0] == "keras")


def _release(version):
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
