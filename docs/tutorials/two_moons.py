# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Two moons, end to end
#
# Learn a density from points, look at it from all sides, draw new points, and keep the model. It
# takes no GPU, and less than a minute of computing.
#
# A normalizing flow is a network that can be inverted. Forwards, it turns data into Gaussian noise;
# backwards, noise into data. As it also tells how much it stretches space at each place, it knows
# the **exact density** of your data: not a bound, not a score.

# %%
import keras
import numpy as np
from matplotlib import pyplot

import keras_flows
from keras_flows import plot

keras.utils.set_random_seed(0)

# %% [markdown]
# ## Load points
#
# `data.load` gives batches. The moons come with the package: 10,000 points to train on, 2,000 to
# test with. Keep a tenth of the first to stop the training by.

# %%
train = keras_flows.data.load("moons", split="train[:90%]", batch_size=256, seed=0)
validation = keras_flows.data.load("moons", split="train[90%:]", batch_size=1000)
test = keras_flows.data.load("moons", split="test", batch_size=2000)

points = next(iter(test)).numpy()  # (2000, 2)
_, ax = pyplot.subplots(figsize=(4.8, 3.2), layout="constrained")
ax.scatter(*points.T, s=3, linewidths=0)
ax.set_aspect("equal")

# %% [markdown]
# ## Choose a model
#
# Take `NSF`, a neural spline flow: its splines bend space where affine maps only scale it, and
# moons are bent. The shape of a point is all that it must be told. Data come in their own units, as
# it standardises them itself.

# %%
model = keras_flows.zoo.NSF(input_shape=(2,), depth=4, width=32, seed=0)

# %% [markdown]
# ## Fit it
#
# Compile with an optimizer alone: there is no loss to choose, as a flow has but one, the negative
# log-likelihood. All else is Keras. Stop when the points kept back no longer become likelier, and
# go back to the best weights.

# %%
model.compile(keras.optimizers.Adam(2e-3))
stop = keras.callbacks.EarlyStopping(patience=6, restore_best_weights=True)
history = model.fit(train, validation_data=validation, epochs=40, callbacks=[stop], verbose=0)
plot.training(history, "loss")

# %% [markdown]
# The loss is in nats per point, and lower is better. Is it good? Compare it with a Gaussian of the
# points' mean and covariance. In one nat less, each point is *e* times as likely.

# %%
nats = model.evaluate(test, return_dict=True, verbose=0)["loss"]
log_det = np.linalg.slogdet(np.cov(points.T))[1]
gaussian = 0.5 * (log_det + 2 * np.log(2 * np.pi * np.e))

print(f"the flow: {nats:.2f} nats per point, a Gaussian: {gaussian:.2f}")
assert nats < 1.2 < 1.8 < gaussian

# %% [markdown]
# The flow takes 1.07, the Gaussian 1.91. (Your machine may differ in the last digit.)
#
# ## Look at the density
#
# `log_prob` tells how dense it is at any point, in nats, exactly. `plot.density` asks it all over
# the plane, and draws the test points on top.

# %%
plot.density(model, points[:500])

# %% [markdown]
# Trust, but check: a density adds up to 1. Sum it over a grid that reaches beyond the moons.

# %%
x, y = np.meshgrid(np.linspace(-2.5, 3.5, 300), np.linspace(-2.5, 3, 275))
places = np.stack([x.ravel(), y.ravel()], axis=1)
density = np.exp(model.log_prob(places).numpy())
total = density.sum() * (6 / 299) * (5.5 / 274)

print(f"the density adds up to {total:.4f}")
assert abs(total - 1) < 0.02

# %% [markdown]
# ## See what the flow does to space
#
# `encode` takes points to their latents. Colour each point by where it was in the data, and see how
# the moons become one round cloud: a Gaussian.

# %%
latents = model.encode(points).numpy()  # (2000, 2)

_, axes = pyplot.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
for ax, cloud, title in zip(axes, (points, latents), ("data", "latents")):
    ax.scatter(*cloud.T, c=points[:, 0], cmap="viridis", s=4, linewidths=0)
    ax.set(title=title, aspect="equal")

# %% [markdown]
# Nothing is lost on the way: `decode` takes latents back to the same points.

# %%
error = np.abs(model.decode(latents) - points).max()
assert error < 1e-3

# %% [markdown]
# Decode a square grid of latents, and you see the other direction: how the flow bends flat noise
# until it has the shape of the data. Lines lie close where it squeezes; there it is dense.

# %%
plot.latent_grid(model, ax=plot.density(model))

# %% [markdown]
# ## Draw new points
#
# `sample` draws noise, and decodes it. The same seed gives the same points. Put them over the data:
# one cannot tell them apart, neither in the plane nor along the axes.

# %%
samples = model.sample(2000, seed=1).numpy()  # (2000, 2)
plot.pairs({"data": points, "samples": samples}, names=["across", "up"])

# %% [markdown]
# `temperature` multiplies the noise. Turned down, samples come from the middle of the latents. Of
# images that gives clean ones; of moons it does not, as their middle is where one passes into the
# other. So look at what you get, and for numbers leave it at 1: that alone is the density.

# %%
cool = model.sample(500, temperature=0.4, seed=1)
plot.density(model, cool, bounds=((-1.5, 2.5), (-1, 1.5)))

# %% [markdown]
# ## Keep it
#
# Save one `.keras` file: architecture, weights and the optimizer's state. Whoever loads it imports
# `keras_flows` first, and needs none of the code above.

# %%
model.save("moons.keras")
loaded = keras.models.load_model("moons.keras")
np.testing.assert_allclose(loaded.log_prob(points), model.log_prob(points), atol=1e-4)

# %% [markdown]
# ## Where to go next
#
# - Make the density depend on something: [posteriors from simulations](posterior.py).
# - Find what does not belong in a table: [anomalies](anomalies.py).
# - Do the same with pictures: [images](images.py).
# - Serve the model without Python: [serving](serving.py).
# - Choose among models, and how large: [Choosing a model](../choosing_a_model.md).
