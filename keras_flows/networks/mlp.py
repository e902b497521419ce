import keras

from keras_flows.arguments import check_integers
from keras_flows.networks.dense import by_rows
from keras_flows.serialization import ConstructorConfig


@keras.saving.register_keras_serializable(package="keras_flows")
class MLP(ConstructorConfig, keras.layers.Layer):
    """Dense layers with ReLU: (batch, ..., channels) -> (batch, ..., width).

    Args:
        width: units of each layer.
        num_layers: number of hidden layers.

    Example:

    ```python
    network = keras_flows.networks.MLP(64, num_layers=3)
    network(np.zeros((2, 6)))                    # (2, 64)
    ```
    """

    def __init__(self, width, num_layers=2, **kwargs):
        super().__init__(**kwargs)
        check_integers(1, width=width, num_layers=num_layers)
        self.width = width = int(width)  # Keras takes no integers of NumPy
        self.num_layers = num_layers
        self._layers_in_order = [
            keras.layers.Dense(width, activation="relu", dtype=self.dtype_policy, name=f"dense_{i}")
            for i in range(num_layers)
        ]

    def build(self, input_shape):
        for layer in self._layers_in_order:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.width)

    def call(self, inputs):
        for layer in self._layers_in_order:
            inputs = by_rows(layer, inputs)
        return inputs
