"""What a bijection gets as `condition`: a condition, or what a network makes of it."""

import keras

from keras_flows.arguments import require
from keras_flows.condition_spec import make_condition_spec
from keras_flows.private import flatten_layers


def features_shape(spec, condition_network=None):
    """What layers that read it take as `condition_shape`; None of an unconditional model.

    The shape of one example of the network's output (calling it builds it); without a network,
    (num_classes,), as which layers see labels, or the condition's own.

    Raises:
        ValueError: for a network without condition, or of whose output nothing can be read.
        TypeError: for a network that is no Keras layer.
    """
    if condition_network is None:
        return spec.layer_shape
    require(
        isinstance(condition_network, keras.layers.Layer),
        "Argument `condition_network` must be a Keras layer or model",
        error=TypeError,
        condition_network=condition_network,
    )
    require(
        spec.shape is not None,
        "Argument `condition_network` needs `num_classes` or `condition_shape`",
        condition_network=condition_network,
    )
    output = condition_network(keras.KerasTensor((None, *spec.shape), spec.dtype))
    received = keras.tree.map_structure(lambda each: f"{each.dtype} {each.shape}", output)
    require(
        isinstance(output, keras.KerasTensor)
        and len(output.shape) > 1
        and None not in output.shape[1:]
        and "float" in output.dtype,
        "Argument `condition_network` must give one tensor of floats, (batch, features), (batch, "
        "tokens, features) or (batch, height, width, features), of known sizes",
        output=received,
    )
    return tuple(output.shape[1:])


def condition_of_layers(num_classes, condition_shape, condition_network):
    """`features_shape` of a model's arguments."""
    return features_shape(
        make_condition_spec(num_classes, condition_shape, "float32"), condition_network
    )


def takes_null_label(bijection):
    """Whether the label -1 stands for none, in each layer of the bijection that reads labels."""
    layers = flatten_layers(bijection) if isinstance(bijection, keras.layers.Layer) else ()
    readers = [layer for layer in layers if getattr(layer, "reads_condition", False)]
    return bool(readers) and all(getattr(layer, "takes_null_label", False) for layer in readers)


def check_readers(bijection, spec, condition_network):
    """Refuses a condition that no layer of the bijection reads, or that one reads otherwise.

    Raises as `features_shape`, too.
    """
    features = features_shape(spec, condition_network)
    if features is None:
        return
    layers = list(flatten_layers(bijection))
    argument = spec.argument.partition("=")[0]
    if not any(getattr(layer, "reads_condition", False) for layer in layers):
        raise ValueError(
            f"Argument `{argument}` needs a bijection of which some layer reads the condition, as "
            f"couplings with condition_shape={features} do, `layers.LearnedPrior(num_classes=n)`, "
            "or one of your own with `reads_condition = True`: else the density is the same for "
            f"all. Received: {spec.argument}"
        )
    labels = getattr(spec, "num_classes", None) if condition_network is None else None
    for layer in layers:
        reads = getattr(layer, "reads_condition", False)
        num_classes = getattr(layer, "num_classes", None) if reads else None
        if num_classes not in (None, labels):
            given = "features" if labels is None else f"labels of {labels} classes"
            raise ValueError(
                f"Argument `{argument}`, by way of the `condition_network` if there is one, must "
                f"give what the layers read: {layer.name!r} has num_classes={num_classes}, and is "
                f"given {given}. Received: {spec.argument}"
            )
        shape = getattr(layer, "condition_shape", None)
        if shape is not None and tuple(shape) != features:
            raise ValueError(
                f"Argument `{argument}`, by way of the `condition_network` if there is one, must "
                f"give what the layers read: {layer.name!r} has condition_shape={tuple(shape)}, "
                f"and is given {features}. Received: {spec.argument}"
            )
