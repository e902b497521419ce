#!/usr/bin/env python
"""Exports a trained model as the next version in a folder that TF Serving mounts.

    tools/export.py runs/cifar10/model.keras --output served/cifar10

writes served/cifar10/1, then 2, and so on; adds the model to served/models.config, and writes
served/batching.config if there is none. It prints how to serve it and how to ask. The model may
also be a preset's name.
"""

import argparse
import json
import pathlib
import shlex
import urllib.parse

import models
import numpy as np
import tensorflow as tf
from flag_types import folder
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from keras_flows import folders

BATCHING = """\
max_batch_size { value: 64 }
batch_timeout_micros { value: 1000 }
max_enqueued_batches { value: 1000 }
num_batch_threads { value: 4 }
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help=models.HELP)
    parser.add_argument(
        "--output", required=True, type=folder, help="folder of the model's versions"
    )
    options = parser.parse_args()
    output = options.output.resolve()
    with_model(output)  # refuses a file that it could not extend before the work is done

    version = output / str(next_version(output))
    models.load(options.model).export(version)
    # Read again: meanwhile another export may have added its model.
    config = output.parent / "models.config"
    with folders.replaced_file(config) as scratch:
        pathlib.Path(scratch).write_text(with_model(output))
    batching = output.parent / "batching.config"
    if not batching.exists():
        batching.write_text(BATCHING)

    print(f"Exported {version}")
    signatures = tf.saved_model.load(str(version)).signatures
    for name, signature in signatures.items():
        inputs = signature.structured_input_signature[1]
        print(f"  {name}: {_tensors(inputs)} -> {_tensors(signature.structured_outputs)}")
    inputs = {"seed": [[1, 0], [1, 1]], "temperature": [0.7, 0.7]}
    taken, further = signatures["sample"].structured_input_signature[1], ""
    if "condition" in taken:
        spec = taken["condition"]
        example = np.zeros(spec.shape[1:], spec.dtype.as_numpy_dtype).tolist()
        inputs["condition"] = [example, example]
        further += f" --condition '{json.dumps(example)}'"
    if "guidance" in taken:
        inputs["guidance"] = [1.0, 1.0]
        further += " --guidance 1.0"
    request = json.dumps({"signature_name": "sample", "inputs": inputs})
    print(
        USAGE.format(
            volume=shlex.quote(f"{output.parent}:/models"),
            url=f"http://localhost:8501/v1/models/{urllib.parse.quote(output.name)}:predict",
            name=shlex.quote(output.name),
            request=request,
            further=further,
        )
    )


USAGE = """
Serve it (gRPC on port 8500, REST on 8501):

  docker run --rm -p 8500:8500 -p 8501:8501 -v {volume} tensorflow/serving \\
      --model_config_file=/models/models.config \\
      --enable_batching --batching_parameters_file=/models/batching.config

Ask for two samples by REST, and by gRPC:

  curl {url} -d \\
      '{request}'

  python tools/examples/grpc_client.py localhost:8500 {name} --n 2{further}"""


def next_version(folder):
    """One more than the largest there is."""
    versions = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
    return max(versions, default=0) + 1


def with_model(folder):
    """The text of models.config beside `folder` with its model in it; the rest stays as it is."""
    path = folder.parent / "models.config"
    text = path.read_text() if path.exists() else ""
    try:
        config = _parse(text)
    except text_format.ParseError as error:
        raise SystemExit(f"{path} is not a configuration of TF Serving: {error}") from error
    models = config.model_config_list.config
    if folder.name in [model.name for model in models]:
        return text
    if not config.WhichOneof("config"):
        text += "model_config_list {\n}\n"
    model = models.add(
        name=folder.name, base_path=f"/models/{folder.name}", model_platform="tensorflow"
    )
    # As text, in front of the last brace: what else is in the file may be comments.
    entry = f"  config {{\n{text_format.MessageToString(model, indent=4)}  }}\n"
    before, brace, after = text.rpartition("}")
    text = f"{before.rstrip()}\n{entry}{brace}{after}"
    try:
        if _parse(text) == config:
            return text
    except text_format.ParseError:
        pass
    raise SystemExit(f"{path} cannot be extended. Add to its model_config_list:\n{entry}")


def _parse(text):
    return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())


def _tensors(specs):
    return ", ".join(f"{name} {spec.dtype.name}{spec.shape}" for name, spec in specs.items())


if __name__ == "__main__":
    main()
