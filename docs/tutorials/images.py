# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Images: from a preset to your own
#
# Start from a model that somebody has trained, show it other images, and play: sample hotter and
# colder, walk from one image to another, make digits bolder. All of it on 8 x 8 pixels, so that it
# takes a minute without a GPU; larger models do it by the same lines.

# %%
import keras
import numpy as np
from matplotlib import pyplot

import keras_flows
from keras_flows import latent, plot

keras.utils.set_random_seed(0)

# %% [markdown]
# ## Load a preset
#
# A preset is an architecture with its weights. `glow_digits` is a small Glow of handwritten digits.
# Images are uint8, in and out: never divide them by 255.

# %%
model = keras_flows.zoo.Glow.from_preset("glow_digits")
digits = keras_flows.data.load("digits", split="test", batch_size=297, labels=True)
images, labels = (each.numpy() for each in next(iter(digits)))  # images: (297, 8, 8, 1)

_, axes = pyplot.subplots(1, 2, figsize=(8, 4), layout="constrained")
plot.images(images[:64], ax=axes[0]).set_title("data")
plot.images(model.sample(64, seed=0), ax=axes[1]).set_title("samples")

# %% [markdown]
# Images are told in bits per dimension: what a lossless code would need for each pixel. Fewer are
# better. The model sees 4 bits of each pixel, so 4 would be a blind guess.


# %%
def bits_per_dim(model, images):
    return model.evaluate(images, return_dict=True, verbose=0)["bits_per_dim"]


usual = bits_per_dim(model, images)
print(f"{usual:.2f} bits per dimension")
assert usual < 2.5

# %% [markdown]
# ## Fine-tune it
#
# It takes 2.38. Now somebody writes mirrored. To the model that is strange, and costs 3.72.

# %%
mirrored = images[:, :, ::-1]
before = bits_per_dim(model, mirrored)
print(f"{before:.2f} bits per dimension")
assert before > usual + 1

# %% [markdown]
# Suppose that you have only 300 such images. Compile the preset anew, with a learning rate below
# the one that it was trained with, and fit. Strokes, thickness and blank margins it knows already.

# %%
train = keras_flows.data.load("digits", split="train[:300]", batch_size=300)
few = next(iter(train)).numpy()[:, :, ::-1]

tuned = keras_flows.zoo.Glow.from_preset("glow_digits")
tuned.compile(keras.optimizers.Adam(1e-3))
stop = keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True)
history = tuned.fit(few[:250], validation_data=(few[250:],), epochs=40, callbacks=[stop], verbose=0)
plot.training(history)

# %% [markdown]
# Was the preset worth it? Train the same architecture from scratch on the same images.

# %%
fresh = keras_flows.zoo.Glow.from_preset("glow_digits", load_weights=False)
fresh.compile(keras.optimizers.Adam(2e-3))
fresh.fit(few[:250], validation_data=(few[250:],), epochs=40, callbacks=[stop], verbose=0)

after, scratch = bits_per_dim(tuned, mirrored), bits_per_dim(fresh, mirrored)
print(f"fine-tuned: {after:.2f} bits per dimension, from scratch: {scratch:.2f}")
assert after < scratch < before

# %% [markdown]
# It was: 2.77 bits per dimension, against 3.17 from scratch.
#
# ## Turn the temperature
#
# `temperature` multiplies the noise that samples are made of. Each column here is the same noise.
# Turned down, samples come near an average digit, and near each other; turned up, they differ, and
# some break. Of larger images, 0.7 often looks best.

# %%
plot.temperatures(tuned, (0.4, 0.6, 0.8, 1.0), n=10)

# %% [markdown]
# ## Walk from one image to another
#
# Mix two images pixel by pixel, and you see both at once. Mix their latents, and what is between
# looks like an image, too. The ends are the images themselves, in the 4 bits that it models.

# %%
plot.interpolation(tuned, mirrored[:4], mirrored[4:8], n=10)

# %% [markdown]
# ## Move along an attribute
#
# Which direction is "bolder"? Take the latents of bold images, those of the others, and subtract
# the means. That is all there is to it ([Glow](https://arxiv.org/abs/1807.03039), section 6), and
# no label was needed in training.

# %%
ink = images.mean(axis=(1, 2, 3))
z = model.encode(images).numpy()
bolder = latent.direction(z, ink > np.median(ink))

strengths = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
rows = [model.decode(z[:5] + strength * bolder).numpy() for strength in strengths]
strips = np.stack(rows, axis=1).reshape(-1, 8, 8, 1)
plot.images(strips, columns=len(strengths))

# %% [markdown]
# In the middle are the images as they were. To both sides, the digit stays, and its ink goes or
# comes:

# %%
means = [each.mean() for each in rows]
print("mean brightness:", *(f"{mean:.0f}" for mean in means))
assert means == sorted(means)

# %% [markdown]
# Any attribute will do that you can tell of some images: a class, a slant, a smile.
#
# ## Where to go next
#
# - A class of your choice: `num_classes=10` and `condition=7` ([Conditional
#   densities](../conditional_densities.md#classes)).
# - Your own folder of images, black pixels, bits: [Images](../images.md).
# - All presets, with their figures: [Presets](../presets.md).
# - Deeper models: [Depth and memory](../depth_and_memory.md).
# - Is an image like those in training? [Images unlike the training
#   data](../out_of_distribution.md).
