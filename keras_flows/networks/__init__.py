"""The networks that couplings call: plain Keras layers from what conditions to features.

They end in features, not in parameters: the coupling owns the output layer.
"""

from keras_flows.networks.causal_transformer import CausalTransformer
from keras_flows.networks.conv_net import ConvNet
from keras_flows.networks.mlp import MLP
from keras_flows.networks.res_net import ResNet
from keras_flows.networks.residual_conv_net import ResidualConvNet
from keras_flows.networks.residual_mlp import ResidualMLP
from keras_flows.networks.scaled_conv2d import ScaledConv2D
from keras_flows.networks.vit import ViT
from keras_flows.networks.weight_norm_conv2d import WeightNormConv2D

__all__ = [
    "MLP",
    "CausalTransformer",
    "ConvNet",
    "ResNet",
    "ResidualConvNet",
    "ResidualMLP",
    "ScaledConv2D",
    "ViT",
    "WeightNormConv2D",
]
