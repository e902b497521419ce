import keras

from keras_flows import layers
from keras_flows.arguments import check_input_shape, check_integers, require
from keras_flows.condition_features import condition_of_layers
from keras_flows.flow import Flow
from keras_flows.layers.squeeze import cell_order
from keras_flows.networks import MLP, ResNet, WeightNormConv2D
from keras_flows.zoo.levels import resolve_levels
from keras_flows.zoo.pairs import in_pairs
from keras_flows.zoo.scaling import scale

# Of the weight norm's magnitudes and of the checkerboard couplings' bound, as released; in nats.
L2 = 5e-5


@keras.saving.register_keras_serializable(package="keras_flows")
class RealNVP(Flow):
    """RealNVP: density estimation with real-valued non-volume preserving transformations.

    Dinh, Sohl-Dickstein and Bengio 2016 (arXiv:1605.08803), the released code where paper and code
    differ. Images: a logit; then in each level `depth` checkerboard couplings, a squeeze, `depth`
    channel couplings, and half of the cells factored out, in the ordered squeeze's order; the last
    level has `depth` + 1 checkerboard couplings only. Vectors: `depth` couplings whose halves
    take turns, with MLPs.

    Args:
        input_shape: (height, width, channels), both sizes divisible by 2^(levels - 1), or
            (D,), D >= 2.
        levels: L, the paper's scales; at most 2 by default. 1 for vectors.
        depth: couplings, as above; by default the paper's 3 for images, 8 for vectors.
        width: of the networks; for images in the first level, doubled with each squeeze. By default
            32 for images and 128 for vectors.
        num_blocks: residual blocks of a ResNet, or hidden layers of an MLP.
        batch_norm: whether a batch normalisation follows each coupling. By default it does for
            images, as in the paper, and not for vectors: a last batch of a row or two would spoil
            the averages, and `standardize` serves.
        logit_alpha: of the `Logit` that images start with; None for none.
        reversible: as for `Glow`, from `depth` 6 on; needs `batch_norm=False`.
        standardize: whether vectors are standardised first (`layers.Standardize`).
        bounds, integer_columns: of vectors, as for `Flow`; those with bounds go through a `Logit`.
        num_classes, condition_shape, condition_network: as for `Flow`; all couplings read the
            condition.
        bits, dequantization, adapt_examples, seed: as for `Flow`.

    Raises:
        ValueError: for arguments out of range, and sizes that `levels` cannot halve.

    Example:

    ```python
    model = keras_flows.zoo.RealNVP((2,))
    model.compile("adam")
    model.fit(np.random.normal(size=(64, 2)), verbose=0)
    model.log_prob(np.zeros((1, 2)))             # (1,)
    ```
    """

    defaults_of_old_configs = {"standardize": False}

    def __init__(
        self,
        input_shape,
        *,
        levels=None,
        depth=None,
        width=None,
        num_blocks=2,
        batch_norm=None,
        logit_alpha=0.05,
        reversible=False,
        num_classes=None,
        condition_shape=None,
        condition_network=None,
        bits=None,
        standardize=True,
        bounds=None,
        integer_columns=None,
        adapt_examples=None,
        seed=None,
        dtype=None,
        **kwargs,
    ):
        check_input_shape(input_shape)
        is_image = len(input_shape) == 3
        depth = (3 if is_image else 8) if depth is None else depth
        width = (32 if is_image else 128) if width is None else width
        batch_norm = is_image if batch_norm is None else batch_norm
        check_integers(1, depth=depth, width=width, num_blocks=num_blocks)
        levels = resolve_levels(levels, input_shape, default=2, unsqueezed=1)
        alpha = logit_alpha if is_image else None
        columns = {"bounds": bounds, "integer_columns": integer_columns}
        noise = kwargs.get("noise")
        first = scale(*(input_shape, bits, alpha, standardize, noise), **columns, dtype=dtype)
        require(
            not (reversible and batch_norm),
            "Argument `reversible` needs batch_norm=False: batch normalisation forgets its batch's "
            "moments and cannot be inverted in training",
            reversible=reversible,
            batch_norm=batch_norm,
        )

        condition = condition_of_layers(num_classes, condition_shape, condition_network)

        l2 = keras.regularizers.L2(L2)

        def in_turns(coupling, number):
            return in_pairs(coupling, number, reversible=reversible, dtype=dtype)

        def vector_coupling(swap):
            network = MLP(width, num_blocks, dtype=dtype)
            norm = [layers.BatchNorm(dtype=dtype)] if batch_norm else []
            options = {"swap": swap, "scale": "tanh", "condition_shape": condition, "dtype": dtype}
            return [layers.AffineCoupling(network, **options), *norm]

        def image_couplings(number, partition, channels, width):
            """So many couplings, the two parts in turn, that change `channels` channels each."""
            checkerboard = partition == "checkerboard"
            of_layer = {"magnitude_regularizer": l2, "dtype": dtype}

            def coupling(swap):
                place = {"partition": partition, "swap": swap, "dtype": dtype}
                coupling = layers.AffineCoupling(
                    ResNet(width, num_blocks, masked=checkerboard, **of_layer),
                    scale="tanh",
                    output_layer=WeightNormConv2D(2 * channels, 1, **of_layer),
                    bound_initializer="zeros" if checkerboard else "ones",
                    bound_regularizer=l2 if checkerboard else None,
                    condition_shape=condition,
                    **place,
                )
                return [coupling, layers.BatchNorm(**place)] if batch_norm else [coupling]

            return in_turns(coupling, number)

        def level(i):
            # A level squeezes by 4 and hands on half: its successor has twice the channels.
            channels, level_width = input_shape[-1] * 2**i, width * 2**i
            if i == levels - 1:
                couplings = image_couplings(depth + 1, "checkerboard", channels, level_width)
                return layers.Chain(couplings, dtype=dtype)
            return layers.Chain(
                [
                    *image_couplings(depth, "checkerboard", channels, level_width),
                    layers.Squeeze(dtype=dtype),
                    *image_couplings(depth, "half", 2 * channels, 2 * level_width),
                    # As if unsqueezed and squeezed in order.
                    layers.Permute(cell_order(channels), dtype=dtype),
                ],
                dtype=dtype,
            )

        if is_image:
            rest = [layers.MultiScale([level(i) for i in range(levels)], dtype=dtype)]
        else:
            rest = in_turns(vector_coupling, depth)
        super().__init__(
            layers.Chain([*first, *rest], dtype=dtype),
            input_shape,
            bits=bits,
            **columns,
            num_classes=num_classes,
            condition_shape=condition_shape,
            condition_network=condition_network,
            adapt_examples=adapt_examples,
            seed=seed,
            dtype=dtype,
            **kwargs,
        )
        self.levels = levels
        self.depth = depth
        self.width = width
        self.num_blocks = num_blocks
        self.batch_norm = batch_norm
        self.logit_alpha = logit_alpha
        self.standardize = standardize
        self.reversible = reversible
