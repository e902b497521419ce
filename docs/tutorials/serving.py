# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Serve a flow
#
# Export a model to a folder, and ask it as a client would: for densities, latents and samples. What
# TF Serving does over the network, TensorFlow does here; no server is needed, and half a minute of
# computing.

# %%
import json

import numpy as np
import tensorflow as tf
from matplotlib import pyplot

import keras_flows

# %% [markdown]
# ## Export
#
# Take any trained flow; here it is a preset, of the two moons. `export` writes a SavedModel. Its
# last folder is a version: TF Serving serves the highest, and changes over when a new one appears.

# %%
model = keras_flows.zoo.NSF.from_preset("nsf_moons")
model.export("served/moons/1")

# %% [markdown]
# Load it as a server does, without a line of Python of the model's. A signature is a function of
# named tensors, a row for each example.

# %%
signatures = tf.saved_model.load("served/moons/1").signatures
for name, signature in signatures.items():
    inputs = ", ".join(signature.structured_input_signature[1])
    print(f"{name}: {inputs} -> {', '.join(signature.structured_outputs)}")
assert {"log_prob", "encode", "decode", "sample"} < set(signatures)

# %% [markdown]
# ## Ask for densities
#
# The numbers are those of Python.

# %%
x = np.array([[0.0, 1.0], [1.0, -0.5], [3.0, 3.0]], "float32")
log_prob = signatures["log_prob"](x=tf.constant(x))["log_prob"]
print("nats:", np.round(log_prob, 2))
np.testing.assert_allclose(log_prob, model.log_prob(x), rtol=1e-4)

# %% [markdown]
# The first two points are on the moons, at -0.41 and -0.49 nats. The third is far away, at -43.93.
#
# ## Ask for samples
#
# A server remembers nothing, so each row brings its seed, two whole numbers, and its temperature.
# The same seed gives the same sample, whichever server answers, and whatever else is in the batch.

# %%
seeds = np.stack([np.full(1500, 7), np.arange(1500)], axis=1).astype("int32")
temperatures = np.linspace(0, 1.5, 1500, dtype="float32")
ask = signatures["sample"]
drawn = ask(seed=tf.constant(seeds), temperature=tf.constant(temperatures))["x"]

alone = ask(seed=tf.constant(seeds[900:901]), temperature=tf.constant(temperatures[900:901]))["x"]
np.testing.assert_allclose(alone[0], drawn[900], atol=1e-4)

# %% [markdown]
# Look at all of that request. Cold rows come from the middle of the latents, where one moon passes
# into the other; hot ones go beyond the moons. At 1, rows are the density's.

# %%
_, ax = pyplot.subplots(figsize=(5.6, 3.2), layout="constrained")
points = ax.scatter(*np.transpose(drawn), c=temperatures, s=6, cmap="plasma", linewidths=0)
ax.figure.colorbar(points, label="temperature")
ax.set_aspect("equal")

# %% [markdown]
# In Python, `model.sample(n, seed=7)` has the seeds [7, 0], [7, 1] and so on.

# %%
first = ask(seed=tf.constant(seeds[:5]), temperature=tf.ones(5))["x"]
np.testing.assert_allclose(first, model.sample(5, seed=7), atol=1e-4)

# %% [markdown]
# ## Ask something wrong
#
# Python refuses bad data with an error. A server must not: it puts several clients' rows into one
# batch, and one of them must not fail for the other. So a bad value spoils its own row, and no
# other.

# %%
spoilt = x.copy()
spoilt[1, 0] = np.nan
answer = signatures["log_prob"](x=tf.constant(spoilt))["log_prob"].numpy()
print("nats:", np.round(answer, 2))
assert np.isnan(answer[1])
np.testing.assert_array_equal(answer[[0, 2]], np.asarray(log_prob)[[0, 2]])

# %% [markdown]
# Check answers for NaN, then. It also stands for a value outside of the model's bounds, and for a
# latent so far out that it overflows; [Serving](../serving.md#what-a-request-may-hold) has the
# list. Only a request of another shape fails as a whole.

# %%
refused = ""
try:
    signatures["log_prob"](x=tf.zeros((2, 3)))
except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
    refused = str(error)
assert refused

# %% [markdown]
# ## Ask in JSON
#
# Over REST, a request names the signature, and lists its inputs. This function is the server, but
# for the network.


# %%
def serve(body):
    request = json.loads(body)
    signature = signatures[request["signature_name"]]
    specs = signature.structured_input_signature[1]
    given = request["inputs"]
    inputs = {name: tf.constant(given[name], specs[name].dtype) for name in specs}
    outputs = {name: value.numpy().tolist() for name, value in signature(**inputs).items()}
    return json.dumps({"outputs": outputs})


body = {"seed": [[1, 0], [1, 1]], "temperature": [0.7, 0.7]}
print(serve(json.dumps({"signature_name": "sample", "inputs": body})))

# %% [markdown]
# ## Where to go next
#
# - Start the real server, with batches, by one command: [Serving](../serving.md).
# - Clients for REST and gRPC: [rest_client.py](../../tools/examples/rest_client.py),
#   [grpc_client.py](../../tools/examples/grpc_client.py).
# - Without TensorFlow: [ONNX and OpenVINO](../onnx_and_openvino.md).
# - What an answer costs: [Benchmarks](../benchmarks.md#serving).
