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
import os
import pathlib
import re

import keras

from keras_flows.folders import new_folder
from keras_flows.version import __version__

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
RECIPE, CARD, SAMPLES, LOG = "recipe.json", "README.md", "samples.png", "log.csv"
FILES = {CONFIG, METADATA, WEIGHTS, RECIPE, CARD, SAMPLES, LOG}

# The checkout's folder `zoo` is inside of the package once it is installed.
_PACKAGE = pathlib.Path(__file__).parent
ZOO = _PACKAGE / "zoo" / "presets"
if not ZOO.is_dir():
    ZOO = _PACKAGE.parent / "zoo"


class PresetsOf:
    """The class attribute `presets`: from the name of each preset of the class to its metadata."""

    def __get__(self, instance, owner):
        return {
            name: _read(ZOO / name, METADATA)
            for name in _names()
            if _class_of(_read(ZOO / name, CONFIG), owner)
        }


def load(cls, preset, load_weights=True, **arguments):
    """The model of class `cls`, or a subclass, that `preset` describes; see `Flow.from_preset`."""
    folder = find(preset)
    config, metadata = _read(folder, CONFIG), _read(folder, METADATA)
    made_by = metadata.get("keras_flows_version", __version__)
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
    _check_trusted(config["config"], folder)
    try:
        model = model_class.from_config({**config["config"], **arguments})
    except TypeError as error:  # an argument that the constructor does not have
        raise ValueError(
            f"{folder / CONFIG} does not fit {model_class.__name__}: {error}"
        ) from error
    if weights is not None:
        model.load_weights(weights)
    model.compile()  # so that `evaluate` works at once
    return model


def save(flow, folder):
    """Writes `flow` as a preset; see `Flow.save_to_preset`."""
    with new_folder(folder, "preset_dir") as scratch:
        scratch = pathlib.Path(scratch)
        flow.save_weights(scratch / WEIGHTS)
        name = keras.saving.get_registered_name(type(flow))
        write_json(scratch / CONFIG, {"registered_name": name, "config": flow.get_config()})
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
    """The folder of a preset's name or path; one with unexpected files is refused."""
    name = os.fspath(preset)
    is_name = re.fullmatch(r"\w+", name) is not None
    folder = ZOO / name if is_name and (ZOO / name / CONFIG).is_file() else pathlib.Path(name)
    if not (folder / CONFIG).is_file():
        close = difflib.get_close_matches(name, _names(), cutoff=0.4) or _names()
        raise ValueError(
            f"Argument `preset` must be the name of a preset, or a folder with a {CONFIG}. "
            f"Received: preset={name!r}. Near: {close}"
        )
    for path in folder.iterdir():
        if path.name not in FILES or not path.is_file():
            raise ValueError(f"{folder} has what no preset has: {path.name!r}")
        if path.resolve().parent != folder.resolve():
            raise ValueError(f"{path} leads out of its folder, to {path.resolve()}")
    return folder


def read(preset, name):
    """One of a preset's JSON files as a dict."""
    return _read(find(preset), name)


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path, value):
    pathlib.Path(path).write_text(json.dumps(value, indent=2) + "\n")


def _names():
    return sorted(path.parent.name for path in ZOO.glob(f"*/{CONFIG}"))


def _read(folder, name):
    path = folder / name
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object. Received: {type(value).__name__}")
    return value


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
    digest = expected.get("sha256", "")
    if not re.fullmatch("[0-9a-f]{64}", str(digest)):
        raise ValueError(f"{folder / METADATA} must give the SHA-256 of the weights.")
    if not path.exists() and "url" in expected:
        return _fetch(expected["url"], digest)
    if not path.exists():
        raise ValueError(f"Preset {preset!r} lacks its {WEIGHTS}.")
    if sha256(path) != digest:
        raise ValueError(
            f"{path} is not what {METADATA} promises: it is incomplete or was altered. "
            f"Expected SHA-256 {digest}. Received: {sha256(path)}, {path.stat().st_size} bytes"
        )
    return path


def _fetch(url, digest):
    if not re.match("https?://", url):
        raise ValueError(f"Weights are fetched from http(s) addresses only. Received: {url!r}")
    home = pathlib.Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    home.mkdir(parents=True, exist_ok=True)  # or Keras would take a folder of its own choice
    name = f"{digest}.weights.h5"
    try:
        return keras.utils.get_file(
            name,
            url,
            file_hash=digest,
            hash_algorithm="sha256",
            cache_dir=home,
            cache_subdir="keras_flows",
        )
    except BaseException as error:
        (home / "keras_flows" / name).unlink(missing_ok=True)
        if not isinstance(error, Exception):
            raise
        raise ValueError(f"The weights at {url} could not be had: {error}") from error


def _check_trusted(config, folder):
    """Refuses a config that names anything but Keras' own and registered classes."""
    if isinstance(config, list):
        for value in config:
            _check_trusted(value, folder)
    if not isinstance(config, dict):
        return
    if "class_name" in config:
        name = config["class_name"]
        module = config.get("module") or "keras"
        known = keras.saving.get_registered_object(config.get("registered_name") or name)
        builtin = module.split(".")[0] == "keras" or (module, name) == ("builtins", "function")
        if known is None and not (builtin and name not in ("Lambda", "__lambda__")):
            raise ValueError(
                f"{folder / CONFIG} names what is neither Keras' own nor registered: "
                f"{module}.{name}. Nothing of it was run."
            )
    for value in config.values():
        _check_trusted(value, folder)


def _release(version):
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
