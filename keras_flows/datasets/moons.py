"""Two half circles in the plane."""

import numpy as np
import tensorflow_datasets as tfds

_DESCRIPTION = """
Two interleaved half circles of radius 1: the upper half about (0, 0), label 0, and the lower half
about (1, 1/2), label 1, with Gaussian noise of standard deviation 0.1.
"""


class Moons(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """`features` float32 (2,), `label` 0 (upper) or 1 (lower); train 10,000, test 2,000."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "features": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                    "label": tfds.features.ClassLabel(num_classes=2),
                }
            ),
            supervised_keys=("features", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(10_000, seed=0),
            "test": self._generate_examples(2_000, seed=1),
        }

    def _generate_examples(self, num_points, seed):
        # RandomState, because NumPy promises that its stream never changes
        random = np.random.RandomState(seed)
        label = random.randint(2, size=num_points)
        angle = random.uniform(0, np.pi, size=num_points)
        arc = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        # the lower moon is the upper one turned by half a circle, about (1/2, 1/4)
        points = np.where(label[:, None] == 0, arc, [1, 0.5] - arc)
        points += random.normal(scale=0.1, size=points.shape)
        points = points.astype(np.float32)
        for key, (point, which) in enumerate(zip(points, label, strict=True)):
            yield key, {"features": point, "label": int(which)}
