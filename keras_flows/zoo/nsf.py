import keras

from keras_flows import layers
from keras_flows.arguments import check_input_shape, check_integers
from keras_flows.condition_features import condition_of_layers
from keras_flows.flow import Flow
from keras_flows.networks import ResidualConvNet, ResidualMLP
from keras_flows.zoo.levels import resolve_levels
from keras_flows.zoo.scaling import scale


@keras.saving.register_keras_serializable(package="keras_flows")
class NSF(Flow):
    """NSF: neural spline flow, of couplings that bend by monotonic rational-quadratic splines.

    Durkan, Bekasov, Murray and Papamakarios 2019 (arXiv:1906.04032), RQ-NSF (C). Vectors: `depth`
    steps of a linear map (PLU) and a spline coupling with a residual MLP, and a last linear map.
    Images: `levels` times squeeze, `depth` steps of ActNorm, 1x1 convolution and a spline coupling
    with a residual convolutional network, a last 1x1 convolution, and half of the channels factored
    out. Splines start as the identity; the authors' start near it.

    Args:
        input_shape: (height, width, channels), both sizes divisible by 2^levels, or (D,), D >= 2.
        levels: at most 3 by default. 1 for vectors.
        depth: steps in each level; by default 4 for images, 8 for vectors.
        width: of the networks; by default 32 for images and 64 for vectors.
        num_blocks: residual blocks of a network.
        bins: K of the splines.
        tail_bound: B of the splines, beyond which they are the identity.
        dropout: of the networks' residual blocks, in [0, 1).
        multi_scale: whether each level of an image factors out half of its channels; if not, all go
            on, as in the paper's models of CIFAR-10.
        reversible: as for `Glow`.
        logit_alpha: as for `Glow`.
        standardize: whether vectors are standardised first (`layers.Standardize`).
        bounds, integer_columns: of vectors, as for `Flow`; those with bounds go through a `Logit`.
        num_classes, condition_shape, condition_network: as for `Flow`; all couplings read the
            condition.
        bits, dequantization, adapt_examples, seed: as for `Flow`.

    Raises:
        ValueError: for arguments out of range, and sizes that `levels` cannot halve.

    Example:

    ```python
    model = keras_flows.zoo.NSF((2,), condition_shape=(3,), bounds=[(0, 1), None])
    model.compile("adam")
    theta, x = np.random.uniform(size=(64, 2)), np.random.normal(size=(64, 3))
    model.fit(theta, x, verbose=0)
    model.sample(5, condition=x[0])              # (5, 2)
    ```
    """

    def __init__(
        self,
        input_shape,
        *,
        levels=None,
        depth=None,
        width=None,
        num_blocks=2,
        bins=8,
        tail_bound=3.0,
        dropout=0.0,
        multi_scale=True,
        reversible=False,
        num_classes=None,
        condition_shape=None,
        condition_network=None,
        logit_alpha=None,
        standardize=True,
        bounds=None,
        integer_columns=None,
        bits=None,
        adapt_examples=None,
        seed=None,
        dtype=None,
        **kwargs,
    ):
        check_input_shape(input_shape)
        is_image = len(input_shape) == 3
        depth = (4 if is_image else 8) if depth is None else depth
        width = (32 if is_image else 64) if width is None else width
        check_integers(1, depth=depth, width=width, num_blocks=num_blocks)
        levels = resolve_levels(levels, input_shape, default=3)
        splines = {
            "bins": bins,
            "tail_bound": tail_bound,
            "condition_shape": condition_of_layers(num_classes, condition_shape, condition_network),
            "dtype": dtype,
        }

        def coupling(channels):
            if not is_image:
                network = ResidualMLP(width, num_blocks, dropout=dropout, dtype=dtype)
                return layers.SplineCoupling(network, **splines)
            network = ResidualConvNet(width, num_blocks, dropout=dropout, dtype=dtype)
            output_layer = keras.layers.Conv2D(
                channels // 2 * (3 * bins - 1), 1, kernel_initializer="zeros", dtype=dtype
            )
            return layers.SplineCoupling(network, output_layer=output_layer, **splines)

        def steps(channels):
            """`depth` of them, and the linear map that follows the last."""
            step = [
                *([layers.ActNorm(dtype=dtype)] if is_image else []),
                layers.InvertibleConv1x1(dtype=dtype),
                coupling(channels),
            ]
            chain = layers.Chain(step, dtype=dtype)
            return [
                layers.Repeat(chain, depth, reversible=reversible, dtype=dtype),
                layers.InvertibleConv1x1(dtype=dtype),
            ]

        def level(i):
            channels = input_shape[-1] * 4 * (2 if multi_scale else 4) ** i
            return layers.Chain([layers.Squeeze(dtype=dtype), *steps(channels)], dtype=dtype)

        columns = {"bounds": bounds, "integer_columns": integer_columns}
        noise = kwargs.get("noise")
        first = scale(
            *(input_shape, bits, logit_alpha, standardize, noise),
            offset=-0.5,
            **columns,
            dtype=dtype,
        )
        if not is_image:
            rest = steps(input_shape[-1])
        elif multi_scale:
            rest = [layers.MultiScale([level(i) for i in range(levels)], dtype=dtype)]
        else:
            rest = [*(level(i) for i in range(levels)), layers.Flatten(dtype=dtype)]
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
        self.bins = bins
        self.tail_bound = tail_bound
        self.dropout = dropout
        self.multi_scale = multi_scale
        self.reversible = reversible
        self.logit_alpha = logit_alpha
        self.standardize = standardize
