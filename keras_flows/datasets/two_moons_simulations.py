"""Parameters and what a simulator makes of them: for p(parameters | observation)."""

import numpy as np
import tensorflow_datasets as tfds

_DESCRIPTION = """
Two moons, of the benchmark of simulation-based inference by Lueckmann et al. 2021
(arXiv:2101.04653). `features` are parameters t, uniform in [-1, 1]^2; `condition` is an observation
x = (r cos a + 1/4, r sin a) + (-|t1 + t2|, t2 - t1) / sqrt 2, with a uniform in [-pi/2, pi/2] and r
normal around 0.1 with deviation 0.01. The posterior has two modes, each a moon.
"""


def simulate(random, count):
    """Parameters from the prior and observations from the simulator, both (count, 2)."""
    parameters = random.uniform(-1, 1, size=(count, 2))
    angle = random.uniform(-np.pi / 2, np.pi / 2, size=count)
    radius = random.normal(0.1, 0.01, size=count)
    moon = np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], axis=1)
    first, second = parameters.T
    offset = np.stack([-np.abs(first + second), second - first], axis=1) / np.sqrt(2)
    return np.float32(parameters), np.float32(moon + offset)


class TwoMoonsSimulations(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """`features` and `condition`, float32 (2,) each; train 20,000, test 2,000."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        two = tfds.features.Tensor(shape=(2,), dtype=np.float32)
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict({"features": two, "condition": two}),
            supervised_keys=("condition", "features"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(20_000, seed=0),
            "test": self._generate_examples(2_000, seed=1),
        }

    def _generate_examples(self, count, seed):
        # RandomState, because NumPy promises that its stream never changes
        pairs = zip(*simulate(np.random.RandomState(seed), count), strict=True)
        for key, (parameters, observation) in enumerate(pairs):
            yield key, {"features": parameters, "condition": observation}
