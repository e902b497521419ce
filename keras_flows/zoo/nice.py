import keras

from keras_flows import layers
from keras_flows.arguments import check_input_shape, check_integers
from keras_flows.condition_features import condition_of_layers
from keras_flows.flow import Flow
from keras_flows.networks import MLP
from keras_flows.zoo.pairs import in_pairs
from keras_flows.zoo.scaling import scale


@keras.saving.register_keras_serializable(package="keras_flows")
class NICE(Flow):
    """NICE: non-linear independent components estimation.

    Dinh, Krueger and Bengio 2014 (arXiv:1410.8516), section 5: additive couplings on a flat vector,
    which odd and even components condition in turn, and a diagonal scaling. Images are scaled to
    [0, 1] and flattened.

    Args:
        input_shape: (height, width, channels) or (D,), D >= 2.
        depth: number of couplings.
        width: units of each hidden layer.
        num_hidden: hidden layers of each network.
        prior: "logistic" or "gaussian".
        logit_alpha: as for `Glow`.
        reversible: as for `Glow`, from `depth` 6 on.
        standardize: whether vectors are standardised first (`layers.Standardize`).
        bounds, integer_columns: of vectors, as for `Flow`; those with bounds go through a `Logit`.
        num_classes, condition_shape, condition_network: as for `Flow`; all couplings read the
            condition.
        bits, dequantization, adapt_examples, seed: as for `Flow`.

    Raises:
        ValueError: for arguments out of range.

    Example:

    ```python
    model = keras_flows.zoo.NICE((2,), depth=4, width=64)
    model.compile("adam")
    model.fit(np.random.normal(size=(64, 2)), verbose=0)
    model.sample(3)                              # (3, 2)
    ```
    """

    defaults_of_old_configs = {"standardize": False}

    def __init__(
        self,
        input_shape,
        *,
        depth=4,
        width=256,
        num_hidden=5,
        prior="logistic",
        logit_alpha=None,
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
        check_integers(1, depth=depth, width=width, num_hidden=num_hidden)
        columns = {"bounds": bounds, "integer_columns": integer_columns}
        noise = kwargs.get("noise")
        first = scale(*(input_shape, bits, logit_alpha, standardize, noise), **columns, dtype=dtype)
        if len(input_shape) == 3:
            first.append(layers.Flatten(dtype=dtype))

        condition = condition_of_layers(num_classes, condition_shape, condition_network)

        def coupling(swap):
            network = MLP(width, num_hidden, dtype=dtype)
            options = {"partition": "even_odd", "swap": swap, "dtype": dtype}
            return [layers.AdditiveCoupling(network, condition_shape=condition, **options)]

        couplings = in_pairs(coupling, depth, reversible=reversible, dtype=dtype)
        super().__init__(
            layers.Chain([*first, *couplings, layers.DiagonalScaling(dtype=dtype)], dtype=dtype),
            input_shape,
            bits=bits,
            **columns,
            prior=prior,
            num_classes=num_classes,
            condition_shape=condition_shape,
            condition_network=condition_network,
            adapt_examples=adapt_examples,
            seed=seed,
            dtype=dtype,
            **kwargs,
        )
        self.depth = depth
        self.width = width
        self.num_hidden = num_hidden
        self.logit_alpha = logit_alpha
        self.standardize = standardize
        self.reversible = reversible
