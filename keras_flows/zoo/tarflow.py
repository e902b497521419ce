import keras

from keras_flows import dequantization, distribute, layers
from keras_flows.arguments import check_in, check_integers, require
from keras_flows.condition_features import condition_of_layers
from keras_flows.flow import Flow
from keras_flows.networks import CausalTransformer
from keras_flows.zoo.patches import check_is_image, resolve_patch_size


@keras.saving.register_keras_serializable(package="keras_flows")
class TarFlow(Flow):
    """TarFlow: an autoregressive flow of causal transformers, over the patches of an image.

    Zhai et al. 2024 (arXiv:2412.06329), the released code where paper and code differ. Images,
    scaled to [-1, 1], are cut into patches, the tokens; then `depth` blocks, each of which shifts
    and scales a token by what a transformer makes of those before it, in turn from the first token
    and from the last. Data go to latents at once, and latents to data token by token. The blocks
    are a `Repeat`, whose gradient stores of each what it was given, and computes it again. Vectors
    are refused.

    Of labels (`num_classes`), -1 stands for none: the density of all classes, which training sees
    where it drops a label. `sample(..., guidance=2.0)` goes beyond what the labels make of samples.

    For samples rather than likelihoods train with `noise`, as the paper does; see `Flow`.

    Args:
        input_shape: (height, width, channels).
        patch_size: it divides height and width, into more than one patch. By default 4, 2 or 1,
            the first that does.
        depth: number of blocks.
        width: of the transformers' tokens.
        num_layers: of each transformer.
        num_heads: of the attention; it divides `width`. The paper has width / 64.
        label_dropout: the share of labels that `fit` drops, by default 0.1, as a function of `seed`
            and of the number of batches trained on, as the noise is.
        guidance_schedule: "linear", so that guidance grows from token to token, or "constant".
        noise: as for `Flow`; by default uniform noise, for likelihoods.
        num_classes, condition_shape, condition_network: as for `Flow`; all blocks read the
            condition, labels or features (n,), by one linear map of it, added to all tokens. The
            network is for floats only.
        bits, dequantization, adapt_examples, seed: as for `Flow`.

    Raises:
        ValueError: for arguments out of range, or patches that do not divide the image.

    Example:

    ```python
    images = np.random.randint(0, 256, (32, 8, 8, 3), "uint8")
    labels = np.arange(32) % 4
    model = keras_flows.zoo.TarFlow((8, 8, 3), depth=2, width=16, num_layers=1, num_classes=4)
    model.compile("adam")
    model.fit(images, labels, verbose=0)
    model.sample(2, condition=3, guidance=2.0)   # (2, 8, 8, 3)
    ```
    """

    def __init__(
        self,
        input_shape,
        *,
        patch_size=None,
        depth=4,
        width=64,
        num_layers=2,
        num_heads=4,
        label_dropout=None,
        guidance_schedule="linear",
        noise=None,
        num_classes=None,
        condition_shape=None,
        condition_network=None,
        bits=None,
        adapt_examples=None,
        seed=None,
        dtype=None,
        **kwargs,
    ):
        check_is_image(input_shape, "TarFlow")
        check_integers(1, depth=depth)
        patch_size = resolve_patch_size(
            *(patch_size, input_shape),
            fits=lambda _, number: number > 1,
            rule="more than one patch",
        )
        require(
            None in (num_classes, condition_network),
            "Argument `condition_network` is for floats: a label has a vector of its own already",
            condition_network=condition_network,
            num_classes=num_classes,
        )
        condition = condition_of_layers(num_classes, condition_shape, condition_network)
        require(
            condition is None or len(condition) == 1,
            "TarFlow reads conditions of shape (n,). Of others, let a `condition_network` make "
            "features (batch, n), as `keras.layers.Flatten` does",
            condition_shape=condition,
        )
        if label_dropout is None and num_classes is not None:
            label_dropout = 0.1
        if label_dropout is not None:
            check_in("[0, 1)", label_dropout=label_dropout)
            require(
                num_classes is not None,
                "Argument `label_dropout` is for models with `num_classes` only",
                label_dropout=label_dropout,
            )

        block = layers.CausalAffine(
            CausalTransformer(width, num_layers, num_heads=num_heads, dtype=dtype),
            condition_shape=condition,
            guidance_schedule=guidance_schedule,
            dtype=dtype,
        )
        # Of pixels 0 .. 255 with normal noise, or of bins with uniform noise.
        size = 255 if noise is not None else 2 ** dequantization.number_of_bits(bits)
        super().__init__(
            layers.Chain(
                [
                    layers.Rescale(2 / size, -1.0, dtype=dtype),
                    layers.Patchify(patch_size, order="channel", dtype=dtype),
                    layers.Repeat(block, depth, dtype=dtype),
                    layers.Flatten(dtype=dtype),
                ],
                dtype=dtype,
            ),
            input_shape,
            bits=bits,
            noise=noise,
            num_classes=num_classes,
            condition_shape=condition_shape,
            condition_network=condition_network,
            adapt_examples=adapt_examples,
            seed=seed,
            dtype=dtype,
            **kwargs,
        )
        self.patch_size = patch_size
        self.depth = depth
        self.width = width
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.label_dropout = label_dropout
        self.guidance_schedule = guidance_schedule

    def training_condition(self, condition, iteration):
        """Labels, some of them dropped."""
        if not self.label_dropout:
            return condition
        drawn = dequantization.uniform_noise(
            keras.ops.shape(condition),
            self.compute_dtype,
            dequantization.DROP_LABELS,
            *(self.seed, iteration, distribute.replica_id()),
        )
        return keras.ops.where(drawn < self.label_dropout, -1, condition)
