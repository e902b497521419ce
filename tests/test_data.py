"""`keras_flows.data.load`, offline: the embedded datasets, and a tiny stand-in for mnist."""

import http.server
import itertools
import pathlib
import random
import shutil
import socket
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_flows import data, datasets

EMBEDDED_FILE = pathlib.Path(datasets.__file__).with_name("digits.npz")


class TinyMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Written where TFDS' own mnist is looked for: 20 train and 5 test images, all pixels = i."""

    name = "mnist"
    VERSION = tfds.core.Version(str(tfds.builder_cls("mnist").VERSION))

    def _info(self):
        image = tfds.features.Image(shape=(28, 28, 1))
        label = tfds.features.ClassLabel(num_classes=10)
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(20), "test": self._generate_examples(5)}

    def _generate_examples(self, num_examples):
        for i in range(num_examples):
            yield i, {"image": np.full((28, 28, 1), i, np.uint8), "label": i % 10}


class TinyRemote(TinyMnist, skip_registration=True):
    """The same, but each image's pixels are a byte of a downloaded file. Not registered, either."""

    name = "tiny_remote"
    VERSION = tfds.core.Version("1.0.0")
    url_infos = None

    def _split_generators(self, dl_manager):
        content = dl_manager.download(next(iter(self.url_infos))).read_bytes()
        return {"train": self._generate_examples(len(content))}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Holds the mnist stand-in; `digits` and `moons` come to it with their first use."""
    path = tmp_path_factory.mktemp("tensorflow_datasets")
    TinyMnist(data_dir=path).download_and_prepare()
    return path


@pytest.fixture
def default_dir(tmp_path, monkeypatch):
    """TFDS' own directory, made empty: the user's must neither help nor be written to."""
    path = tmp_path / "default"
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(path))
    return path


@pytest.fixture
def offline(monkeypatch):
    """A machine without a network; gives the list of what was asked for."""
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


def embedded_digits(begin, end):
    with np.load(EMBEDDED_FILE) as file:
        images = np.minimum(16.0 * file["levels"], 255).astype(np.uint8)[..., None]
        return images[begin:end], file["labels"][begin:end]


def epoch(dataset):
    """One pass: all x, or (all x, all labels)."""
    batches = list(dataset.as_numpy_iterator())
    if isinstance(batches[0], tuple):
        return tuple(np.concatenate(part) for part in zip(*batches))
    return np.concatenate(batches)


@pytest.mark.parametrize(
    ("name", "split", "shape", "dtype", "num_examples"),
    [
        ("digits", "train", (8, 8, 1), np.uint8, 1500),
        ("digits", "test", (8, 8, 1), np.uint8, 297),
        ("moons", "train", (2,), np.float32, 10000),
        ("moons", "test", (2,), np.float32, 2000),
        ("two_moons_simulations", "train", (2,), np.float32, 20000),
        ("two_moons_simulations", "test", (2,), np.float32, 2000),
        ("mnist", "train", (28, 28, 1), np.uint8, 20),
        ("mnist", "test[:3]", (28, 28, 1), np.uint8, 3),
    ],
)
def test_shapes_dtypes_and_cardinality(data_dir, offline, name, split, shape, dtype, num_examples):
    arguments = {"split": split, "batch_size": 192, "data_dir": data_dir}
    dataset = data.load(name, **arguments)
    x_spec = tf.TensorSpec((None, *shape), dtype)
    assert dataset.element_spec == x_spec
    assert dataset.cardinality() == len(list(dataset)) == -(-num_examples // 192)
    assert epoch(dataset).shape == (num_examples, *shape)  # with the last, partial batch

    dataset = data.load(name, **arguments, labels=True)
    label = tf.TensorSpec((None,), tf.int32)
    assert dataset.element_spec == (x_spec, x_spec if name.endswith("simulations") else label)
    assert [len(part) for part in epoch(dataset)] == [num_examples] * 2
    assert not offline  # what is prepared, or can be, needs no network


def test_digits_are_the_embedded_file_in_order(data_dir):
    dataset = data.load("digits", split="test", batch_size=50, data_dir=data_dir, labels=True)
    for _ in range(2):
        for got, expected in zip(epoch(dataset), embedded_digits(1500, 1797)):
            np.testing.assert_array_equal(got, expected)


def test_shuffled_labels_belong_to_their_images(data_dir):
    dataset = data.load("digits", split="train", batch_size=64, data_dir=data_dir, labels=True)
    images, labels = epoch(dataset)
    expected_images, expected_labels = embedded_digits(0, 1500)
    assert not np.array_equal(labels, expected_labels)
    got = sorted((x.tobytes(), y) for x, y in zip(images, labels))
    assert got == sorted((x.tobytes(), y) for x, y in zip(expected_images, expected_labels))


def test_embedded_file_is_scikit_learns():
    source = pytest.importorskip("sklearn.datasets").load_digits()
    with np.load(EMBEDDED_FILE) as file:
        np.testing.assert_array_equal(file["levels"], source.images)
        np.testing.assert_array_equal(file["labels"], source.target)


def test_seed_fixes_the_order_of_each_epoch(data_dir):
    def epochs(seed, split="train[:1000]"):
        dataset = data.load("moons", split=split, batch_size=500, data_dir=data_dir, seed=seed)
        return [epoch(dataset) for _ in range(3)]

    first, again, other = epochs(seed=7), epochs(seed=7), epochs(seed=8)
    np.testing.assert_array_equal(first, again)
    for a, b in itertools.combinations([*first, other[0]], 2):
        assert not np.array_equal(a, b)
        np.testing.assert_array_equal(np.sort(a, axis=0), np.sort(b, axis=0))
    a, b, _ = epochs(seed=None)
    assert not np.array_equal(a, b)
    a, b, _ = epochs(7, "test")
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("split", "first"),
    [("train", [0.5569816, 0.83300245, 0]), ("test", [0.486312, -0.29990673, 1])],
)
def test_moons_are_two_half_circles(data_dir, split, first):
    arguments = {"batch_size": 1000, "data_dir": data_dir, "labels": True}
    points, label = epoch(data.load("moons", split=split, **arguments))
    arc = np.where(label[:, None] == 0, points, [1, 0.5] - points)  # the lower onto the upper
    radius = np.hypot(*arc.T)
    assert radius.mean() == pytest.approx(1, abs=0.01)
    assert radius.std() == pytest.approx(0.1, rel=0.05)
    assert arc[:, 1].min() > -0.5
    assert label.mean() == pytest.approx(0.5, abs=0.05)
    # the same points on every machine
    x, y = epoch(data.load("moons", split=f"{split}[:1]", **arguments))
    np.testing.assert_allclose(x[0], first[:2], rtol=1e-5)
    assert y == first[2]


@pytest.mark.parametrize("split", ["train", "test"])
def test_two_moons_are_simulated(data_dir, split):
    arguments = {"batch_size": 1000, "data_dir": data_dir, "labels": True}
    parameters, x = epoch(data.load("two_moons_simulations", split=split, **arguments))
    assert np.abs(parameters).max() <= 1
    np.testing.assert_allclose(parameters.std(axis=0), 1 / np.sqrt(3), rtol=0.03)
    first, second = parameters.T
    moon = x - np.stack([0.25 - np.abs(first + second) / 2**0.5, (second - first) / 2**0.5], axis=1)
    radius = np.hypot(*moon.T)
    assert radius.mean() == pytest.approx(0.1, abs=0.001)
    assert radius.std() == pytest.approx(0.01, rel=0.05)
    assert moon[:, 0].min() > -1e-6  # half a circle, evenly
    angle = np.arctan2(moon[:, 1], moon[:, 0])
    assert angle.std() == pytest.approx(np.pi / 12**0.5, rel=0.03)
    # the same on every machine
    one = epoch(data.load("two_moons_simulations", split=f"{split}[:1]", **arguments))
    expected = {
        "train": [[0.09762701, 0.43037874], [-0.02792102, 0.19372742]],
        "test": [[-0.16595599, 0.44064897], [0.15220015, 0.38312674]],
    }[split]
    np.testing.assert_allclose(np.concatenate(one), expected, rtol=1e-5)


def test_a_partial_pass_fills_the_cache(data_dir, tmp_path):
    shutil.copytree(data_dir / "mnist", tmp_path / "mnist")
    dataset = data.load("mnist", split="train", batch_size=4, data_dir=tmp_path)
    next(iter(dataset))
    for file in tmp_path.glob("mnist/*/*.tfrecord*"):
        file.unlink()
    assert sorted(epoch(dataset)[:, 0, 0, 0]) == list(range(20))


def test_large_splits_are_not_cached_and_the_buffer_is_bounded(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_MEMORY_LIMIT", 3 * 28 * 28)
    shutil.copytree(data_dir / "mnist", tmp_path / "mnist")
    dataset = data.load("mnist", split="train", batch_size=4, data_dir=tmp_path, seed=1)
    order = epoch(dataset)[:, 0, 0, 0]
    assert sorted(order) == list(range(20))
    assert any(order != np.arange(20))
    assert all(order <= np.arange(20) + 3)  # the buffer never held more than four
    for file in tmp_path.glob("mnist/*/*.tfrecord*"):
        file.unlink()
    with pytest.raises(tf.errors.NotFoundError):
        epoch(dataset)


def test_workers_shard_by_data(data_dir):
    options = data.load("moons", split="test", batch_size=8, data_dir=data_dir).options()
    policy = options.experimental_distribute.auto_shard_policy
    assert policy == tf.data.experimental.AutoShardPolicy.DATA


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "`batch_size`, expected a positive integer. Received: batch_size=0"),
        ({"batch_size": 2.0}, "`batch_size`.*Received: batch_size=2.0"),
        ({"batch_size": True}, "`batch_size`.*Received: batch_size=True"),
        ({"batch_size": "8"}, "`batch_size`.*Received: batch_size='8'"),
        ({"seed": 1.5}, "`seed`, expected an integer or None. Received: seed=1.5"),
        ({"seed": "1"}, "`seed`.*Received: seed='1'"),
        ({"split": "validation"}, r"`split`.*\['train', 'test'\].*split='validation'"),
        ({"split": "train[:0]"}, r"`split`.*not empty.*split='train\[:0\]'"),
        ({"split": None}, "`split`.*Received: split=None"),
        ({"split": tfds.core.ReadInstruction("train")}, "`split`.*Received: split=ReadInstruction"),
        ({"split": ["train"]}, r"`split`.*Received: split=\['train'\]"),
        ({"data_dir": "no/such/dir"}, "`data_dir`.*existing directory.*'no/such/dir'"),
        ({"data_dir": 3}, "`data_dir`.*Received: data_dir=3"),
        ({"name": "cifar11"}, "`name`.*list_builders.*'cifar10'.*Received: name='cifar11'"),
        ({"name": "digit"}, "`name`.*near: .*'digits'.*Received: name='digit'"),
        ({"name": "huggingface:mnist"}, "`name`.*Received: name='huggingface:mnist'"),
        ({"name": "imagenet_resized/9x9"}, "`name`.*config.*name='imagenet_resized/9x9'"),
        ({"name": "mnist:9.9.9"}, "`name`.*version.*name='mnist:9.9.9'"),
        ({"name": 3}, "`name`.*Received: name=3"),
        ({"name": "lsun"}, "`name`.*one fixed shape.*None, None, 3.*name='lsun'"),
        ({"name": "imdb_reviews"}, "`name`.*`features`.*name='imdb_reviews'"),
        ({"name": "celeb_a", "labels": True}, "`labels`.*'celeb_a' has no.*labels=True"),
        ({"name": "cifar10"}, r"`data_dir`.*no .*cifar10.*tensorflow_datasets.load\('cifar10'"),
    ],
)
def test_bad_arguments(data_dir, offline, change, message):
    arguments = {"name": "digits", "split": "train", "batch_size": 8, "data_dir": data_dir}
    start = time.monotonic()
    with pytest.raises(ValueError, match=f"(?s){message}"):
        data.load(**(arguments | change))
    assert time.monotonic() - start < 5
    assert not offline


def test_offline_error_comes_soon_and_names_the_way_out(default_dir, offline):
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"load\('mnist', data_dir=DIR\).*data_dir=DIR"):
        data.load("mnist", split="train", batch_size=8)
    assert time.monotonic() - start < 5
    assert offline
    assert not default_dir.exists()


def test_a_network_that_swallows_everything_is_offline(default_dir, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(4))
    monkeypatch.setattr(data, "_NETWORK_TIMEOUT", 0.2)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="does not answer"):
        data.load("mnist", split="train", batch_size=8)
    assert time.monotonic() - start < 2


def test_downloads_where_there_is_a_network(default_dir, tmp_path, monkeypatch):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"content")

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/file"
    monkeypatch.setattr(TinyRemote, "url_infos", {url: None})
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: TinyRemote(data_dir=data_dir))
    try:
        with pytest.raises(ValueError, match="`data_dir`"):  # a wrong path starts no download
            data.load("tiny_remote", split="train", batch_size=8, data_dir=tmp_path)
        dataset = data.load("tiny_remote", split="train", batch_size=8)
    finally:
        server.shutdown()
        server.server_close()
    assert len(epoch(dataset)) == 7
    assert (default_dir / "tiny_remote").exists()


def test_two_processes_may_prepare_at_once(tmp_path, monkeypatch):
    """The second finishes while the first still writes, and both were seeded alike."""
    generate, temporary = datasets.Digits._generate_examples, []

    def generate_after_another(self, images, labels):
        temporary.extend(path.name for path in tmp_path.glob("digits/*incomplete*"))
        if len(temporary) == 1:
            random.seed(0)
            data.load("digits", split="test", batch_size=8, data_dir=tmp_path)
        yield from generate(self, images, labels)

    monkeypatch.setattr(datasets.Digits, "_generate_examples", generate_after_another)
    random.seed(0)
    expected = random.getstate()
    dataset = data.load("digits", split="test", batch_size=8, data_dir=tmp_path, labels=True)
    assert random.getstate() == expected
    assert len(set(temporary)) == 2
    assert not list(tmp_path.glob("digits/*incomplete*"))
    np.testing.assert_array_equal(epoch(dataset)[1], embedded_digits(1500, 1797)[1])


def test_another_process_may_be_just_ahead(tmp_path, monkeypatch):
    prepare = datasets.Digits.download_and_prepare

    def prepare_after_another(self):
        prepare(datasets.Digits(data_dir=tmp_path))
        prepare(self)

    monkeypatch.setattr(datasets.Digits, "download_and_prepare", prepare_after_another)
    dataset = data.load("digits", split="test", batch_size=100, data_dir=tmp_path)
    np.testing.assert_array_equal(epoch(dataset), embedded_digits(1500, 1797)[0])


def test_a_failed_preparation_is_not_hidden(tmp_path, monkeypatch):
    def fail(self, images, labels):
        raise OSError("disk full")

    monkeypatch.setattr(datasets.Digits, "_generate_examples", fail)
    with pytest.raises(OSError, match="disk full"):
        data.load("digits", split="test", batch_size=8, data_dir=tmp_path)


def test_embedded_datasets_prepare_quietly(tmp_path, capfd, caplog, monkeypatch):
    monkeypatch.setattr("absl.logging._log_counter_per_token", {})  # absl warns anew
    data.load("moons", split="test", batch_size=8, data_dir=tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    assert "xamples" not in err
    assert not caplog.records
