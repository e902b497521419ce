import functools
import math

import keras
import tensorflow as tf
from keras import ops

from keras_flows import layers
from keras_flows.arguments import (
    check_in,
    check_input_shape,
    check_integers,
    check_one_of,
    require,
)
from keras_flows.condition_features import condition_of_layers
from keras_flows.flow import Flow
from keras_flows.networks import MLP, ConvNet, ScaledConv2D
from keras_flows.private import flatten_layers
from keras_flows.zoo.levels import resolve_levels
from keras_flows.zoo.scaling import scale

COUPLINGS = {
    "affine": layers.AffineCoupling,
    "bounded_affine": functools.partial(layers.AffineCoupling, scale="half_sigmoid"),
    "additive": layers.AdditiveCoupling,
}


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
        coupling: "affine", "additive" or "bounded_affine", whose scales stay above 1/2. Those of
            "affine" come near 0, and samples overflow: many, where images have flat areas.
        reversible: whether training rebuilds each step's activations by inverting it instead of
            storing them: memory for weights and one step only, for a tenth to a third more time.
        num_classes: makes the last prior class-conditional, as in the paper.
        condition_shape, condition_network: as for `Flow`; all couplings and priors read the
            condition, or, of classes too, what the network makes of it.
        classifier_weight: of a classifier on the last level's latent, for a class-conditional
            model: the loss has classifier_weight * D * cross-entropy, in nats, besides the negative
            log-likelihood. The paper's 0.01 makes the classes differ more; 0 is no classifier.
            Not beside a `condition_network`.
        logit_alpha: of a `Logit` before the first level, for images of which many pixels are black
            or white; 1e-6 is usual for MNIST. None, as in the paper, for none.
        standardize: whether vectors are standardised first (`layers.Standardize`).
        bounds, integer_columns: of vectors, as for `Flow`; those with bounds go through a `Logit`.
        bits, dequantization, adapt_examples, seed: as for `Flow`.

    Raises:
        ValueError: for arguments out of range, and sizes that `levels` cannot halve.

    Example:

    ```python
    images = np.random.randint(0, 256, (32, 8, 8, 3), "uint8")
    model = keras_flows.zoo.Glow((8, 8, 3), levels=2, depth=4, width=16)
    model.compile("adam")
    model.fit(images, verbose=0)
    model.sample(4, temperature=0.7, seed=1)                         # (4, 8, 8, 3)
    ```
    """

    defaults_of_old_configs = {"standardize": False}

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
        condition_shape=None,
        condition_network=None,
        classifier_weight=0.0,
        logit_alpha=None,
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
        check_integers(1, depth=depth, width=width)
        check_one_of(COUPLINGS, coupling=coupling)
        levels = resolve_levels(levels, input_shape, default=3)
        columns = {"bounds": bounds, "integer_columns": integer_columns}
        noise = kwargs.get("noise")
        first = scale(
            *(input_shape, bits, logit_alpha, standardize, noise),
            offset=-0.5,
            **columns,
            dtype=dtype,
        )
        by_label = num_classes is not None and condition_network is None
        check_in("[0, inf)", classifier_weight=classifier_weight)
        require(
            by_label or not classifier_weight,
            "Argument `classifier_weight` must be 0 without `num_classes` or with a "
            "`condition_network`",
            classifier_weight=classifier_weight,
            num_classes=num_classes,
            condition_network=condition_network,
        )

        condition = condition_of_layers(num_classes, condition_shape, condition_network)
        of_coupling = {"condition_shape": None if by_label else condition}
        of_prior = {"num_classes": num_classes} if by_label else of_coupling

        def step():
            network = ConvNet if len(input_shape) == 3 else MLP
            make = COUPLINGS[coupling]
            return layers.Chain(
                [
                    layers.ActNorm(dtype=dtype),
                    layers.InvertibleConv1x1(dtype=dtype),
                    make(network(width, dtype=dtype), **of_coupling, dtype=dtype),
                ],
                dtype=dtype,
            )

        def level(is_last):
            squeeze = [layers.Squeeze(dtype=dtype)] if len(input_shape) == 3 else []
            if is_last:
                prior = layers.LearnedPrior(**of_prior, dtype=dtype)
            else:
                prior = layers.AffineCoupling(None, scale="exp", **of_coupling, dtype=dtype)
            steps = layers.Repeat(step(), depth, reversible=reversible, dtype=dtype)
            return layers.Chain([*squeeze, steps, prior], dtype=dtype)

        if len(input_shape) == 3:
            bijection = layers.Chain(
                [
                    *first,
                    layers.MultiScale([level(i == levels - 1) for i in range(levels)], dtype=dtype),
                ],
                dtype=dtype,
            )
        else:
            bijection = level(is_last=True)
            bijection = layers.Chain([*first, bijection], dtype=dtype) if first else bijection
        super().__init__(
            bijection,
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
        self.coupling = coupling
        self.classifier_weight = classifier_weight
        self.logit_alpha = logit_alpha
        self.standardize = standardize
        self.reversible = reversible
        if classifier_weight:
            # A linear map, zero at the start, with log scales, of what is one cell.
            self._classifier = ScaledConv2D(num_classes, 1, dtype=self.dtype_policy)
            with keras.name_scope(self.name, caller=self):
                self._classifier.build((None, 1, 1, self._top_prior().event_shape[-1]))

    def class_logits(self, z, condition):
        """The classifier's logits, (batch, num_classes), of z = encode(x, condition).

        A linear map of the spatial mean of the last level's latent before its prior. There the
        condition plays no part: any will do, if they are the same in both calls.

        Raises:
            ValueError: for a model without classifier.
        """
        if not self.classifier_weight:
            raise ValueError(
                "class_logits needs a model with a classifier. "
                f"Received: one with classifier_weight={self.classifier_weight}"
            )
        prior = self._top_prior()
        *space, channels = prior.event_shape
        cells = math.prod(space)
        top = ops.reshape(z[:, -cells * channels :], (-1, *space, channels))
        top, _ = prior.inverse_and_log_det(top, condition)
        mean = ops.mean(ops.reshape(top, (-1, cells, 1, channels)), axis=1, keepdims=True)
        return self._classifier(mean)[:, 0, 0]

    def auxiliary_loss(self, z, condition=None):
        if not self.classifier_weight:
            return super().auxiliary_loss(z, condition)
        logits = self.class_logits(z, condition)
        cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(condition, logits)
        return self.classifier_weight * self.size * cross_entropy

    def _top_prior(self):
        return next(
            layer
            for layer in flatten_layers(self.bijection)
            if isinstance(layer, layers.LearnedPrior)
        )
