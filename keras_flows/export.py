"""A Flow as a SavedModel with named signatures, as TF Serving loads it."""

import contextlib
import os
import warnings

import tensorflow as tf

from keras_flows.batches import clear_rows, spoil_rows
from keras_flows.folders import new_folder
from keras_flows.precomputation import leaves_of, supply


def export(flow, path):
    """Writes the SavedModel of `flow` into the folder `path`, which must be empty or not exist.

    Signatures, each a dict of named tensors in and out, batched along axis 0:

    - `serving_default`: x -> latent, log_prob
    - `log_prob`: x -> log_prob, in nats
    - `encode`: x -> latent (batch, D)
    - `decode`: z (batch, D) -> x
    - `sample`: seed (batch, 2) int32, temperature (batch,) -> x, row i from seed[i] alone

    Of a model that labels can guide, `decode` and `sample` also take `guidance` (batch,).

    Inputs of other shapes than these, or of different numbers of rows, fail. Values do not, as a
    server answers several requests in one batch: NaN, infinity, what lies outside of `bounds`,
    fractions in `integer_columns`, labels out of range and latents whose inverse overflows, as at
    high temperatures, and a guidance below 0, spoil their own row alone (NaN, or a black image),
    and a temperature below 0 mirrors the latent. An empty batch gives empty outputs; of images, on
    a CPU with oneDNN, an error.

    Images are uint8, all else float32; a conditional model takes `condition` in each, labels as
    int32 (batch,). All convert to ONNX and OpenVINO, but `sample` of a model with `noise`, which
    differentiates. What the weights alone decide is computed now
    and stored in their place, so the SavedModel cannot be trained further. It needs TensorFlow
    alone, without Python ops or XLA, and appears under its name complete, with a request for each
    signature in `assets.extra`, by which TF Serving warms up (if `tensorflow-serving-api` is
    installed; a warning otherwise).

    Raises:
        FileExistsError: if `path` holds something.
    """
    with new_folder(path, "path") as scratch:
        module = tf.Module()
        signatures = _signatures(flow)
        # What the signatures read must hang on the object that is saved; nothing else shall.
        traced = [function.get_concrete_function() for function in signatures.values()]
        read = {id(variable): variable for each in traced for variable in each.graph.variables}
        module.weights = list(read.values())
        tf.saved_model.save(module, scratch, signatures=signatures)
        model_name = os.path.basename(os.path.dirname(os.path.abspath(path)))
        _write_warmup(model_name, signatures, os.path.join(scratch, "assets.extra"))


def _signatures(flow):
    x = tf.TensorSpec(
        (None, *flow.input_shape), tf.uint8 if flow.is_image else tf.float32, name="x"
    )
    z = tf.TensorSpec((None, flow.size), tf.float32, name="z")
    seed = tf.TensorSpec((None, 2), tf.int32, name="seed")
    temperature = tf.TensorSpec((None,), tf.float32, name="temperature")
    condition, guidance = (), ()
    if flow.is_conditional:
        spec = flow.data_spec.condition
        dtype = tf.float32 if tf.as_dtype(spec.dtype).is_floating else spec.dtype
        condition = (tf.TensorSpec((None, *spec.shape), dtype, name="condition"),)
        if spec.takes_null_label:
            guidance = (tf.TensorSpec((None,), tf.float32, name="guidance"),)

    # Each direction is traced once, and shared by the signatures that need it. What it makes of
    # the weights alone, the inverse of a matrix for instance, is computed here, not when served.
    leaves = leaves_of(flow.bijection)
    precomputed = _precompute(leaves)

    def using_precomputed(inverse):
        return supply(leaves, tf.nest.map_structure(tf.identity, precomputed[inverse]), inverse)

    @tf.function(autograph=False)
    def forward(x, *condition):
        with using_precomputed(inverse=False):
            x = flow.dequantize(flow.data_spec.spoil_broken(x))
            return _to_float32(*flow.latent_and_log_prob(x, *condition))

    @tf.function(autograph=False)
    def inverse(z, condition=None, guidance=None, denoise=False):
        if guidance is not None:
            guidance = tf.cast(guidance, flow.compute_dtype)
        with contextlib.ExitStack() as known:
            known.enter_context(using_precomputed(inverse=True))
            if denoise:
                known.enter_context(using_precomputed(inverse=False))
            z = tf.cast(z, flow.compute_dtype)
            return flow.data_of(z, condition, guidance, denoise=denoise)

    def serving_default(x, *condition):
        latent, log_prob = forward(x, *condition)
        return {"latent": latent, "log_prob": log_prob}

    def log_prob(x, *condition):
        return {"log_prob": forward(x, *condition)[1]}

    def encode(x, *condition):
        return {"latent": forward(x, *condition)[0]}

    def decode(z, *condition, **options):
        data = inverse(z, *condition, **options)
        return {"x": data if flow.is_image else _to_float32(data)[0]}

    def sample(seed, temperature, *condition):
        temperature = tf.cast(temperature, flow.compute_dtype)
        denoise = flow.data_spec.deviation is not None
        return decode(flow.latents_of(seed, temperature), *condition, denoise=denoise)

    return {
        function.__name__: tf.function(
            _checked(function, flow, len(arguments)),
            input_signature=(*arguments, *condition, *(guidance if inverts else ())),
            autograph=False,
        )
        for function, inverts, *arguments in (
            (serving_default, False, x),
            (log_prob, False, x),
            (encode, False, x),
            (decode, True, z),
            (sample, True, seed, temperature),
        )
    }


def _checked(function, flow, count):
    """`function` that fails on inputs of wrong shapes, which a server does not compare.

    Behind `count` of its tensors come the condition and the guidance, if there are any; rows that
    break the rule of one are spoilt.
    """
    spec = flow.data_spec.condition

    def checked(*tensors):
        rows = tf.shape(tensors[0])[0]
        same = [tf.debugging.assert_equal(tf.shape(other)[0], rows) for other in tensors[1:]]
        with tf.control_dependencies(same):
            tensors = [tf.ensure_shape(tensor, tensor.shape) for tensor in tensors]
        if not flow.is_conditional:
            return function(*tensors)
        condition, *guidance = tensors[count:]
        condition = tf.cast(condition, spec.dtype)
        broken = spec.are_broken(condition)
        for weights in guidance:
            broken |= ~(tf.math.is_finite(weights) & (weights >= 0))
        given = [clear_rows(broken, each) for each in (condition, *guidance)]
        results = function(*tensors[:count], *given)
        return {name: spoil_rows(broken, result) for name, result in results.items()}

    return checked


def _write_warmup(model_name, signatures, folder):
    """A request of one example, all zeros, for each signature."""
    try:
        from tensorflow_serving.apis.predict_pb2 import PredictRequest
        from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog, PredictLog
    except ImportError:
        warnings.warn(
            "Exported without requests by which TF Serving warms up: they need "
            "`pip install tensorflow-serving-api`.",
            stacklevel=4,
        )
        return
    os.makedirs(folder)
    with tf.io.TFRecordWriter(os.path.join(folder, "tf_serving_warmup_requests")) as file:
        for name, function in signatures.items():
            request = PredictRequest()
            request.model_spec.name = model_name
            request.model_spec.signature_name = name
            for spec in function.input_signature:
                example = tf.zeros([1, *spec.shape[1:]], spec.dtype)
                request.inputs[spec.name].CopyFrom(tf.make_tensor_proto(example))
            log = PredictionLog(predict_log=PredictLog(request=request))
            file.write(log.SerializeToString())


def _precompute(leaves):
    """What they make of their weights alone for each direction, [forward, inverse], as variables.

    They share what is equal, the kernels of the couplings' networks above all.
    """
    # In one graph, where TensorFlow computes once what both ask for.
    both = tf.function(
        lambda: [[leaf.precompute(inverse) for leaf in leaves] for inverse in (False, True)],
        autograph=False,
    )
    variables = {}

    def variable(tensor):
        key = (tensor.dtype, tuple(tensor.shape), tensor.numpy().tobytes())
        return variables.setdefault(key, tf.Variable(tensor, trainable=False))

    return tf.nest.map_structure(variable, both())


def _to_float32(*tensors):
    return [tf.cast(tensor, tf.float32) for tensor in tensors]
