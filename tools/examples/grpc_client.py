#!/usr/bin/env python
"""Asks TF Serving by gRPC for samples and for their log-likelihoods.

pip install tensorflow-serving-api
tools/examples/grpc_client.py localhost:8500 mnist --n 4
"""

import argparse
import json

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def make_request(model, signature, inputs):
    """`inputs` are arrays, each with a row for each example."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    return request


def parse_response(response, output):
    """The output of that name, as an array."""
    return tf.make_ndarray(response.outputs[output])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", help="HOST:8500")
    parser.add_argument("model", help="its name in models.config")
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--condition", type=json.loads, help="of a conditional model, JSON: a label, or [0.1, -0.2]"
    )
    parser.add_argument("--guidance", type=float, help="of a model that labels can guide, TarFlow")
    options = parser.parse_args()

    condition = {}
    if options.condition is not None:
        dtype = "int32" if isinstance(options.condition, int) else "float32"
        condition = {"condition": np.array([options.condition] * options.n, dtype)}
    seeds = {
        "seed": np.array([[options.seed, row] for row in range(options.n)], "int32"),
        "temperature": np.full(options.n, options.temperature, "float32"),
    }
    if options.guidance is not None:
        seeds["guidance"] = np.full(options.n, options.guidance, "float32")
    with grpc.insecure_channel(options.address) as channel:
        server = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def predict(signature, inputs, output):
            request = make_request(options.model, signature, inputs)
            return parse_response(server.Predict(request, timeout=60), output)

        samples = predict("sample", {**seeds, **condition}, "x")
        log_probs = predict("log_prob", {"x": samples, **condition}, "log_prob")
    for row, log_prob in enumerate(log_probs):
        print(f"sample {row}: log-likelihood {log_prob:.2f} nats")


if __name__ == "__main__":
    main()
