import keras

from keras_flows.bijection import constant_log_det
from keras_flows.layers.coupling import Coupling


@keras.saving.register_keras_serializable(package="keras_flows")
class AdditiveCoupling(Coupling):
    """Shifts one part of the input by a function of the other.

    z1 = x1, z2 = x2 + m(x1); log_det = 0.

    NICE, section 3.2. Shapes: (batch, D) or (batch, height, width, channels), unchanged.

    Args:
        network: a Keras layer that keeps the rank (`networks.MLP`, `networks.ConvNet`,
            `networks.ResNet` or your own); None leaves the output layer alone.
        partition: "half", "even_odd" or "checkerboard"; see `Partition`. With "checkerboard" the
            network's input has the mask as its last channel.
        swap: whether the two parts change roles.
        output_layer: a Keras layer from the network's features to the shift. By default
            zero-initialised: a 3x3 `ScaledConv2D` for images, `Dense` for vectors.

    Raises:
        ValueError: for an unknown partition, or an input with too few channels to divide.
    """

    parameters_per_channel = 1

    def transform(self, x2, parameters):
        return x2 + self._split.where_free(parameters), constant_log_det(0, x2)

    def inverse_transform(self, z2, parameters):
        return z2 - self._split.where_free(parameters), constant_log_det(0, z2)
