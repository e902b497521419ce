import keras

from keras_flows import layers
from keras_flows.arguments import check_input_shape, check_integers, require
from keras_flows.condition_features import condition_of_layers
from keras_flows.flow import Flow
from keras_flows.networks import ResidualMLP, ResNet
from keras_flows.zoo.levels import resolve_levels
from keras_flows.zoo.scaling import scale


@keras.saving.register_keras_serializable(package="keras_flows")
class NSF(Flow):
    """NSF: neural spline flow, of couplings that bend by monotonic rational-quadratic splines.

    Durkan, Bekasov, Murray and Papamakarios 2019 (arXiv:1906.04032), RQ-NSF (C). Vectors: `depth`
    steps of a linear map (PLU) and a spline coupling with a residual MLP, and a last linear map.
    Images: `levels` times squeeze, `depth` steps of ActNorm, 1x1 convolution and a spline coupling
    with a residual convolutional network, a last 1x1 convolution, and half of the channels factored
    out. That network is RealNVP's, with weight normalisation and summed skips, where the authors'
    has neither.

    Args:
        input_shape: (height, width, channels), both sizes divisible by 2^levels, or (D,), D >= 2.
        levels: at most 3 by default. 1 for vectors.
        depth: steps in each level; by default 4 for images, 8 for vectors.
        width: of the networks; by default 32 for images and 64 for vectors.
        num_blocks: residual blocks of a network.
        bins: K of the splines.
        tail_bound: B of the splines, beyond which they are the identity.
        dropout: of the residual MLPs, in [0, 1); 0 for images.
        reversible: as for `Glow`.
        logit_alpha: as for `Glow`.
        standardize: whether vectors are standardised first (`layers.Standardize`).
        num_classes, condition_shape, condition_network: as for `Flow`; all couplings read the
            condition.
        bits, adapt_examples, seed: as for `Flow`.

    Raises:
        ValueError: for arguments out of range, and sizes that `levels` cannot halve.
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
        reversible=False,
        num_classes=None,
        condition_shape=None,
        condition_network=None,
        logit_alpha=None,
        standardize=True,
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
        require(
            not (is_image and dropout),
            "Argument `dropout` is for vectors only",
            dropout=dropout,
            input_shape=tuple(input_shape),
        )

        condition = condition_of_layers(num_classes, condition_shape, condition_network)
        splines = {"bins": bins, "tail_bound": tail_bound, "condition_shape": condition}

        def network():
            if is_image:
                return ResNet(width, num_blocks, dtype=dtype)
            return ResidualMLP(width, num_blocks, dropout=dropout, dtype=dtype)

        def steps():
            """`depth` of them, and the linear map that follows the last."""
            step = [
                *([layers.ActNorm(dtype=dtype)] if is_image else []),
                layers.InvertibleConv1x1(dtype=dtype),
                layers.SplineCoupling(network(), **splines, dtype=dtype),
            ]
            chain = layers.Chain(step, dtype=dtype)
            return [
                layers.Repeat(chain, depth, reversible=reversible, dtype=dtype),
                layers.InvertibleConv1x1(dtype=dtype),
            ]

        def level():
            return layers.Chain([layers.Squeeze(dtype=dtype), *steps()], dtype=dtype)

        first = scale(input_shape, bits, logit_alpha, standardize, offset=-0.5, dtype=dtype)
        if is_image:
            rest = [layers.MultiScale([level() for _ in range(levels)], dtype=dtype)]
        else:
            rest = steps()
        super().__init__(
            layers.Chain([*first, *rest], dtype=dtype),
            input_shape,
            bits=bits,
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
        self.reversible = reversible
        self.logit_alpha = logit_alpha
        self.standardize = standardize
