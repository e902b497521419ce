"""Presets on the hubs of Hugging Face and Kaggle, which a server here plays."""

import json
import shutil
import sys

import numpy as np
import pytest
from hubs import Hub

import keras_flows
from keras_flows import Flow, layers, presets

HUGGING_FACE, KAGGLE = "hf://me/flow", "kaggle://me/flows/keras/flow"
BOTH = pytest.mark.parametrize(
    "address", [HUGGING_FACE, pytest.param(KAGGLE, marks=pytest.mark.slow)]
)
X = np.random.default_rng(0).normal(3.0, 2.0, (4, 2)).astype("float32")


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """The folder of their caches; Hugging Face's reads the environment when it is imported."""
    cache = tmp_path_factory.mktemp("hubs")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.startswith("huggingface_hub")]:
            patch.delitem(sys.modules, name)
        patch.setenv("HF_HOME", str(cache))
        patch.setenv("HF_TOKEN", "hf_token")
        patch.setenv("KAGGLEHUB_CACHE", str(cache / "kaggle"))
        patch.setenv("KAGGLE_API_TOKEN", "token")
        patch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
        yield cache


@pytest.fixture
def hub(clients, request, monkeypatch):
    shutil.rmtree(clients, ignore_errors=True)
    with Hub().running() as server:
        if request.node.callspec.params.get("address") == KAGGLE:
            env = pytest.importorskip("kagglesdk.kaggle_env")
            monkeypatch.setitem(env._env_to_endpoint, env.KaggleEnv.LOCAL, server.address)
        else:
            constants = pytest.importorskip("huggingface_hub.constants")
            template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(constants, "ENDPOINT", server.address)
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


@pytest.fixture(scope="module")
def flow():
    flow = Flow(layers.ActNorm(), (2,))
    flow.adapt(X)
    return flow


@pytest.fixture
def preset(flow, tmp_path):
    flow.save_to_preset(tmp_path / "preset")
    return tmp_path / "preset"


def files(preset):
    return {path.name: path.read_bytes() for path in preset.iterdir()}


def name(address):
    return address.partition("://")[2]


def refuses(action, address, match, error=ValueError):
    with pytest.raises(error, match=f"(?s)^{address} .*{match}"):
        action(address)


@BOTH
def test_what_is_uploaded_is_downloaded(address, hub, preset, flow):
    keras_flows.upload_preset(address, preset)
    assert hub.versions[name(address)][-1] == files(preset)
    np.testing.assert_array_equal(Flow.from_preset(address).log_prob(X), flow.log_prob(X))


@BOTH
def test_what_else_is_there_is_not_read(address, hub, preset):
    others = {".gitattributes": b"", "LICENSE": b"free", "model.pkl": b"cos\nsystem\n"}
    hub.add(name(address), {**files(preset), **others})
    Flow.from_preset(address)
    if address == HUGGING_FACE:  # of Kaggle all is fetched
        assert {*hub.asked} == files(preset).keys()


@BOTH
def test_altered_weights_are_refused(address, hub, preset):
    hub.add(name(address), {**files(preset), presets.WEIGHTS: b"altered"})
    with pytest.raises(ValueError, match="incomplete or was altered"):
        Flow.from_preset(address)


@BOTH
def test_code_is_refused(address, hub, preset):
    config = json.loads((preset / presets.CONFIG).read_text())
    config["config"]["prior"] = {"class_name": "Lambda", "config": {}}
    hub.add(name(address), {**files(preset), presets.CONFIG: json.dumps(config).encode()})
    with pytest.raises(ValueError, match="is code, which no preset may hold"):
        Flow.from_preset(address)


@BOTH
def test_what_is_not_there(address, hub):
    login = "hf auth login" if address == HUGGING_FACE else "kagglehub.login"
    refuses(Flow.from_preset, address, f"could not be had.*{login}.*404")
    hub.add(name(address), {"model.safetensors": b""})
    refuses(Flow.from_preset, address, "is no preset: there is no config.json")


@pytest.mark.parametrize("address", [HUGGING_FACE])
def test_what_is_gated(address, hub, preset):
    hub.add(name(address), files(preset))
    hub.gated.add(name(address))
    refuses(Flow.from_preset, address, "could not be had.*hf auth login.*403")


@pytest.mark.parametrize(
    "address",
    [
        *("hf://", "hf://flow", "hf://me/you/flow", "hf://me/fl ow", "hf://me/flow@"),
        *("kaggle://me/flow", "kaggle://me/flows/keras/flow/latest", "kaggle://a/b/jax/c"),
    ],
)
def test_what_is_no_address(address):
    with pytest.raises(ValueError, match=f"must be hf://USER/.*Received: preset='{address}'"):
        Flow.from_preset(address)


@pytest.mark.slow
@pytest.mark.parametrize("address", [HUGGING_FACE, KAGGLE])
def test_versions(address, hub, preset, flow):
    """Each stays what it was and, once it has been had, can be had without a network."""
    hub.add(name(address), files(preset))
    Flow.from_preset(address)
    other = Flow(layers.ActNorm(), (2,))
    other.adapt(X + 1.0)
    shutil.rmtree(preset)
    other.save_to_preset(preset)
    hub.add(name(address), files(preset))
    commit, _ = hub.commits(name(address))
    first = f"{address}@{commit}" if address == HUGGING_FACE else f"{address}/1"
    for version, expected in ((address, other), (first, flow)):
        np.testing.assert_array_equal(Flow.from_preset(version).log_prob(X), expected.log_prob(X))
    hub.close()
    np.testing.assert_array_equal(Flow.from_preset(first).log_prob(X), flow.log_prob(X))
    if address == HUGGING_FACE:  # Kaggle's client asks which is the latest
        Flow.from_preset(address)
    refuses(Flow.from_preset, address.replace("me", "you"), "could not be had")


@BOTH
def test_without_the_client(address, monkeypatch):
    client = "huggingface_hub" if address == HUGGING_FACE else "kagglehub"
    monkeypatch.setitem(sys.modules, client, None)
    refuses(Flow.from_preset, address, r"pip install 'keras_flows\[hub\]'", ImportError)


# What is not uploaded.


@pytest.mark.parametrize("address", [HUGGING_FACE])
def test_what_is_no_preset_is_not_uploaded(address, hub, preset, tmp_path):
    def no(match, folder=preset):
        with pytest.raises(ValueError, match=match):
            keras_flows.upload_preset(address, folder)

    no("must be the name of a preset, or a folder", tmp_path)
    no("must be a folder or a name", "hf://me/other")
    (preset / "model.pkl").write_bytes(b"")
    no("has what no preset has")
    (preset / "model.pkl").unlink()
    (preset / presets.WEIGHTS).write_bytes(b"altered")
    no("incomplete or was altered")
    (preset / presets.METADATA).write_text("[]")
    no("must hold a JSON object")
    assert not hub.versions


@pytest.mark.parametrize(
    "uri",
    [
        *("me/flow", "gs://me/flow", "hf://flow", None, 5),
        *("hf://me/flow@main", "kaggle://me/flows/keras/flow/2", "kaggle://me/flows/tf/flow"),
    ],
)
def test_where_nothing_is_uploaded(uri, preset):
    with pytest.raises(ValueError, match=f"`uri` must be hf://.*Received: uri={uri!r}"):
        keras_flows.upload_preset(uri, preset)


@pytest.mark.parametrize("address", [HUGGING_FACE])
def test_an_architecture_is_uploaded_without_weights(address, hub, preset):
    metadata = json.loads((preset / presets.METADATA).read_text())
    del metadata["weights"]
    (preset / presets.METADATA).write_text(json.dumps(metadata))
    (preset / presets.WEIGHTS).unlink()
    keras_flows.upload_preset(address, preset)
    Flow.from_preset(address, load_weights=False)
