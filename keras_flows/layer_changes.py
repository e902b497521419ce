"""What was changed in a model's layers after it was made, so that a copy can be changed alike."""

import keras

from keras_flows.private import flatten_layers


def changes_of(model):
    """A config of the layers that are frozen, quantised or have LoRA; None if there are none.

    Layers are known by their position among all layers of the model.
    """
    layers = list(flatten_layers(model))
    lora = [i for i, layer in enumerate(layers) if getattr(layer, "lora_enabled", False)]
    changes = {
        "frozen": [i for i, layer in enumerate(layers) if not layer.trainable],
        "quantized": [
            [i, layer.quantization_mode, _quantization_config(layer)]
            for i, layer in enumerate(layers)
            if layer.quantization_mode is not None
        ],
        "lora": [[i, layers[i].lora_rank, layers[i].lora_alpha] for i in lora],
    }
    changes = {name: value for name, value in changes.items() if value}
    return {"num_layers": len(layers), **changes} if changes else None


def change(model, changes):
    """Changes the layers of `model`, new from its constructor, as `changes_of` another of its kind.

    What the constructor has done already is left as it is.
    """
    layers = list(flatten_layers(model))
    if changes["num_layers"] != len(layers):
        raise ValueError(
            "The config tells which layers were frozen, quantised or given LoRA, by their position "
            f"among {changes['num_layers']} layers, and the model that it makes has {len(layers)}. "
            "For one without all that, leave out `set_later`."
        )
    for i, mode, config in changes.get("quantized", ()):
        if layers[i].quantization_mode is None:
            config = keras.saving.deserialize_keras_object(config)
            layers[i].quantize(mode, config=config, type_check=False)
    for i, rank, alpha in changes.get("lora", ()):
        if not layers[i].lora_enabled:
            layers[i].enable_lora(rank, lora_alpha=alpha)
    frozen = set(changes.get("frozen", ()))
    for i, layer in enumerate(layers):  # outer ones first, as each passes it on to those inside
        if layer.trainable == (i in frozen):
            layer.trainable = i not in frozen


def _quantization_config(layer):
    return keras.saving.serialize_keras_object(getattr(layer, "quantization_config", None))
