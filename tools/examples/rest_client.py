#!/usr/bin/env python
"""Asks TF Serving by REST for samples and for their log-likelihoods. Needs nothing but Python.

tools/examples/rest_client.py http://localhost:8501/v1/models/mnist --n 4
"""

import argparse
import json
import urllib.request


def make_request(signature, inputs):
    """The JSON of a request; `inputs` are nested lists, each with a row for each example."""
    return json.dumps({"signature_name": signature, "inputs": inputs})


def parse_response(text, output):
    """The output of that name, nested lists. TF Serving does not name an only one."""
    outputs = json.loads(text)["outputs"]
    return outputs[output] if isinstance(outputs, dict) else outputs


def predict(url, signature, inputs, output):
    request = urllib.request.Request(
        f"{url}:predict",
        make_request(signature, inputs).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return parse_response(response.read(), output)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="http://HOST:8501/v1/models/NAME")
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
        condition = {"condition": [options.condition] * options.n}
    seeds = {
        "seed": [[options.seed, row] for row in range(options.n)],
        "temperature": [options.temperature] * options.n,
    }
    if options.guidance is not None:
        seeds["guidance"] = [options.guidance] * options.n
    samples = predict(options.url, "sample", {**seeds, **condition}, "x")
    log_probs = predict(options.url, "log_prob", {"x": samples, **condition}, "log_prob")
    for row, log_prob in enumerate(log_probs):
        print(f"sample {row}: log-likelihood {log_prob:.2f} nats")


if __name__ == "__main__":
    main()
