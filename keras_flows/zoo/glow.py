import keras

from keras_flows import layers
from keras_flows.flow import Flow
from keras_flows.inputs import check_input_shape, check_integers, check_one_of
from keras_flows.networks import MLP, ConvNet
from keras_flows.zoo.levels import resolve_levels

COUPLINGS = ("affine", "additive")


@keras.saving.register_keras_serializable(package="keras_flows")
class Glow(Flow):
    """Glow: generative flow with invertible 1x1 convolutions.

    Kingma and Dhariwal 2018 (arXiv:1807.03039), the released code where paper and code differ; the
    1x1 convolutions always have the PLU form. Images: `levels` times squeeze, `depth` steps of
    ActNorm, 1x1 convolution and coupling, and half of the channels factored out with a learned
    prior; the last level has a learned (class-conditional) prior. Vectors: `depth` steps with MLPs,
    and the last prior.

    Args:
        input_shape: (height, width, channels), both sizes divisible by 2^levels, or (D,), D >= 2.
        levels: L; at most 3 by default. 1 for vectors.
        depth: K, steps in each level.
        width: of the couplings' networks.
        coupling: "affine" or "additive".
        reversible: whether training rebuilds each step's activations by inverting it instead of
            storing them: memory for weights and one step only, for a tenth to a fifth more time.
        num_classes: makes the last prior class-conditional.
        logit_alpha: of a `Logit` before the first level, for images of which many pixels are black
            or white; 1e-6 is usual for MNIST. None, as in the paper, for none.
        bits, adapt_examples, seed: as for `Flow`.

    Raises:
        ValueError: for arguments out of range, and sizes that `levels` cannot halve.
    """

    def __init__(
        self,
        input_shape,
        *,
        levels=None,
        depth=8,
        width=128,
        coupling="affine",
        reversible=False,
        num_classes=None,
        logit_alpha=None,
        bits=None,
        adapt_examples=256,
        seed=None,
        dtype=None,
        **kwargs,
    ):
        check_input_shape(input_shape)
        check_integers(1, depth=depth, width=width)
        check_one_of(COUPLINGS, coupling=coupling)
        levels = resolve_levels(levels, input_shape, default=3)

        def step():
            network = ConvNet if len(input_shape) == 3 else MLP
            make = layers.AffineCoupling if coupling == "affine" else layers.AdditiveCoupling
            return layers.Chain(
                [
                    layers.ActNorm(dtype=dtype),
                    layers.InvertibleConv1x1(dtype=dtype),
                    make(network(width, dtype=dtype), dtype=dtype),
                ],
                dtype=dtype,
            )

        def level(is_last):
            squeeze = [layers.Squeeze(dtype=dtype)] if len(input_shape) == 3 else []
            if is_last:
                prior = layers.LearnedPrior(num_classes=num_classes, dtype=dtype)
            else:
                prior = layers.AffineCoupling(None, scale="exp", dtype=dtype)
            steps = layers.Repeat(step(), depth, reversible=reversible, dtype=dtype)
            return layers.Chain([*squeeze, steps, prior], dtype=dtype)

        if len(input_shape) == 3:
            bins = 2 ** (8 if bits is None else bits)
            if logit_alpha is None:
                first = [layers.Rescale(1 / bins, -0.5, dtype=dtype)]
            else:
                first = [
                    layers.Rescale(1 / bins, dtype=dtype),
                    layers.Logit(logit_alpha, dtype=dtype),
                ]
            bijection = layers.Chain(
                [
                    *first,
                    layers.MultiScale([level(i == levels - 1) for i in range(levels)], dtype=dtype),
                ],
                dtype=dtype,
            )
        else:
            bijection = level(is_last=True)
        super().__init__(
            bijection,
            input_shape,
            bits=bits,
            num_classes=num_classes,
            adapt_examples=adapt_examples,
            seed=seed,
            dtype=dtype,
            **kwargs,
        )
        self.levels = levels
        self.depth = depth
        self.width = width
        self.coupling = coupling
        self.logit_alpha = logit_alpha
        self.reversible = reversible
