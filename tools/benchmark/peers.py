"""Glow and RealNVP in other libraries, written as their documentation has it.

Making one imports its library; importing this module does not.
"""

import functools
import math

from sizes import FEATURES, IMAGE, LEARNING_RATE, LEVELS, WIDTH
from spline_peers import SPLINE_PEERS
from torch_peer import TorchPeer, conv_net, eager_and_compiled, without_context, zero_conv

CHANNELS_FIRST = (IMAGE[-1], *IMAGE[:-1])


class TfpGlow:
    """tfb.Glow with its default networks, a tf_keras Adam, everything a tf.function."""

    def __init__(self, depth, batch_size, dtype="float32"):
        import tensorflow as tf
        import tensorflow_probability as tfp
        import tf_keras

        if dtype != "float32":
            raise NotImplementedError("it has no mixed precision")
        tf.random.set_seed(0)
        tfb, tfd = tfp.bijectors, tfp.distributions
        self.batch = tf.random.uniform((batch_size, *IMAGE), -0.5, 0.5)
        # Forward is latent to image, which is what a TransformedDistribution wants.
        glow = tfb.Glow(
            output_shape=IMAGE,
            num_glow_blocks=LEVELS,
            num_steps_per_block=depth,
            coupling_bijector_fn=functools.partial(tfb.GlowDefaultNetwork, num_hidden=WIDTH),
            exit_bijector_fn=tfb.GlowDefaultExitNetwork,
        )
        latent = tfd.Sample(tfd.Normal(0.0, 1.0), glow.inverse_event_shape(IMAGE))
        distribution = tfd.TransformedDistribution(latent, glow)
        variables = glow.trainable_variables
        self.parameters = sum(math.prod(v.shape) for v in variables)
        optimizer = tf_keras.optimizers.Adam(LEARNING_RATE)
        optimizer.build(variables)

        # The batch is an argument so that it is no constant of the graph.
        @tf.function
        def train_step(batch):
            with tf.GradientTape() as tape:
                loss = -tf.reduce_mean(distribution.log_prob(batch))
            gradients = tape.gradient(loss, variables)
            optimizer.apply_gradients(zip(gradients, variables))
            return loss

        self._train_step = train_step
        self._log_prob = tf.function(distribution.log_prob)
        self._sample = tf.function(lambda: distribution.sample(batch_size))

    def train_step(self):
        return float(self._train_step(self.batch))

    def log_prob(self):
        return self._log_prob(self.batch).numpy()

    def sample(self):
        return self._sample().numpy()

    def graph(self):
        return self._train_step.get_concrete_function(self.batch).graph


class NormflowsGlow(TorchPeer):
    """MultiscaleFlow of GlowBlocks, whose 1x1 convolutions have the PLU form by default."""

    shape = CHANNELS_FIRST

    def build(self, depth):
        import normflows as nf

        channels, height, width = self.shape
        bases, flows = [], []
        # Latent to image: the innermost level, which has the most channels, comes first.
        for level in range(LEVELS, 0, -1):
            inner = channels * 2 ** (level + 1)
            blocks = [nf.flows.GlowBlock(inner, WIDTH) for _ in range(depth)]
            flows.append([*blocks, nf.flows.Squeeze()])
            latent = inner if level == LEVELS else inner // 2
            bases.append(nf.distributions.DiagGaussian((latent, height >> level, width >> level)))
        merges = [nf.flows.Merge() for _ in range(LEVELS - 1)]
        return nf.MultiscaleFlow(bases, flows, merges, class_cond=False)

    def log_likelihoods(self):
        return self.model.log_prob(self.batch, None)

    def draw(self, number):
        return self.model.sample(number)[0]


class NflowsGlow(TorchPeer):
    """MultiscaleCompositeTransform, with the 1x1 convolutions' cache for inference."""

    shape = CHANNELS_FIRST

    def build(self, depth):
        from nflows import distributions, flows, transforms
        from nflows.utils import create_mid_split_binary_mask

        shape = self.shape
        glow = transforms.MultiscaleCompositeTransform(LEVELS)

        def coupling(network):
            mask = create_mid_split_binary_mask(shape[0])
            return transforms.AffineCouplingTransform(mask, without_context(network))

        for level in range(LEVELS):
            squeeze = transforms.SqueezeTransform()
            shape = squeeze.get_output_shape(*shape)
            steps = [squeeze]
            for _ in range(depth):
                mix = transforms.OneByOneConvolution(shape[0], using_cache=True)
                steps += [transforms.ActNorm(shape[0]), mix, coupling(conv_net)]
            if level < LEVELS - 1:
                # It changes the half that leaves: a prior that depends on the other half.
                steps.append(coupling(zero_conv))
            shape = glow.add_transform(transforms.CompositeTransform(steps), shape)
        return flows.Flow(glow, distributions.StandardNormal([math.prod(IMAGE)]))


class FreiaGlow(TorchPeer):
    """GraphINN of AllInOneBlocks: FrEIA's actnorm, rotation and affine coupling in one.

    FrEIA learns 1x1 convolutions as Householder reflections only, whose loop would about double a
    step's time. Its usual substitute is `permute_soft`: a random rotation that is not learned, so
    that there are fewer parameters. The scale is the block's clamped exponential.
    """

    shape = CHANNELS_FIRST

    def build(self, depth):
        import FrEIA.framework as ff
        import FrEIA.modules as fm

        nodes, ends = [ff.InputNode(*self.shape)], []

        def add(module, **options):
            nodes.append(ff.Node(nodes[-1].out0, module, options))

        for level in range(LEVELS):
            add(fm.IRevNetDownsampling)
            for _ in range(depth):
                add(fm.AllInOneBlock, subnet_constructor=conv_net, permute_soft=True)
            if level < LEVELS - 1:
                # It changes the half that leaves: a prior that depends on the other half.
                add(fm.AffineCouplingOneSided, subnet_constructor=zero_conv)
                add(fm.Split)
                ends.append(ff.OutputNode(nodes[-1].out1))
        ends.append(ff.OutputNode(nodes[-1].out0))
        return ff.GraphINN([*nodes, *ends])

    def log_likelihoods(self):
        latents, log_det = self.model(self.batch)
        squares = sum(z.square().sum(dim=(1, 2, 3)) for z in latents)
        return log_det - 0.5 * squares - 0.5 * math.prod(IMAGE) * math.log(2 * math.pi)

    def draw(self, number):
        shapes, device = self.model.global_out_shapes, self.device
        latents = [self.torch.randn(number, *shape, device=device) for shape in shapes]
        return self.model(latents, rev=True, jac=False)[0]


class NormflowsRealNVP(TorchPeer):
    """AffineCouplingBlocks between swaps of the halves."""

    def build(self, depth):
        import normflows as nf

        flows = []
        for _ in range(depth):
            network = nf.nets.MLP([FEATURES // 2, WIDTH, WIDTH, FEATURES], init_zeros=True)
            flows += [nf.flows.AffineCouplingBlock(network), nf.flows.Permute(FEATURES, "swap")]
        return nf.NormalizingFlow(nf.distributions.DiagGaussian(FEATURES), flows)

    def draw(self, number):
        return self.model.sample(number)[0]


class NflowsRealNVP(TorchPeer):
    """AffineCouplingTransforms. (SimpleRealNVP has residual networks, of another size.)"""

    def build(self, depth):
        from nflows import distributions, flows, transforms
        from nflows.nn.nets import MLP
        from nflows.utils import create_mid_split_binary_mask

        def network(features_in, features_out):
            return MLP([features_in], [features_out], [WIDTH, WIDTH])

        mask = create_mid_split_binary_mask(FEATURES)
        steps = []
        for _ in range(depth):
            steps.append(transforms.AffineCouplingTransform(mask, without_context(network)))
            mask = 1 - mask
        base = distributions.StandardNormal([FEATURES])
        return flows.Flow(transforms.CompositeTransform(steps), base)


class ZukoRealNVP(TorchPeer):
    """zuko.flows.RealNVP, whose halves are the even and the odd features."""

    def build(self, depth):
        import zuko

        return zuko.flows.RealNVP(FEATURES, transforms=depth, hidden_features=(WIDTH, WIDTH))

    def log_likelihoods(self):
        return self.model().log_prob(self.batch)

    def draw(self, number):
        return self.model().sample((number,))


GLOW_PEERS = {"normflows": NormflowsGlow, "nflows": NflowsGlow, "freia": FreiaGlow}
REAL_NVP_PEERS = {"nflows": NflowsRealNVP, "zuko": ZukoRealNVP, "normflows": NormflowsRealNVP}

PEERS = {
    "glow": {"tfp": TfpGlow, **eager_and_compiled(GLOW_PEERS)},
    "real_nvp": eager_and_compiled(REAL_NVP_PEERS),
    "nsf": SPLINE_PEERS,
}
