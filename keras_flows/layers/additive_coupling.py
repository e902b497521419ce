import keras

from keras_flows.layers.coupling import Coupling


@keras.saving.register_keras_serializable(package="keras_flows")
class AdditiveCoupling(Coupling):
    """Shifts one part of the input by a function of the other.

    z1 = x1, z2 = x2 + m(x1); log_det = 0.

    NICE, section 3.2. Arguments, shapes and errors: those of `Coupling`; the output layer has a
    channel for each channel that changes, the shift.

    Example:

    ```python
    layer = keras_flows.layers.AdditiveCoupling(keras_flows.networks.MLP(64), partition="even_odd")
    layer(np.ones((4, 6)))                       # (4, 6)
    ```
    """

    parameters_per_channel = 1

    def transform(self, x2, parameters):
        return x2 + parameters, None

    def inverse_transform(self, z2, parameters):
        return z2 - parameters, None
