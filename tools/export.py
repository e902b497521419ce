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

import models
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

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
        "--output", required=True, type=pathlib.Path, help="folder of the model's versions"
    )
    options = parser.parse_args()
    output = options.output.absolute()
    config = add_to_config(output)

    version = output / str(next_version(output))
    models.load(options.model).export(version)
    (output.parent / "models.config").write_text(config)
    batching = output.parent / "batching.config"
    if not batching.exists():
        batching.write_text(BATCHING)

    print(f"Exported {version}")
    signatures = tf.saved_model.load(str(version)).signatures
    for name, signature in signatures.items():
        inputs = signature.structured_input_signature[1]
        print(f"  {name}: {_tensors(inputs)} -> {_tensors(signature.structured_outputs)}")
    inputs = {"seed": [[1, 0], [1, 1]], "temperature": [0.7, 0.7]}
    conditional = "labels" in signatures["sample"].structured_input_signature[1]
    if conditional:
        inputs["labels"] = [3, 3]
    request = json.dumps({"signature_name": "sample", "inputs": inputs})
    label = " --label 3" if conditional else ""
    print(USAGE.format(root=output.parent, name=output.name, request=request, label=label))


USAGE = """
Serve it (gRPC on port 8500, REST on 8501):

  docker run --rm -p 8500:8500 -p 8501:8501 -v '{root}:/models' tensorflow/serving \\
      --model_config_file=/models/models.config \\
      --enable_batching --batching_parameters_file=/models/batching.config

Ask for two samples by REST, and by gRPC:

  curl http://localhost:8501/v1/models/{name}:predict -d \\
      '{request}'

  python tools/examples/grpc_client.py localhost:8500 {name} --n 2{label}"""


def next_version(folder):
    """One more than the largest there is."""
    versions = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    return max(versions, default=0) + 1


def add_to_config(folder):
    """The text of models.config beside `folder` with its model in it; the rest stays as it is."""
    path = folder.parent / "models.config"
    config = model_server_config_pb2.ModelServerConfig()
    if path.exists():
        try:
            text_format.Parse(path.read_text(), config)
        except text_format.ParseError as error:
            raise SystemExit(f"{path} is not a configuration of TF Serving: {error}") from error
    models = config.model_config_list.config
    if folder.name not in [model.name for model in models]:
        models.add(
            name=folder.name, base_path=f"/models/{folder.name}", model_platform="tensorflow"
        )
        return text_format.MessageToString(config)
    return path.read_text()


def _tensors(specs):
    return ", ".join(f"{name} {spec.dtype.name}{spec.shape}" for name, spec in specs.items())


if __name__ == "__main__":
    main()
