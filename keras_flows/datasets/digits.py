"""Handwritten digits, 8 x 8 pixels."""

import pathlib

import numpy as np
import tensorflow_datasets as tfds

_DESCRIPTION = """
1,797 handwritten digits as 8 x 8 grey images: the test set of the UCI data, as scikit-learn ships
it. The source counts black pixels in 4 x 4 blocks, levels 0 to 16; a pixel is min(16 * level, 255).
The first 1,500 are the train split, the other 297 the test split.
"""

_CITATION = """
@misc{optical_recognition_of_handwritten_digits_80,
  author       = {Alpaydin, E. and Kaynak, C.},
  title        = {{Optical Recognition of Handwritten Digits}},
  year         = {1998},
  howpublished = {UCI Machine Learning Repository},
  note         = {{DOI}: https://doi.org/10.24432/C50P49}
}
"""


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """`image` uint8 (8, 8, 1), `label` 0..9; train 1,500, test 297, in the order of the source.

    Data: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (1998), UCI Machine
    Learning Repository, https://doi.org/10.24432/C50P49, licensed under CC BY 4.0,
    https://creativecommons.org/licenses/by/4.0/. Changes: only the 1,797 images of its test set,
    taken from scikit-learn's copy and packed as `digits.npz`; the levels 0..16 become pixels.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation=_CITATION,
            license="CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        with np.load(pathlib.Path(__file__).with_name("digits.npz")) as data:
            images = np.minimum(16 * data["levels"].astype(int), 255).astype(np.uint8)[..., None]
            labels = data["labels"]
        return {
            "train": self._generate_examples(images[:1500], labels[:1500]),
            "test": self._generate_examples(images[1500:], labels[1500:]),
        }

    def _generate_examples(self, images, labels):
        for key, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield key, {"image": image, "label": int(label)}
