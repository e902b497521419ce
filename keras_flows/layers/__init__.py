"""Bijections, each a Keras layer and a TFP bijector, and what couplings are made of."""

from keras_flows.layers.act_norm import ActNorm
from keras_flows.layers.additive_coupling import AdditiveCoupling
from keras_flows.layers.affine_coupling import AffineCoupling
from keras_flows.layers.batch_norm import BatchNorm
from keras_flows.layers.causal_affine import CausalAffine
from keras_flows.layers.chain import Chain
from keras_flows.layers.diagonal_scaling import DiagonalScaling
from keras_flows.layers.flatten import Flatten
from keras_flows.layers.invertible_conv1x1 import InvertibleConv1x1
from keras_flows.layers.learned_prior import LearnedPrior
from keras_flows.layers.logit import Logit
from keras_flows.layers.multi_scale import MultiScale
from keras_flows.layers.partition import Partition
from keras_flows.layers.patchify import Patchify
from keras_flows.layers.permute import Permute
from keras_flows.layers.repeat import Repeat
from keras_flows.layers.rescale import Rescale
from keras_flows.layers.spline_coupling import SplineCoupling
from keras_flows.layers.squeeze import Squeeze
from keras_flows.layers.standardize import Standardize
from keras_flows.layers.token_partition import TokenPartition

__all__ = [
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "BatchNorm",
    "CausalAffine",
    "Chain",
    "DiagonalScaling",
    "Flatten",
    "InvertibleConv1x1",
    "LearnedPrior",
    "Logit",
    "MultiScale",
    "Partition",
    "Patchify",
    "Permute",
    "Repeat",
    "Rescale",
    "SplineCoupling",
    "Squeeze",
    "Standardize",
    "TokenPartition",
]
