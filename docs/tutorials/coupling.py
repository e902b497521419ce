# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A coupling of your own
#
# Has a paper a transform that is not here, or do you know something of your data that no layer
# knows? Write the formula; the rest is there. In this tutorial it is the tails: daily returns of
# shares are calm on most days and wild on some, and affine maps keep the tails of what they are
# given.
#
# It takes less than a minute of computing.

# %%
import keras
import numpy as np
from keras import ops
from matplotlib import pyplot

import keras_flows
from keras_flows import layers, networks
from keras_flows.layers.coupling import Coupling

keras.utils.set_random_seed(0)

# %% [markdown]
# ## Make data with heavy tails
#
# Two shares that move together. How wild the day is, is drawn first, for both.

# %%
rng = np.random.default_rng(0)
wildness = np.exp(0.7 * rng.normal(size=(6000, 1)))
moves = rng.normal(size=(6000, 2)) @ [[1.0, 0.6], [0.0, 0.8]]
returns = (wildness * moves).astype("float32")  # (6000, 2)
train, validation, test = np.split(returns, [4000, 5000])

_, ax = pyplot.subplots(figsize=(4, 4), layout="constrained")
ax.scatter(*train.T, s=3, linewidths=0)
ax.set(xlabel="one share, %", ylabel="the other, %")

# %% [markdown]
# ## Write the transform
#
# `arcsinh` is linear near 0 and logarithmic far out, and `sinh` undoes it. A factor *a* between
# them makes tails lighter (a < 1) or heavier (a > 1), and *b* leans to one side:
#
# z = sinh(a arcsinh(x) + b), of slope dz/dx = a cosh(a arcsinh(x) + b) / sqrt(1 + x²)
#
# The inverse is the same function, of 1/a and -b/a. Of cosh take the logarithm in a form that does
# not overflow.


# %%
def bend(x, a, b):
    """sinh(a arcsinh(x) + b), and the logarithm of its slope, element by element."""
    u = a * ops.arcsinh(x) + b
    log_cosh = ops.logaddexp(u, -u) - np.log(2)
    return ops.sinh(u), ops.log(a) + log_cosh - 0.5 * ops.log1p(x * x)


# %% [markdown]
# ## Make a coupling of it
#
# A coupling changes one part of a row by parameters that a network makes of the other. Say how many
# parameters each number takes, and what to do with them. Parting, networks, conditions, masks of
# images, gradients, files: all of that is `Coupling`'s. Register the class, so that files know it.
#
# Keep *a* near 1, between 0.78 and 1.28: what several of them do in a row multiplies.


# %%
@keras.saving.register_keras_serializable(package="tutorial")
class TailCoupling(Coupling):
    """z2 = sinh(a arcsinh(x2) + b), a near 1; log_det is the sum of log slopes."""

    parameters_per_channel = 2

    def transform(self, x2, parameters):
        log_a, b = ops.split(parameters, 2, axis=-1)
        return bend(x2, ops.exp(ops.tanh(log_a) / 4), b)

    def inverse_transform(self, z2, parameters):
        log_a, b = ops.split(parameters, 2, axis=-1)
        inverse_a = ops.exp(-ops.tanh(log_a) / 4)
        return bend(z2, inverse_a, -b * inverse_a)


# %% [markdown]
# ## Check it
#
# A wrong sign in a log-determinant gives no error. It gives a model that trains, and lies.
# `check_bijection` compares it with the Jacobian, and the inverse with the forward direction.

# %%
keras_flows.check_bijection(TailCoupling(networks.MLP(16)), train[:8])

# %% [markdown]
# It says nothing: all is well. Make a mistake on purpose, and it tells you what should have been,
# and what was.


# %%
class Forgetful(TailCoupling):
    def transform(self, x2, parameters):
        z2, log_slope = super().transform(x2, parameters)
        return z2, 0.9 * log_slope


message = ""
try:
    keras_flows.check_bijection(Forgetful(networks.MLP(16)), train[:8])
except AssertionError as error:
    message = str(error)
print(message)
assert "log_det" in message

# %% [markdown]
# ## Build a flow
#
# Place it among the zoo's layers: standardise, then four times a linear map, which mixes the two
# numbers, and the coupling. `Repeat` stacks the weights of all four steps, so that depth does not
# make the graph grow. With the coupling as an argument, compare yours with an affine one.


# %%
def flow(coupling):
    step = layers.Chain([layers.InvertibleConv1x1(), coupling(networks.ResidualMLP(32))])
    chain = layers.Chain([layers.Standardize(), layers.Repeat(step, depth=4)])
    return keras_flows.Flow(chain, input_shape=(2,), seed=0)


models = {"affine": flow(layers.AffineCoupling), "tails": flow(TailCoupling)}

# %% [markdown]
# ## Train both

# %%
losses = {}
for name, model in models.items():
    keras.utils.set_random_seed(0)
    model.compile(keras.optimizers.Adam(2e-3, global_clipnorm=5.0))
    stop = keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True)
    data = {"validation_data": (validation,), "batch_size": 128, "epochs": 30}
    model.fit(train, **data, callbacks=[stop], verbose=0)
    losses[name] = model.evaluate(test, return_dict=True, verbose=0)["loss"]
    print(f"{name}: {losses[name]:.3f} nats per day")
assert abs(losses["tails"] - losses["affine"]) < 0.15

# %% [markdown]
# In nats they hardly differ, 3.14 and 3.12, as rare days weigh little. So look at the tails
# themselves: how often is a day wilder than so many percent? Both axes are logarithmic.

# %%
samples = {"data": returns}
samples |= {name: model.sample(6000, seed=1).numpy() for name, model in models.items()}

_, ax = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
for name, rows in samples.items():
    size = np.sort(np.abs(rows).max(axis=1))
    ax.plot(size, 1 - np.arange(len(size)) / len(size), label=name)
ax.set(xscale="log", yscale="log", xlim=(1, 100), xlabel="move of either share, %")
ax.set_ylabel("share of days beyond")
ax.legend()

# %% [markdown]
# Both know the calm days. Of the wild ones, yours come as far as the data do. Affine steps make
# tails by scales that depend on the other share; step upon step that runs away, to days that no
# market has seen, or to rows that overflow, of which a warning tells.

# %%
wildest = {name: np.nanmax(np.abs(rows)) for name, rows in samples.items()}
print(*(f"{name}: {size:.0f} %" for name, size in wildest.items()), sep=", ")
assert wildest["tails"] < 10 * wildest["data"]

# %% [markdown]
# ## Keep it
#
# It saves, exports and makes presets as any other. Where it is loaded, import the module that
# registers the class.

# %%
models["tails"].save("tails.keras")
loaded = keras.models.load_model("tails.keras")
np.testing.assert_allclose(loaded.log_prob(test), models["tails"].log_prob(test), atol=1e-4)

# %% [markdown]
# ## Where to go next
#
# - Bijections that are no couplings, conditions, models with names: [Writing a
#   layer](../writing_a_layer.md).
# - What there is already: [Layers](../api/layers.md), [networks](../api/networks.md).
# - Bring it into the package: [CONTRIBUTING.md](../../CONTRIBUTING.md).
# - [Serve it](serving.py): an export needs none of your code.
