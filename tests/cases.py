"""The table of test cases: name -> (constructor, event shape, condition or None).

A new bijection adds a line here, and every test in test_bijections.py is about it, too.
"""

import keras
import numpy as np
from keras import ops

from keras_flows import Bijection, layers
from keras_flows.bijection import sum_over_event
from keras_flows.layers.coupling import Coupling
from keras_flows.networks import (
    MLP,
    CausalTransformer,
    ConvNet,
    ResidualMLP,
    ResNet,
    ViT,
    WeightNormConv2D,
)

BATCH = 4
LABELS = np.array([0, 2, 1, 2])  # one for each of a batch
FEATURES = np.random.default_rng(1).normal(size=(BATCH, 2))
MAPS = np.random.default_rng(2).normal(size=(BATCH, 4, 8, 2))
SEQUENCES = np.random.default_rng(3).normal(size=(BATCH, 5, 2))

VECTOR = (5,)
TOKENS = (3, 4)
IMAGE = (2, 4, 3)


@keras.saving.register_keras_serializable(package="tests")
class UserBijection(Bijection):
    """z = arcsinh(x + bias), as a user might write it."""

    def build(self, input_shape):
        self.bias = self.add_weight(name="bias", shape=input_shape[1:], initializer="zeros")

    def forward_and_log_det(self, x, condition=None, training=False):
        z = ops.arcsinh(x + self.bias)
        return z, -sum_over_event(ops.log(ops.cosh(z)))

    def inverse_and_log_det(self, z, condition=None, training=False):
        return ops.sinh(z) - self.bias, sum_over_event(ops.log(ops.cosh(z)))


@keras.saving.register_keras_serializable(package="tests")
class RandomHalf(layers.Partition):
    """A half of the channels that it draws."""

    def build(self, input_shape):
        order = np.random.permutation(input_shape[-1])
        self.order = self._constant("permutation", order)
        self.back = self._constant("inverse_permutation", np.argsort(order))

    def _constant(self, name, value):
        weight = self.add_weight(name=name, shape=value.shape, dtype="int64", trainable=False)
        weight.assign(value)
        return weight

    def split(self, x):
        channels = x.shape[-1]
        return ops.split(ops.take(x, self.order, axis=-1), [channels // 2], axis=-1)

    def merge(self, first, second):
        return ops.take(ops.concatenate([first, second], axis=-1), self.back, axis=-1)


@keras.saving.register_keras_serializable(package="tests")
class RandomElements(layers.Partition):
    """Half of all elements, which it draws, by masks."""

    def build(self, input_shape):
        size = np.prod(input_shape[1:])
        first = np.random.permutation(np.arange(size) % 2).reshape(1, *input_shape[1:])
        self.first = self.add_weight(name="permutation", shape=first.shape, trainable=False)
        self.first.assign(first)

    def masks(self):
        return self.first, 1 - self.first

    def split(self, x):
        return x * self.first, x * (1 - self.first)

    def merge(self, first, second):
        return first + second


@keras.saving.register_keras_serializable(package="tests")
class SinhCoupling(Coupling):
    """z2 = arcsinh(x2 + 1) + p: what is zero in is nothing of the kind out."""

    parameters_per_channel = 1

    def transform(self, x2, parameters):
        return ops.arcsinh(x2 + 1) + parameters, -0.5 * ops.log1p((x2 + 1) ** 2)

    def inverse_transform(self, z2, parameters):
        x2 = ops.sinh(z2 - parameters) - 1
        return x2, 0.5 * ops.log1p((x2 + 1) ** 2)


def step(network):
    """A step of Glow."""
    return [layers.ActNorm(), layers.InvertibleConv1x1(), layers.AffineCoupling(network)]


def token_coupling(*kinds, network=None, **options):
    """Of a grid of 2x3 tokens."""
    partition = layers.TokenPartition(kinds, grid=(2, 3))
    return layers.AffineCoupling(network or MLP(6), partition=partition, **options)


def causal_affine(**options):
    return layers.CausalAffine(CausalTransformer(4, num_heads=2), **options)


CASES = {
    "act_norm": (layers.ActNorm, VECTOR, None),
    "act_norm_image": (layers.ActNorm, IMAGE, None),
    "act_norm_tokens": (layers.ActNorm, TOKENS, None),
    "additive_no_network": (lambda: layers.AdditiveCoupling(None), VECTOR, None),
    "additive_half": (lambda: layers.AdditiveCoupling(MLP(6)), VECTOR, None),
    "additive_even_odd_swap": (
        lambda: layers.AdditiveCoupling(MLP(6, 1), partition="even_odd", swap=True),
        VECTOR,
        None,
    ),
    "additive_checkerboard": (
        lambda: layers.AdditiveCoupling(None, partition="checkerboard"),
        IMAGE,
        None,
    ),
    "affine_prior": (lambda: layers.AffineCoupling(None, scale="exp"), (2, 4, 4), None),
    "affine_half": (lambda: layers.AffineCoupling(MLP(6)), VECTOR, None),
    "affine_half_swap_tanh": (
        lambda: layers.AffineCoupling(MLP(6), swap=True, scale="tanh"),
        VECTOR,
        None,
    ),
    "affine_even_odd_swap_exp": (
        lambda: layers.AffineCoupling(MLP(6), partition="even_odd", swap=True, scale="exp"),
        VECTOR,
        None,
    ),
    "affine_keras_network": (
        lambda: layers.AffineCoupling(
            keras.layers.Dense(6, activation="tanh"),
            scale="half_sigmoid",
            output_layer=keras.layers.Dense(6),
        ),
        VECTOR,
        None,
    ),
    "affine_resnet_swap_image": (
        lambda: layers.AffineCoupling(
            ResNet(4, 1), swap=True, scale="tanh", output_layer=WeightNormConv2D(2, 1)
        ),
        IMAGE,
        None,
    ),
    "affine_tokens": (lambda: layers.AffineCoupling(MLP(6), swap=True), TOKENS, None),
    "affine_random_half": (
        lambda: layers.AffineCoupling(MLP(6), partition=RandomHalf(), swap=True),
        VECTOR,
        None,
    ),
    "affine_random_elements": (
        lambda: layers.AffineCoupling(MLP(6), partition=RandomElements(), swap=True),
        TOKENS,
        None,
    ),
    "affine_half_image": (lambda: layers.AffineCoupling(ConvNet(6)), IMAGE, None),
    "affine_even_odd_image": (
        lambda: layers.AffineCoupling(None, partition="even_odd", scale="tanh"),
        IMAGE,
        None,
    ),
    "affine_checkerboard_sigmoid": (
        lambda: layers.AffineCoupling(MLP(6), partition="checkerboard"),
        (3, 3, 1),
        None,
    ),
    "affine_checkerboard_tanh": (
        lambda: layers.AffineCoupling(
            ResNet(4, 1, masked=True, magnitude_regularizer="l2"),
            partition="checkerboard",
            scale="tanh",
            output_layer=WeightNormConv2D(4, 1),
            bound_initializer="zeros",
            bound_regularizer="l2",
        ),
        (4, 2, 2),
        None,
    ),
    "affine_checkerboard_swap_exp": (
        lambda: layers.AffineCoupling(None, partition="checkerboard", swap=True, scale="exp"),
        IMAGE,
        None,
    ),
    "affine_channels_of_tokens": (
        lambda: token_coupling("channels", network=ViT(4, num_heads=2), scale="max_sigmoid"),
        (6, 4),
        None,
    ),
    "affine_half_of_tokens_swap": (
        lambda: token_coupling("checkerboard-inv", scale="max_sigmoid", max_scale=3, swap=True),
        (6, 2),
        None,
    ),
    "batch_norm": (layers.BatchNorm, VECTOR, None),
    "batch_norm_image": (layers.BatchNorm, IMAGE, None),
    "batch_norm_half_swap": (lambda: layers.BatchNorm(partition="half", swap=True), IMAGE, None),
    "batch_norm_even_odd": (lambda: layers.BatchNorm(partition="even_odd"), IMAGE, None),
    "batch_norm_random_elements": (
        lambda: layers.BatchNorm(partition=RandomElements()),
        TOKENS,
        None,
    ),
    "batch_norm_checkerboard": (lambda: layers.BatchNorm(partition="checkerboard"), IMAGE, None),
    "batch_norm_checkerboard_swap": (
        lambda: layers.BatchNorm(partition="checkerboard", swap=True),
        (3, 3, 2),
        None,
    ),
    "causal_affine": (causal_affine, TOKENS, None),
    "causal_affine_of_classes": (
        lambda: causal_affine(condition_shape=(3,)),
        TOKENS,
        np.array([0, 2, -1, 1]),
    ),
    "coupling_of_classes": (
        lambda: layers.AdditiveCoupling(MLP(6), condition_shape=(3,)),
        VECTOR,
        LABELS,
    ),
    "coupling_of_features": (
        lambda: layers.AffineCoupling(
            ResNet(4, 1, masked=True), partition="checkerboard", condition_shape=(2,)
        ),
        IMAGE,
        FEATURES,
    ),
    "coupling_of_maps": (
        lambda: layers.AffineCoupling(ConvNet(4), condition_shape=(4, 8, 2)),
        IMAGE,
        MAPS,
    ),
    "chain": (lambda: layers.Chain([layers.Logit(), layers.ActNorm()]), VECTOR, None),
    "chain_nested": (
        lambda: layers.Chain(
            [
                layers.Squeeze(),
                layers.Chain([*step(ConvNet(4)), layers.Chain([layers.Permute()])]),
                layers.Flatten(),
                layers.LearnedPrior(num_classes=3),
            ]
        ),
        (2, 4, 1),
        LABELS,
    ),
    "diagonal_scaling": (layers.DiagonalScaling, IMAGE, None),
    "flatten": (layers.Flatten, IMAGE, None),
    "invertible_conv1x1": (layers.InvertibleConv1x1, VECTOR, None),
    "invertible_conv1x1_image": (layers.InvertibleConv1x1, IMAGE, None),
    "invertible_conv1x1_tokens": (layers.InvertibleConv1x1, TOKENS, None),
    "learned_prior": (layers.LearnedPrior, VECTOR, None),
    "learned_prior_image": (layers.LearnedPrior, IMAGE, None),
    "learned_prior_of_classes": (lambda: layers.LearnedPrior(num_classes=3), VECTOR, LABELS),
    "learned_prior_of_features": (
        lambda: layers.LearnedPrior(condition_shape=(2,)),
        VECTOR,
        FEATURES,
    ),
    "learned_prior_of_maps": (
        lambda: layers.LearnedPrior(condition_shape=(4, 8, 2)),
        IMAGE,
        MAPS,
    ),
    "logit": (layers.Logit, VECTOR, None),
    "logit_bounds": (
        lambda: layers.Logit(low=[0, None, -3, 0.1, -9], high=[1, None, 0.9, 1, 9]),
        VECTOR,
        None,
    ),
    "logit_open": (lambda: layers.Logit(0.0), IMAGE, None),
    "multi_scale": (
        lambda: layers.MultiScale(
            [
                layers.Chain([layers.Squeeze(), layers.AffineCoupling(None, scale="exp")]),
                layers.Chain([*step(None), layers.AffineCoupling(None, scale="exp")]),
                layers.Chain([layers.Squeeze(), layers.LearnedPrior(num_classes=3)]),
            ]
        ),
        (4, 4, 2),
        LABELS,
    ),
    "multi_scale_one_level": (lambda: layers.MultiScale([layers.ActNorm()]), IMAGE, None),
    "multi_scale_vector": (
        lambda: layers.MultiScale([layers.InvertibleConv1x1(), layers.DiagonalScaling()]),
        (6,),
        None,
    ),
    "patchify": (lambda: layers.Patchify(2), (4, 2, 3), None),
    "patchify_channel": (lambda: layers.Patchify(3, order="channel"), (6, 3, 2), None),
    "permute": (layers.Permute, VECTOR, None),
    "permute_image": (lambda: layers.Permute([2, 0, 1]), IMAGE, None),
    "repeat": (lambda: layers.Repeat(layers.Chain(step(MLP(6))), 3), VECTOR, None),
    "repeat_reversible": (
        lambda: layers.Repeat(layers.Chain(step(ConvNet(4))), 2, reversible=True),
        IMAGE,
        None,
    ),
    "repeat_of_repeat": (
        lambda: layers.Repeat(
            layers.Chain([layers.Repeat(layers.Chain(step(MLP(6))), 2), layers.Permute()]), 2
        ),
        VECTOR,
        None,
    ),
    "repeat_of_tokens": (
        lambda: layers.Repeat(
            layers.Chain([*step(MLP(6)), SinhCoupling(MLP(6), partition=RandomElements())]),
            2,
            reversible=True,
        ),
        TOKENS,
        None,
    ),
    "repeat_of_features": (
        lambda: layers.Repeat(
            layers.Chain([layers.AffineCoupling(MLP(6), condition_shape=(2,)), layers.Permute()]),
            2,
            reversible=True,
        ),
        TOKENS,
        FEATURES,
    ),
    "repeat_of_sequences": (
        lambda: layers.Repeat(
            token_coupling(
                *("channels", "hstripes"),
                network=ViT(4, num_heads=2),
                condition_shape=(5, 2),
            ),
            2,
            reversible=True,
        ),
        (6, 2),
        SEQUENCES,
    ),
    "repeat_of_batch_norm": (lambda: layers.Repeat(layers.BatchNorm(), 2), VECTOR, None),
    "repeat_of_classes": (
        lambda: layers.Repeat(layers.LearnedPrior(num_classes=3), 2, reversible=True),
        VECTOR,
        LABELS,
    ),
    "rescale": (lambda: layers.Rescale(1 / 4, -0.5), IMAGE, None),
    "rescale_negative": (lambda: layers.Rescale(-3), VECTOR, None),
    "sinh_checkerboard": (
        lambda: SinhCoupling(MLP(6), partition="checkerboard", swap=True),
        IMAGE,
        None,
    ),
    "spline_checkerboard": (  # some elements are outside of the bounds
        lambda: layers.SplineCoupling(MLP(6), bins=3, tail_bound=0.5, partition="checkerboard"),
        IMAGE,
        None,
    ),
    "spline_even_odd_swap": (
        lambda: layers.SplineCoupling(
            ResidualMLP(6, 1, dropout=0.5), partition="even_odd", swap=True
        ),
        VECTOR,
        None,
    ),
    "spline_of_features": (
        lambda: layers.SplineCoupling(ResidualMLP(6, 1), bins=3, condition_shape=(2,)),
        TOKENS,
        FEATURES,
    ),
    "squeeze": (layers.Squeeze, (4, 2, 3), None),
    "squeeze_cell": (lambda: layers.Squeeze(order="cell"), (2, 4, 3), None),
    "squeeze_by_3": (lambda: layers.Squeeze(3), (6, 3, 2), None),
    "standardize": (layers.Standardize, VECTOR, None),
    "standardize_image": (layers.Standardize, IMAGE, None),
    "user": (UserBijection, VECTOR, None),
}
