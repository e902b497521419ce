"""Exported models give the numbers of Python in TensorFlow alone and in the C++ loader."""

import functools
import itertools
import json
import pathlib
import pickle
import runpy
import sys
import textwrap
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import saved_model_runner as smr
import tensorflow as tf
from conftest import perturb, run_python
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from keras_flows import networks, zoo

saved_model_runner = smr.saved_model_runner  # registers the fixture

TOOLS = pathlib.Path(__file__).parent.parent / "tools"
SEED, TEMPERATURE = 3, 0.7
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 4, 4, 1), dtype="uint8")
VECTORS = RNG.normal(size=(5, 3)).astype("float32")
FEATURES = RNG.normal(size=(5, 2)).astype("float32")
GUIDANCE = np.full(5, 2, "float32")
LABELS = np.array([0, 1, 2, 0, 1], "int32")


def image_glow():
    model = zoo.Glow((4, 4, 1), levels=2, depth=2, width=4, reversible=True, num_classes=3, bits=5)
    model.adapt(IMAGES, LABELS)
    return model, IMAGES, {"condition": LABELS}


def half_precision_vectors():
    half = "mixed_bfloat16"
    network = networks.MLP(4, 1, dtype=half)
    condition = {"condition_shape": (2,), "condition_network": network}
    model = zoo.NSF((3,), depth=1, width=4, num_blocks=1, dtype=half, **condition)
    model.adapt(VECTORS, FEATURES)
    return model, VECTORS, {"condition": FEATURES}


def jet_of_sequences():
    condition = {"condition_shape": (2,), "condition_network": keras.layers.Reshape((2, 1))}
    model = zoo.Jet((4, 4, 1), patch_size=2, depth=3, width=4, num_heads=2, bits=5, **condition)
    model.adapt(IMAGES, FEATURES)
    perturb(model)
    return model, IMAGES, {"condition": FEATURES}


def labelled_tarflow():
    size = {"patch_size": 2, "depth": 2, "width": 4, "num_layers": 1, "num_heads": 2}
    model = zoo.TarFlow((4, 4, 1), num_classes=3, noise=0.1, **size)
    perturb(model)
    return model, IMAGES, {"condition": np.array([0, 1, 2, -1, 1], "int32")}


def double_precision_vectors():
    model = zoo.NICE((3,), depth=2, width=4, num_hidden=1, dtype="float64")
    model.adapt(VECTORS)
    return model, VECTORS, {}


MODELS = (image_glow, half_precision_vectors, double_precision_vectors)
# Each takes as long as these together.
OF_TRANSFORMERS = [
    pytest.param(make, marks=pytest.mark.slow) for make in (jet_of_sequences, labelled_tarflow)
]


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Each model exported once, when it is first asked for."""
    return functools.cache(lambda make: export(make, tmp_path_factory.mktemp("e") / "model/1"))


@pytest.fixture(params=[*MODELS, *OF_TRANSFORMERS])
def exported(request, exports):
    return exports(request.param)


def export(make, path):
    """A model, where it is exported, a request for each signature, and Python's responses."""
    keras.utils.set_random_seed(0)
    model, x, condition = make()
    perturb(model, 0.05)
    model.export(path)

    z = np.random.default_rng(1).normal(size=(5, model.size)).astype("float32")
    seeds = np.array([[SEED, i] for i in range(5)], "int32")
    temperature = np.full(5, TEMPERATURE, "float32")
    guided = {} if make is not labelled_tarflow else {"guidance": GUIDANCE}
    requests = [
        ("serving_default", {"x": x, **condition}),
        ("log_prob", {"x": x, **condition}),
        ("encode", {"x": x, **condition}),
        ("decode", {"z": z, **condition, **guided}),
        ("sample", {"seed": seeds, "temperature": temperature, **condition, **guided}),
    ]
    tf.config.run_functions_eagerly(True)  # sooner than to trace once more
    latent, log_prob = model.encode(x, **condition), model.log_prob(x, **condition)
    weight = {"guidance": GUIDANCE[0]} if guided else {}
    sample = model.sample(5, temperature=TEMPERATURE, seed=SEED, **condition, **weight)
    decoded = model.decode(z, **condition, **weight)
    tf.config.run_functions_eagerly(False)
    responses = [
        {"latent": latent, "log_prob": log_prob},
        {"log_prob": log_prob},
        {"latent": latent},
        {"x": decoded},
        {"x": sample},
    ]
    return SimpleNamespace(
        model=model,
        path=str(path),
        loaded=tf.saved_model.load(str(path)),
        requests=requests,
        responses=[{k: np.asarray(v) for k, v in response.items()} for response in responses],
        # Eagerly, half precision is rounded after each operation; in a graph, where oneDNN has
        # several in one, less often.
        tolerance=1e-2 if make is half_precision_vectors else 1e-5,
    )


def assert_same(responses, expected, tolerance=1e-5):
    """float32 to the tolerance and pixels to one bin."""
    for response, wanted in zip(responses, expected, strict=True):
        assert response.keys() == wanted.keys()
        for name, value in wanted.items():
            assert response[name].shape == value.shape
            if value.dtype == "uint8":
                assert response[name].dtype == "uint8"
                difference = np.abs(np.int32(response[name]) - np.int32(value))
                assert difference.max() <= 8 and (difference > 0).mean() < 0.05
            else:
                assert response[name].dtype == "float32"
                np.testing.assert_allclose(response[name], value, rtol=tolerance, atol=tolerance)


# The others take as long again, and differ in their inputs only.
on_images_and_vectors = pytest.mark.parametrize(
    "exported",
    [
        image_glow,
        *(pytest.param(make, marks=pytest.mark.slow) for make in MODELS if make is not image_glow),
        *OF_TRANSFORMERS,
    ],
    indirect=True,
)


def rows(request, start, stop):
    signature, inputs = request
    return signature, {name: value[start:stop] for name, value in inputs.items()}


def test_signatures_are_named_typed_and_batched(exported):
    model = exported.model
    data = tf.TensorSpec((None, *model.input_shape), tf.uint8 if model.is_image else tf.float32)
    latent = tf.TensorSpec((None, model.size), tf.float32)
    log_prob = temperature = tf.TensorSpec((None,), tf.float32)
    condition, guidance = {}, {}
    if model.data_spec.condition.takes_null_label:
        guidance = {"guidance": temperature}
    if model.is_conditional:
        integers = model.num_classes is not None
        spec = tf.TensorSpec((None,) if integers else (None, 2), "int32" if integers else "float32")
        condition = {"condition": spec}
    expected = {
        "serving_default": ({"x": data}, {"latent": latent, "log_prob": log_prob}),
        "log_prob": ({"x": data}, {"log_prob": log_prob}),
        "encode": ({"x": data}, {"latent": latent}),
        "decode": ({"z": latent, **guidance}, {"x": data}),
        "sample": (
            {"seed": tf.TensorSpec((None, 2), tf.int32), "temperature": temperature, **guidance},
            {"x": data},
        ),
    }

    def specs(tensors):
        return {name: (spec.shape.as_list(), spec.dtype) for name, spec in tensors.items()}

    assert set(exported.loaded.signatures) == set(expected)
    for name, (inputs, outputs) in expected.items():
        signature = exported.loaded.signatures[name]
        assert specs(signature.structured_input_signature[1]) == specs({**inputs, **condition})
        assert specs(signature.structured_outputs) == specs(outputs)


@pytest.fixture
def asked(exported):
    """What the tests below ask of a model in C++."""
    good = exported.requests
    bad = [request for _, request in bad_requests(good)]
    return {
        "whole": good,
        "first rows": [rows(request, 1, 3) for request in good],
        "last row": [rows(request, 4, 5) for request in good],
        "bad and good": [request for each in bad for request in (each, good[0])],
        "empty": [rows(request, 0, 0) for request in good],
        "spoilt": [request for request, _ in spoilt_requests(exported)],
        "warmup": warmup_requests(exported.path),
    }


@pytest.fixture
def answered(exported, asked, saved_model_runner):
    """The responses: all by one process, which takes longer to start than to answer."""
    if not hasattr(exported, "answered"):
        requests = itertools.chain.from_iterable(asked.values())
        responses = iter(smr.run(saved_model_runner, exported.path, [*requests]))
        exported.answered = {k: [next(responses) for _ in v] for k, v in asked.items()}
    return exported.answered


@pytest.mark.parametrize("exported", [image_glow, double_precision_vectors], indirect=True)
def test_cpp_gives_the_numbers_of_python(exported, answered):
    assert_same(answered["whole"], exported.responses)
    # Rows do not depend on the batch they come in; pixels are those of exactly one bin.
    for name, start, stop in (("first rows", 1, 3), ("last row", 4, 5)):
        wanted = [{k: v[start:stop] for k, v in whole.items()} for whole in exported.responses]
        assert_same(answered[name], wanted)


def test_tensorflow_alone_gives_the_numbers_of_python(exports, tmp_path):
    """In a fresh process that cannot import what a server does not have."""
    program = """
        import pickle
        import sys

        missing = ("keras", "keras_flows", "tensorflow_probability", "tf_keras")
        sys.modules.update(dict.fromkeys(missing))  # each import of these raises
        import tensorflow as tf

        def respond(path, requests):
            signatures = tf.saved_model.load(path).signatures
            for name, inputs in requests:
                inputs = {key: tf.constant(value) for key, value in inputs.items()}
                yield {key: value.numpy() for key, value in signatures[name](**inputs).items()}

        responses = [list(respond(*item)) for item in pickle.load(sys.stdin.buffer)]
        pickle.dump(responses, open(sys.argv[1], "wb"))
    """
    items = [exports(make) for make in MODELS]
    requests = pickle.dumps([(item.path, item.requests) for item in items])
    run_python(textwrap.dedent(program), "responses", input=requests, cwd=tmp_path)
    responses = pickle.loads((tmp_path / "responses").read_bytes())
    for response, item in zip(responses, items, strict=True):
        assert_same(response, item.responses, item.tolerance)


def test_graph_has_neither_python_nor_xla(exported):
    saved_model = saved_model_pb2.SavedModel()
    with open(f"{exported.path}/saved_model.pb", "rb") as file:
        saved_model.ParseFromString(file.read())
    (meta_graph,) = saved_model.meta_graphs
    functions = meta_graph.graph_def.library.function
    nodes = [*meta_graph.graph_def.node, *(node for f in functions for node in f.node_def)]
    assert len(nodes) > 100
    ops = {node.op for node in nodes}
    assert "MatMul" in ops
    assert not [op for op in ops if "PyFunc" in op or "Xla" in op]
    for item in [*nodes, *functions]:
        assert not [name for name in item.attr if "xla" in name.lower() and item.attr[name].b]


def test_variables_are_stored_once(exported):
    """Both directions share what they read alike, and what none reads is not there."""
    checkpoint = tf.train.load_checkpoint(f"{exported.path}/variables/variables")
    names = set(checkpoint.get_variable_to_shape_map()) - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    stored = [checkpoint.get_tensor(name) for name in names]
    assert len({(value.shape, value.tobytes()) for value in stored}) == len(stored)
    # What 1x1 convolutions need to go back comes on top: much only in networks as small as here.
    weights = sum(np.prod(weight.shape, dtype=int) for weight in exported.model.weights)
    assert sum(value.size for value in stored) < 1.4 * weights


def kinds_of_dependence(library, name, arguments, found):
    """What the results of a graph's function depend on, given what its arguments do.

    Each is "nothing", "weights" or "request". `found` collects the ops of all that depends on the
    weights alone.
    """
    function, order = library[name], ("nothing", "weights", "request")
    known = dict(zip((argument.name for argument in function.signature.input_arg), arguments))

    def of(tensor):
        node, *index = tensor.split(":")
        return known[node][int(index[-1])] if isinstance(known[node], list) else known[node]

    waiting = list(function.node_def)
    while waiting:
        node = waiting.pop(0)
        inputs = [tensor for tensor in node.input if not tensor.startswith("^")]
        if any(tensor.split(":")[0] not in known for tensor in inputs):
            waiting.append(node)
            continue
        given = [of(tensor) for tensor in inputs]
        if "PartitionedCall" in node.op:
            known[node.name] = kinds_of_dependence(library, node.attr["f"].func.name, given, found)
        elif node.op in ("While", "StatelessWhile"):
            body, state = node.attr["body"].func.name, None
            while state != given:  # what an iteration makes of it, the next one is given
                state = given
                given = kinds_of_dependence(library, body, given, [])
                given = [max(pair, key=order.index) for pair in zip(state, given)]
            known[node.name] = kinds_of_dependence(library, body, given, found)
        else:
            known[node.name] = max(given, key=order.index, default="nothing")
            if known[node.name] == "weights":
                found.append(node.op)
    return [of(function.ret[result.name]) for result in function.signature.output_arg]


# They read, slice and place weights, and compute nothing. The sum over a level's cells of a loop's
# log-det is one multiplication of a scalar.
READS = {"ReadVariableOp", "Identity", "NoOp", "GatherV2", "Split", "StridedSlice", "Const"} | {
    f"TensorList{what}" for what in ("Reserve", "FromTensor", "GetItem")
}


@pytest.mark.parametrize("exported", [image_glow], indirect=True)
def test_weights_are_computed_with_at_export(exported):
    saved_model = saved_model_pb2.SavedModel()
    with open(f"{exported.path}/saved_model.pb", "rb") as file:
        saved_model.ParseFromString(file.read())
    (meta_graph,) = saved_model.meta_graphs
    library = {item.signature.name: item for item in meta_graph.graph_def.library.function}
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    for name, signature in meta_graph.signature_def.items():
        if name == "__saved_model_init_op":
            continue
        outputs = [info.name.split(":")[0] for info in signature.outputs.values()]
        inputs = {info.name.split(":")[0] for info in signature.inputs.values()}
        call = nodes[outputs[0]]
        arguments = ["request" if i in inputs else "weights" for i in call.input if i[0] != "^"]
        found = []
        assert set(kinds_of_dependence(library, call.attr["f"].func.name, arguments, found)) == {
            "request"
        }
        assert "ReadVariableOp" in found
        computed = [op for op in found if op not in READS]
        assert set(computed) <= {"Mul"} and len(computed) <= 2, (name, computed)


# Bad requests, in C++.


def bad_requests(requests):
    """(what is wrong, request), of each signature."""
    for signature, inputs in requests:
        for name, value in inputs.items():
            wrong = {
                "rank": value[..., None],
                "size": np.concatenate([value, value], axis=-1) if value.ndim > 1 else value[:2],
                "rows": value[:3],
                "dtype": value.astype("int64"),
            }
            if len(inputs) == 1:
                del wrong["rows"]  # of what?
            if value.ndim > 1:
                wrong["a dimension less"] = value[0]
            for what, bad in wrong.items():
                yield f"{signature} {name}: {what}", (signature, {**inputs, name: bad})


@on_images_and_vectors
def test_bad_requests_fail_and_change_no_other(exported, answered):
    responses = answered["bad and good"]
    names = [name for name, _ in bad_requests(exported.requests)]
    for name, response in zip(names, responses[::2], strict=True):
        assert isinstance(response, smr.RunnerError), name
        assert response.code == tf.errors.INVALID_ARGUMENT, (name, response)
    for response in responses[1::2]:
        assert_same([response], exported.responses[:1], exported.tolerance)


def spoilt_requests(exported):
    """(request, response but for rows 1 and 2), with what no model knows in these."""
    *data, decode, sample = zip(exported.requests, exported.responses, strict=True)

    def spoilt(item, name, *values):
        (signature, inputs), response = item
        changed = inputs[name].copy()
        changed[1:3].reshape(2, -1)[:, 0] = values
        return (signature, {**inputs, name: changed}), response

    items = [spoilt(decode, "z", np.nan, np.inf), spoilt(sample, "temperature", -0.5, np.nan)]
    if exported.model.is_conditional:
        classes = exported.model.num_classes
        bad = (np.nan, -np.inf) if classes is None else (-2, classes)
        items += [spoilt(item, "condition", *bad) for item in (*data, decode, sample)]
    if "guidance" in decode[0][1]:
        items += [spoilt(item, "guidance", np.nan, -0.5) for item in (decode, sample)]
    if not exported.model.is_image:
        items += [spoilt(item, "x", np.nan, np.inf) for item in data]
    return items


@on_images_and_vectors
def test_values_have_results_of_their_own_row(exported, answered):
    """Empty batches, NaN, infinities, unknown labels and temperatures below zero, as documented."""
    for response, whole in zip(answered["empty"], exported.responses, strict=True):
        if exported.model.is_image and isinstance(response, smr.RunnerError):
            assert response.code == tf.errors.INVALID_ARGUMENT  # of oneDNN's convolution
            continue
        shapes = {name: value.shape for name, value in response.items()}
        assert shapes == {name: (0, *value.shape[1:]) for name, value in whole.items()}
    others = [0, 3, 4]
    spoilt = zip(answered["spoilt"], spoilt_requests(exported), strict=True)
    for response, (_, whole) in spoilt:
        assert_same(
            [{k: v[others] for k, v in response.items()}],
            [{k: v[others] for k, v in whole.items()}],
            exported.tolerance,
        )
        if not exported.model.is_image:
            assert all(np.isnan(v[1]).any() for v in response.values()) or "x" in response
    decode, sample = answered["spoilt"][:2]
    for row, response in ((1, decode), (2, decode), (2, sample)):
        # What is not finite, as what overflows, is NaN throughout, or black.
        x = response["x"][row]
        assert not x.any() if exported.model.is_image else np.isnan(x).all()
    # Conditions and weights of guidance; behind them, of vectors, single values of x.
    last = None if exported.model.is_image else -3
    for response in answered["spoilt"][2:last]:
        for value in response.values():
            assert not value[1:3].any() if value.dtype == np.uint8 else np.isnan(value[1:3]).all()


@pytest.mark.parametrize("rounds", [20, pytest.param(600, marks=pytest.mark.slow)])
def test_four_threads_at_once(rounds, exports, saved_model_runner):
    """Good and bad requests, for some 5 and 60 seconds; memory stays flat."""
    exported = exports(image_glow)
    requests = [*exported.requests, *(request for _, request in bad_requests(exported.requests))]
    assert 4 * rounds * len(requests) > 500
    threads, grown = smr.soak(
        saved_model_runner, exported.path, requests, 4, rounds, timeout=4 * rounds
    )
    for responses in threads:
        assert_same(responses[:5], exported.responses)
        assert all(isinstance(response, smr.RunnerError) for response in responses[5:])
    assert grown < 16 * 1024


# For TF Serving.


def warmup_requests(path):
    records = tf.data.TFRecordDataset(f"{path}/assets.extra/tf_serving_warmup_requests")
    requests = []
    for record in records:
        request = PredictionLog.FromString(record.numpy()).predict_log.request
        assert request.model_spec.name == "model"
        inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
        requests.append((request.model_spec.signature_name, inputs))
    return requests


@on_images_and_vectors
def test_warmup_asks_each_signature(exported, asked, answered):
    assert [name for name, _ in asked["warmup"]] == [name for name, _ in exported.requests]
    for response, wanted in zip(answered["warmup"], exported.responses, strict=True):
        assert {k: v.shape for k, v in response.items()} == {
            k: (1, *v.shape[1:]) for k, v in wanted.items()
        }


def test_warmup_needs_the_messages_of_tf_serving(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis.predict_pb2", None)
    model, _, _ = double_precision_vectors()
    with pytest.warns(UserWarning, match="pip install tensorflow-serving-api"):
        model.export(tmp_path / "model")
    assert not (tmp_path / "model" / "assets.extra").exists()
    assert tf.saved_model.load(str(tmp_path / "model")).signatures


def example(name):
    return SimpleNamespace(**runpy.run_path(str(TOOLS / "examples" / f"{name}.py")))


def signature_inputs(path):
    """{signature: {input: (dtype, shape)}} as the SavedModel says."""
    proto = saved_model_pb2.SavedModel.FromString(
        (pathlib.Path(path) / "saved_model.pb").read_bytes()
    )
    return {
        name: {
            key: (tf.as_dtype(info.dtype), tf.TensorShape(info.tensor_shape))
            for key, info in signature.inputs.items()
        }
        for name, signature in proto.meta_graphs[0].signature_def.items()
    }


@on_images_and_vectors
def test_grpc_client(exported):
    client = example("grpc_client")
    specs = signature_inputs(exported.path)
    for (signature, inputs), wanted in zip(exported.requests, exported.responses):
        sent = client.make_request("glow", signature, inputs).SerializeToString()
        request = PredictRequest.FromString(sent)
        assert (request.model_spec.name, request.model_spec.signature_name) == ("glow", signature)
        received = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
        assert received.keys() == specs[signature].keys()
        for name, (dtype, shape) in specs[signature].items():
            assert received[name].dtype == dtype and shape.is_compatible_with(received[name].shape)
        inputs = {name: tf.constant(value) for name, value in received.items()}
        outputs = exported.loaded.signatures[signature](**inputs)
        response = PredictResponse(
            outputs={name: tf.make_tensor_proto(value) for name, value in outputs.items()}
        )
        parsed = {name: client.parse_response(response, name) for name in outputs}
        assert_same([parsed], [wanted], exported.tolerance)


@on_images_and_vectors
def test_rest_client(exported):
    client = example("rest_client")
    specs = signature_inputs(exported.path)
    for (signature, inputs), wanted in zip(exported.requests, exported.responses):
        lists = {name: value.tolist() for name, value in inputs.items()}
        request = json.loads(client.make_request(signature, lists))
        assert request["signature_name"] == signature
        assert request["inputs"].keys() == specs[signature].keys()
        received = {
            name: tf.ensure_shape(tf.constant(request["inputs"][name], dtype), shape)
            for name, (dtype, shape) in specs[signature].items()
        }
        tensors = exported.loaded.signatures[signature](**received)
        outputs = {name: tensor.numpy() for name, tensor in tensors.items()}
        lists = {name: value.tolist() for name, value in outputs.items()}
        # As TF Serving writes it, whose rule for a single output this is.
        text = json.dumps({"outputs": lists if len(lists) > 1 else next(iter(lists.values()))})
        parsed = {
            name: np.array(client.parse_response(text, name), value.dtype)
            for name, value in outputs.items()
        }
        assert_same([parsed], [wanted], exported.tolerance)
