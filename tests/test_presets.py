"""Presets: what is saved is what is loaded, and what is not right is refused, whole."""

import concurrent.futures
import functools
import hashlib
import http.server
import json
import pathlib
import shutil
import subprocess
import sys
import threading

import h5py
import keras
import numpy as np
import pytest
from conftest import contents, run_python

import keras_flows
from keras_flows import Flow, layers, presets, zoo


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1), "uint8")


@pytest.fixture(scope="module")
def model(images):
    model = zoo.Glow((4, 4, 1), levels=1, depth=1, width=4, num_classes=3, seed=5)
    model.adapt(images, np.arange(6) % 3)
    return model


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets") / "small"
    model.save_to_preset(folder)
    return folder


@pytest.fixture
def preset(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def refuses(preset, match, **arguments):
    with pytest.raises(ValueError, match=match):
        Flow.from_preset(preset, **arguments)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("cls", [Flow, zoo.Glow])
def test_what_is_saved_is_loaded(cls, model, saved, images):
    loaded = cls.from_preset(saved)
    assert type(loaded) is zoo.Glow
    labels = np.arange(6) % 3
    np.testing.assert_array_equal(loaded.log_prob(images, labels), model.log_prob(images, labels))
    assert loaded.evaluate(images, labels, verbose=0)


def test_training_goes_on_from_what_is_loaded(saved, model, images):
    loaded = Flow.from_preset(saved)
    loaded.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    loaded.fit(images[::-1], np.arange(6) % 3, verbose=0)  # adapts nothing again
    for actual, expected in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_constructor_arguments_can_be_replaced(saved, model, images):
    loaded = zoo.Glow.from_preset(saved, dtype="float64", reversible=True)
    assert loaded.reversible
    labels = np.arange(6) % 3
    actual = loaded.log_prob(images, labels).numpy()
    assert actual.dtype == "float64"
    np.testing.assert_allclose(actual, model.log_prob(images, labels), rtol=1e-5)


def test_without_weights_it_is_new(saved):
    assert not zoo.Glow.from_preset(saved, load_weights=False).adapted


def test_a_flow_of_one_s_own(tmp_path):
    flow = Flow(
        layers.Chain(
            [
                layers.AffineCoupling(keras_flows.networks.MLP(4), scale="tanh"),
                layers.AdditiveCoupling(keras.layers.Dense(4, activation="relu"), swap=True),
            ]
        ),
        (6,),
    )
    flow.save_to_preset(tmp_path / "own")
    x = np.ones((2, 6), "float32")
    np.testing.assert_array_equal(Flow.from_preset(tmp_path / "own").log_prob(x), flow.log_prob(x))


def test_states_that_are_no_weights_do_not_count(tmp_path):
    network = keras.Sequential([keras.layers.Dense(4), keras.layers.Dropout(0.5, seed=1)])
    flow = Flow(layers.AffineCoupling(network), (6,))
    x = np.arange(12, dtype="float32").reshape(2, 6)
    flow.compile("adam", run_eagerly=True)
    flow.fit(x, verbose=0)  # the optimizer's are in the file, the Dropout's are not
    flow.save_to_preset(tmp_path / "own")
    np.testing.assert_array_equal(Flow.from_preset(tmp_path / "own").log_prob(x), flow.log_prob(x))


def test_half_precision_weights_load(preset, model, images):
    weights = preset / presets.WEIGHTS
    with h5py.File(weights, "r+") as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if hasattr(item, "dtype") else None)
        for name in names:
            if (value := file[name][()]).dtype == np.float32:
                del file[name]
                file[name] = value.astype("float16")
    edit(preset / presets.METADATA, weights={"sha256": presets.sha256(weights)})
    loaded = Flow.from_preset(preset)
    labels = np.arange(6) % 3
    np.testing.assert_allclose(
        loaded.log_prob(images, labels), model.log_prob(images, labels), rtol=1e-2
    )


# Presets of the package.


def test_the_class_lists_its_presets():
    assert {"glow_mnist"} <= zoo.Glow.presets.keys()
    assert not zoo.Glow.presets.keys() & zoo.NICE.presets.keys()
    assert zoo.NICE.presets.keys() | zoo.Glow.presets.keys() <= Flow.presets.keys()
    assert sorted(path.name for path in presets.ZOO.iterdir() if path.is_dir()) == [*Flow.presets]
    assert repr(zoo.Jet.presets) == "Presets(['jet_cifar10_small', 'jet_paper_imagenet64'])"


def test_an_unknown_name_gets_the_close_ones():
    refuses("glow_mnits", "'glow_mnits'.*Near.*'glow_mnist'")


@pytest.mark.parametrize(
    "preset", ["", None, 5, b"glow_digits", "no/folder", "x" * 300, "null\0byte"]
)
def test_what_is_neither_a_name_nor_a_folder(preset):
    refuses(preset, "`preset` must be")


def test_a_folder_with_the_name_of_a_preset(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(saved, tmp_path / "glow_digits").parent)
    refuses("glow_digits", r"'\./glow_digits'")
    for path in ("./glow_digits", pathlib.Path("glow_digits")):
        assert Flow.from_preset(path).input_shape == (4, 4, 1)
    monkeypatch.chdir(presets.ZOO)  # there they are the same
    assert Flow.from_preset("glow_digits").input_shape == (8, 8, 1)


def test_another_class_s_preset(saved):
    with pytest.raises(ValueError, match="not one of class NICE.*keras_flows>Glow"):
        zoo.NICE.from_preset(saved)


def test_a_plain_flow_is_no_glow(tmp_path):
    Flow(layers.Permute([1, 0]), (2,)).save_to_preset(tmp_path / "plain")
    assert type(Flow.from_preset(tmp_path / "plain")) is Flow
    with pytest.raises(ValueError, match="not one of class Glow.*keras_flows>Flow"):
        zoo.Glow.from_preset(tmp_path / "plain")


def test_a_preset_without_metadata_yet_is_no_preset(saved, tmp_path, monkeypatch):
    shutil.copytree(saved, tmp_path / "whole")
    shutil.copytree(saved, tmp_path / "begun")
    (tmp_path / "begun" / presets.METADATA).unlink()
    monkeypatch.setattr(presets, "ZOO", tmp_path)
    assert [*Flow.presets] == ["whole"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What a wheel of this checkout installs."""
    folder = tmp_path_factory.mktemp("wheel")
    source, unpacked = folder / "source", folder / "unpacked"
    root = presets.ZOO.parent
    for name in ("keras_flows", "zoo"):
        shutil.copytree(root / name, source / name)
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.cfg"):
        shutil.copy(root / name, source)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    shutil.unpack_archive(wheel, unpacked, "zip")
    return unpacked


def test_a_wheel_has_them(installed):
    folder = installed / "keras_flows" / "zoo" / "presets"
    for path in presets.ZOO.glob("*/*"):
        assert (folder / path.relative_to(presets.ZOO)).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_what_a_wheel_installs_finds_them(installed, tmp_path):
    code = "import keras_flows; print(keras_flows.presets.ZOO, *keras_flows.Flow.presets)"
    shown = run_python(code, python_path=installed, cwd=tmp_path)
    folder = installed / "keras_flows" / "zoo" / "presets"
    assert shown.split() == [str(folder), *Flow.presets]


# Files that are not as they should be.


def test_truncated_weights(preset):
    weights = preset / presets.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    refuses(preset, "incomplete or was altered")


def test_altered_weights(preset):
    weights = preset / presets.WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    refuses(preset, "incomplete or was altered")


def test_missing_weights(preset):
    (preset / presets.WEIGHTS).unlink()
    refuses(preset, "lacks its model.weights.h5")
    content = json.loads((preset / presets.METADATA).read_text())
    del content["weights"]
    (preset / presets.METADATA).write_text(json.dumps(content))
    refuses(preset, "load_weights=False")
    Flow.from_preset(preset, load_weights=False)


@pytest.mark.parametrize("changes", [{"width": 5}, {"depth": 2}, {"num_classes": None}])
def test_weights_of_another_architecture(preset, changes):
    config = json.loads((preset / presets.CONFIG).read_text())
    refuses(preset, "weights.h5 does not fit .*config.json with {", **changes)
    edit(preset / presets.CONFIG, config=config["config"] | changes)
    refuses(preset, "weights.h5 does not fit .*config.json:")


def test_weights_that_fill_only_a_part_or_are_too_many(tmp_path):
    """Keras would leave the rest as it was drawn, or as it is in the file."""
    flow = zoo.RealNVP((4, 4, 1), levels=1, depth=1, width=4, num_blocks=1)
    flow.adapt(np.zeros((2, 4, 4, 1), "uint8"))
    flow.save_to_preset(tmp_path / "real_nvp")
    weights = tmp_path / "real_nvp" / presets.WEIGHTS
    with h5py.File(weights, "r+") as file:
        blocks = []
        file.visit(lambda name: blocks.append(name) if name.endswith("_blocks/container") else None)
        for name in blocks:
            del file[name]
    edit(tmp_path / "real_nvp" / presets.METADATA, weights={"sha256": presets.sha256(weights)})
    assert blocks
    refuses(tmp_path / "real_nvp", "does not fit.*it has .* values, the model")

    zoo.NICE((4,), depth=4, width=4, standardize=False).save_to_preset(tmp_path / "nice")
    refuses(tmp_path / "nice", "'depth': 2.*it has .* values, the model", depth=2)


def test_weights_that_are_no_weights(preset):
    (preset / presets.WEIGHTS).write_bytes(b"text")
    edit(preset / presets.METADATA, weights={"sha256": hashlib.sha256(b"text").hexdigest()})
    refuses(preset, "does not fit .*config.json")


def test_the_hash_is_checked_before_anything_is_loaded(preset, monkeypatch):
    (preset / presets.WEIGHTS).write_bytes(b"altered")

    def never(*args, **kwargs):
        raise AssertionError("altered weights were loaded")

    monkeypatch.setattr(Flow, "load_weights", never)
    refuses(preset, "incomplete or was altered")


@pytest.mark.parametrize("digest", ["", "0" * 63, None, "g" * 64])
def test_a_hash_that_is_none(preset, digest):
    edit(preset / presets.METADATA, weights={"sha256": digest})
    refuses(preset, "must give the SHA-256")
    edit(preset / presets.METADATA, weights=[digest])
    refuses(preset, "must give the SHA-256")


def test_a_newer_version(preset):
    major, minor = keras_flows.__version__.split(".")[:2]
    for newer in ("99.0.0", f"{major}.{int(minor) + 1}.0"):
        edit(preset / presets.METADATA, keras_flows_version=newer)
        refuses(preset, f"made by keras_flows {newer}")
    edit(preset / presets.METADATA, keras_flows_version=f"{major}.{minor}.99")
    Flow.from_preset(preset)


@pytest.mark.parametrize("version", ["new", 3, None, ["0.1"]])
def test_a_version_that_is_none(preset, version):
    edit(preset / presets.METADATA, keras_flows_version=version)
    refuses(preset, "no version of keras_flows")


@pytest.mark.parametrize(
    "arguments",
    [
        {"temperament": 1},
        {"width": "wide"},
        {"dtype": {"class_name": "Dense", "config": {}}},
        {"build_config": {"input_shape": []}},
    ],
)
def test_arguments_that_do_not_fit(preset, arguments):
    refuses(preset, "config.json with {.* does not fit Glow: ", **arguments)
    config = json.loads((preset / presets.CONFIG).read_text())
    edit(preset / presets.CONFIG, config=config["config"] | arguments)
    refuses(preset, "config.json does not fit Glow: ")


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "nothing"])
@pytest.mark.parametrize("name", [presets.CONFIG, presets.METADATA])
def test_not_json(preset, name, content):
    (preset / name).write_text(content)
    refuses(preset, name)


@pytest.mark.parametrize("content", [{}, {"registered_name": "keras_flows>Glow"}])
def test_an_incomplete_config(preset, content):
    (preset / presets.CONFIG).write_text(json.dumps(content))
    refuses(preset, "config.json")


def test_unexpected_files(preset):
    for name in ("model.pkl", "model.py", ".hidden", "model.weights.h5.bak"):
        (preset / name).write_bytes(b"")
        refuses(preset, f"no preset has: '{name}'")
        (preset / name).unlink()
    (preset / "folder").mkdir()
    refuses(preset, "folder")


@pytest.mark.parametrize("name", [presets.CONFIG, presets.METADATA, presets.WEIGHTS])
def test_a_path_that_leaves_the_folder(preset, name, tmp_path):
    (preset / name).rename(tmp_path / "elsewhere")
    (preset / name).symlink_to(tmp_path / "elsewhere")
    refuses(preset, f"{name} leads out of its folder")


def test_a_path_that_leads_nowhere(preset):
    (preset / presets.CARD).symlink_to("elsewhere/card")
    refuses(preset, "README.md leads out of its folder")


@pytest.mark.parametrize(
    "value",
    [
        {"module": "os", "class_name": "system", "config": "true", "registered_name": None},
        {"module": "builtins", "class_name": "eval", "config": "1", "registered_name": "eval"},
        {"class_name": "__lambda__", "config": {"value": "4wEAAA=="}},
        {"module": "keras.layers", "class_name": "Lambda", "config": {}, "registered_name": None},
        {"module": "keras_flows.presets", "class_name": "sha256", "config": {}},
        {"module": None, "class_name": "Dense", "config": {}, "registered_name": "mine>Dense"},
        {"module": ["keras"], "class_name": "Dense", "config": {}},
        {"module": "keras", "class_name": "Lambda", "registered_name": "keras_flows>MLP"},
        {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "/"}},
        {
            "module": "keras.layers",
            "class_name": "Dense",
            "config": {"activation": {"class_name": "__lambda__", "config": {"value": "4wEAAA=="}}},
        },
    ],
)
@pytest.mark.parametrize("argument", ["bijection", "width"])
def test_code_in_a_config(preset, value, argument, monkeypatch):
    config = json.loads((preset / presets.CONFIG).read_text())
    edit(preset / presets.CONFIG, config=config["config"] | {argument: [value]})

    def never(*args, **kwargs):
        raise AssertionError("something of the config was restored")

    monkeypatch.setattr(keras.saving, "deserialize_keras_object", never)
    refuses(preset, "neither Keras' own nor registered")


# Saving.


def test_a_folder_within_a_file(model, tmp_path):
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path / "file" / "preset", tmp_path / "file" / "two" / "preset"):
        with pytest.raises(NotADirectoryError, match="`preset_dir` must be within folders"):
            model.save_to_preset(path)
    assert contents(tmp_path) == {tmp_path / "file": b"precious"}


def test_saving_overwrites_nothing(model, saved):
    before = {path: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(FileExistsError, match="preset_dir"):
        model.save_to_preset(saved)
    assert before == {path: path.read_bytes() for path in saved.iterdir()}


class Unregistered(keras.layers.Dense):
    pass


def unregistered(x):
    return keras.ops.sin(x)


@pytest.mark.parametrize(
    "network",
    [
        lambda: keras.Sequential([keras.layers.Lambda(lambda x: 2 * x)]),
        lambda: keras.layers.Dense(3, activation=unregistered),
        lambda: Unregistered(3),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(network, tmp_path):
    flow = Flow(layers.AdditiveCoupling(network()), (6,))
    with pytest.raises(ValueError, match="The model names what is neither Keras' own"):
        flow.save_to_preset(tmp_path / "new")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("shared", [keras_flows.networks.MLP(4), layers.InvertibleConv1x1()])
def test_a_layer_in_two_places_is_not_saved(shared, tmp_path):
    if isinstance(shared, keras_flows.Bijection):
        bijections = [shared, layers.ActNorm(), shared]
    else:
        bijections = [layers.AdditiveCoupling(shared), layers.AdditiveCoupling(shared, swap=True)]
    flow = Flow(layers.Chain(bijections), (6,))
    flow.adapt(np.random.default_rng(0).normal(size=(4, 6)))
    with pytest.raises(ValueError, match="a layer in two places"):
        flow.save_to_preset(tmp_path / "new")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("path", [None, 5, b"new"])
def test_what_is_no_path(path, model):
    with pytest.raises(TypeError, match="`preset_dir` must be a path"):
        model.save_to_preset(path)


def test_a_model_that_is_not_adapted_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="adapt"):
        zoo.Glow((4, 4, 1), levels=1, depth=1, width=4).save_to_preset(tmp_path / "new")
    assert not [*tmp_path.iterdir()]


def test_a_failed_save_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(path):
        raise OSError("disk full")

    monkeypatch.setattr(presets, "sha256", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save_to_preset(tmp_path / "new")
    assert not [*tmp_path.iterdir()]


# Weights behind a URL.


@pytest.fixture
def served(preset, tmp_path, monkeypatch):
    """A preset whose weights are fetched from a server, that address, and the empty cache."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "cache"))
    (tmp_path / "www").mkdir()
    (preset / presets.WEIGHTS).rename(tmp_path / "www" / "weights")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield preset, f"http://127.0.0.1:{server.server_port}/weights", tmp_path / "cache"
        server.shutdown()


def with_url(preset, url, digest=None):
    weights = json.loads((preset / presets.METADATA).read_text())["weights"]
    edit(preset / presets.METADATA, weights={"sha256": digest or weights["sha256"], "url": url})


def test_weights_are_fetched_once(served, images, model):
    preset, url, cache = served
    with_url(preset, url)
    labels = np.arange(6) % 3
    for address in (url, url + "-is-gone"):
        with_url(preset, address)
        np.testing.assert_array_equal(
            Flow.from_preset(preset).log_prob(images, labels), model.log_prob(images, labels)
        )
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 1


def test_a_spoilt_cache_is_mended(served):
    preset, url, cache = served
    with_url(preset, url)
    Flow.from_preset(preset)
    (path,) = (path for path in cache.rglob("*") if path.is_file())
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    Flow.from_preset(preset)
    assert path.read_bytes() == content

    path.write_bytes(content[:-1])
    with_url(preset, url + "-is-gone")
    refuses(preset, "could not be had")
    assert not path.exists()


def test_weights_in_the_folder_are_checked_though_there_is_an_address(served):
    preset, url, _ = served
    with_url(preset, url)
    (preset / presets.WEIGHTS).write_bytes(b"altered")
    refuses(preset, "incomplete or was altered")


def test_two_downloads_at_a_time(served, monkeypatch):
    preset, url, cache = served
    digest = json.loads((preset / presets.METADATA).read_text())["weights"]["sha256"]
    both = threading.Barrier(2, timeout=30)
    get_file = keras.utils.get_file

    def together(*args, **kwargs):
        both.wait()
        path = get_file(*args, **kwargs)
        both.wait()
        return path

    monkeypatch.setattr(keras.utils, "get_file", together)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        paths = {*pool.map(presets._fetch, [url] * 2, [digest] * 2)}
    (path,) = paths
    assert presets.sha256(path) == digest
    assert [path for path in cache.rglob("*") if path.is_file()] == [path]


def test_a_download_with_another_hash(served):
    preset, url, cache = served
    with_url(preset, url, hashlib.sha256(b"other").hexdigest())
    refuses(preset, "could not be had")
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_download_that_fails(served):
    preset, url, cache = served
    with_url(preset, url + "-is-gone")
    refuses(preset, "could not be had")
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_other_addresses_are_refused(served, tmp_path):
    preset, _, _ = served
    with_url(preset, f"file://{tmp_path}/www/weights")
    refuses(preset, "http")
