import keras
from keras import ops

from keras_flows.arguments import check_in, check_integers
from keras_flows.networks.dense import by_rows
from keras_flows.networks.dropout import _Dropout
from keras_flows.serialization import ConstructorConfig


@keras.saving.register_keras_serializable(package="keras_flows")
class ResidualMLP(ConstructorConfig, keras.layers.Layer):
    """Residual blocks of dense layers: (batch, ..., channels) -> (batch, ..., width).

    The network of neural spline flows (Durkan et al. 2019, arXiv:1906.04032, released code), after
    He et al. 2016 (arXiv:1603.05027): a dense layer; then each block adds ReLU, dense, ReLU,
    dropout, dense, of which the last starts near zero. Batch normalisation, which the code has as
    an option, is left out.

    Args:
        width: units of each layer.
        num_blocks: number of residual blocks.
        dropout: in [0, 1), the part of a block's inner units that training drops.

    Raises:
        ValueError: for arguments out of range.

    Example:

    ```python
    network = keras_flows.networks.ResidualMLP(64, num_blocks=2, dropout=0.1)
    network(np.zeros((2, 6)))                    # (2, 64)
    ```
    """

    def __init__(self, width, num_blocks=2, *, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        check_integers(1, width=width, num_blocks=num_blocks)
        check_in("[0, 1)", dropout=dropout)
        self.width = width = int(width)  # Keras takes no integers of NumPy
        self.num_blocks = num_blocks
        self.dropout = dropout

        def dense(**options):
            return keras.layers.Dense(width, dtype=self.dtype_policy, **options)

        def near_zero():  # one for each layer: called twice, an initializer repeats itself
            return keras.initializers.RandomUniform(-1e-3, 1e-3)

        self._input_layer = dense()
        self._blocks = [
            [
                dense(),
                *([_Dropout(dropout, dtype=self.dtype_policy)] if dropout else []),
                dense(kernel_initializer=near_zero()),
            ]
            for _ in range(num_blocks)
        ]

    def build(self, input_shape):
        self._input_layer.build(input_shape)
        for block in self._blocks:
            for layer in block:
                layer.build((*input_shape[:-1], self.width))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.width)

    def call(self, inputs, training=False):
        x = by_rows(self._input_layer, inputs)
        for first, *dropout, last in self._blocks:
            h = ops.relu(by_rows(first, ops.relu(x)))
            for layer in dropout:
                h = layer(h, training=training)
            x = x + by_rows(last, h)
        return x
