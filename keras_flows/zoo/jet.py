import keras

from keras_flows import dequantization, layers
from keras_flows.arguments import check_integers, require
from keras_flows.condition_features import condition_of_layers
from keras_flows.flow import Flow
from keras_flows.networks import ViT
from keras_flows.zoo.patches import check_is_image, resolve_patch_size

# What the released code has by default.
IN_TURN = ("channels", "channels", "checkerboard", "channels", "channels", "checkerboard-inv")


@keras.saving.register_keras_serializable(package="keras_flows")
class Jet(Flow):
    """Jet: a flow of affine couplings with vision transformers.

    Kolesnikov, Pinto and Tschannen 2024 (arXiv:2412.15129), the released code where paper and code
    differ. Images, scaled to [-1, 1], are cut into patches, the tokens; then `depth` couplings,
    each of half of the channels of all tokens or of half of the tokens, in one loop. It starts as
    the identity, if `max_scale` is 2. Vectors are refused.

    Args:
        input_shape: (height, width, channels).
        patch_size: it divides height and width, and a patch has an even number of values. By
            default 4, 2 or 1: the first that leaves an even number of patches, or else that fits.
        depth: number of couplings.
        width: of the transformers' tokens.
        num_blocks: of each transformer.
        num_heads: of the attention; it divides `width`.
        partitions: kinds of `layers.TokenPartition`, which the couplings take in turn. By default
            two of "channels", "checkerboard", two of "channels", "checkerboard-inv"; of an odd
            number of patches "channels" alone.
        max_scale: m; a coupling scales by less than it.
        reversible: as for `Glow`.
        num_classes, condition_shape, condition_network: as for `Flow`; all couplings read the
            condition. To one of tokens, (tokens, n), the transformers attend. An image can be one
            by the condition_network `layers.Patchify(patch_size)`, for instance.
        bits, dequantization, adapt_examples, seed: as for `Flow`.

    Raises:
        ValueError: for arguments out of range, patches that do not divide the image or that
            `partitions` cannot halve.

    Example:

    ```python
    images = np.random.randint(0, 256, (32, 8, 8, 3), "uint8")
    model = keras_flows.zoo.Jet((8, 8, 3), depth=4, width=16)
    model.compile("adam")
    model.fit(images, verbose=0)
    model.encode(images[:4])                     # (4, 192)
    ```
    """

    def __init__(
        self,
        input_shape,
        *,
        patch_size=None,
        depth=8,
        width=64,
        num_blocks=1,
        num_heads=4,
        partitions=None,
        max_scale=2.0,
        reversible=False,
        num_classes=None,
        condition_shape=None,
        condition_network=None,
        bits=None,
        adapt_examples=None,
        seed=None,
        dtype=None,
        **kwargs,
    ):
        check_is_image(input_shape, "Jet")
        check_integers(1, depth=depth)
        patch_size = resolve_patch_size(
            *(patch_size, input_shape),
            fits=lambda size, _: input_shape[2] * size**2 % 2 == 0,
            rule="patches of an even number of values",
            preferred=lambda _, number: number % 2 == 0,
        )
        grid = tuple(size // patch_size for size in input_shape[:2])
        if partitions is None:
            partitions = IN_TURN if 0 in (grid[0] % 2, grid[1] % 2) else ("channels",)
        condition = condition_of_layers(num_classes, condition_shape, condition_network)
        require(
            condition is None or len(condition) < 3,
            "Jet reads conditions of shape (n,) or (tokens, n). Of images, let a "
            "`condition_network` make tokens, as `layers.Patchify(patch_size)` does",
            condition_shape=condition,
        )

        bins = 2 ** dequantization.number_of_bits(bits)
        coupling = layers.AffineCoupling(
            ViT(width, num_blocks, num_heads=num_heads, dtype=dtype),
            partition=layers.TokenPartition(partitions, grid, dtype=dtype),
            scale="max_sigmoid",
            max_scale=max_scale,
            condition_shape=condition,
            dtype=dtype,
        )
        super().__init__(
            layers.Chain(
                [
                    layers.Rescale(2 / (bins - 1), -1.0, dtype=dtype),
                    layers.Patchify(patch_size, dtype=dtype),
                    layers.Repeat(coupling, depth, reversible=reversible, dtype=dtype),
                    layers.Flatten(dtype=dtype),
                ],
                dtype=dtype,
            ),
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
        self.patch_size = patch_size
        self.depth = depth
        self.width = width
        self.num_blocks = num_blocks
        self.num_heads = num_heads
        self.partitions = coupling.partition.kinds
        self.max_scale = max_scale
        self.reversible = reversible
