"""Neural spline flows of couplings in other libraries, eager and compiled by torch.compile.

Making one imports its library; importing this module does not.
"""

import functools

from sizes import BINS, BLOCKS, FEATURES, TAIL_BOUND, WIDTH
from torch_peer import TorchPeer, eager_and_compiled


class NflowsNSF(TorchPeer):
    """As its authors, who wrote the paper, train it: a permutation, LU, coupling, in turn.

    The permutations are fixed; the masks alternate. The network is the one that ours follows.
    """

    def build(self, depth):
        from nflows import distributions, flows, transforms
        from nflows.nn.nets import ResidualNet
        from nflows.utils import create_alternating_binary_mask

        def linear():
            mix = transforms.LULinear(FEATURES, using_cache=True)
            return [transforms.RandomPermutation(FEATURES), mix]

        def coupling(even):
            return transforms.PiecewiseRationalQuadraticCouplingTransform(
                create_alternating_binary_mask(FEATURES, even=even),
                functools.partial(ResidualNet, hidden_features=WIDTH, num_blocks=BLOCKS),
                num_bins=BINS,
                tails="linear",
                tail_bound=TAIL_BOUND,
            )

        steps = []
        for i in range(depth):
            steps += [*linear(), coupling(even=i % 2 == 0)]
        steps += linear()
        base = distributions.StandardNormal([FEATURES])
        return flows.Flow(transforms.CompositeTransform(steps), base)


class ZukoNSF(TorchPeer):
    """Of its coupling, spline and LU transforms; the networks are MLPs of as many layers.

    zuko.flows.NSF with `passes=2` has couplings, too, but its masked networks give the half that
    stays parameters as well, and splines, which is more to compute.
    """

    def build(self, depth):
        import torch
        import zuko
        from zuko.flows import GeneralCouplingTransform

        def linear():
            matrix = torch.eye(FEATURES)
            return zuko.lazy.UnconditionalTransform(zuko.transforms.LULinearTransform, matrix)

        def coupling(odd):
            spline = zuko.transforms.MonotonicRQSTransform
            return GeneralCouplingTransform(
                FEATURES,
                mask=torch.arange(FEATURES) % 2 == odd,
                univariate=functools.partial(spline, bound=TAIL_BOUND),
                shapes=[(BINS,), (BINS,), (BINS - 1,)],
                hidden_features=[WIDTH] * (2 * BLOCKS + 1),
            )

        steps = []
        for i in range(depth):
            steps += [linear(), coupling(odd=i % 2)]
        zeros, ones = torch.zeros(FEATURES), torch.ones(FEATURES)
        normal = zuko.distributions.DiagNormal
        base = zuko.lazy.UnconditionalDistribution(normal, zeros, ones, buffer=True)
        return zuko.lazy.Flow([*steps, linear()], base)

    def log_likelihoods(self):
        return self.model().log_prob(self.batch)

    def draw(self, number):
        return self.model().sample((number,))


SPLINE_PEERS = eager_and_compiled({"nflows": NflowsNSF, "zuko": ZukoNSF})
