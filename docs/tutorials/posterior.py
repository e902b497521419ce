# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What caused this? Posteriors from simulations
#
# You can simulate what follows from causes: an epidemic from how fast people infect each other and
# recover. You have seen the outcome, and want the causes back, all that are plausible, with how
# plausible each is: the posterior. There is no formula for it. But a conditional flow learns it
# from pairs of causes and outcomes, and simulations give as many of those as you like.
#
# It takes less than a minute of computing.

# %%
import keras
import numpy as np
from matplotlib import pyplot

import keras_flows
from keras_flows import plot

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)

# %% [markdown]
# ## Write the simulator
#
# A thousand people, ten of them sick. Each day the sick infect some of those who never were, and
# some of the sick recover; who does is chance. What is seen are the numbers of the sick on ten
# days. The simulator takes many pairs of rates at once, and knows nothing of flows.

# %%
DAYS = range(4, 41, 4)


def simulate(rates):
    """The sick on ten days, (n, 10), of daily rates of infection and recovery (n, 2)."""
    sick, well, seen = np.full(len(rates), 10), np.full(len(rates), 990), []
    for day in range(1, max(DAYS) + 1):
        infected = rng.binomial(well, 1 - np.exp(-rates[:, 0] * sick / 1000))
        recovered = rng.binomial(sick, 1 - np.exp(-rates[:, 1]))
        well, sick = well - infected, sick + infected - recovered
        if day in DAYS:
            seen.append(sick)
    return np.stack(seen, axis=1)


# %% [markdown]
# ## Simulate
#
# Say what you believe of the causes before you look: infection between 0.1 and 1 a day, recovery
# between 0.05 and 0.4, all alike. Draw causes from that, and simulate each once.
#
# Give the flow square roots: the noise of a count grows with it, that of its root does not.

# %%
BOUNDS = [(0.1, 1.0), (0.05, 0.4)]


def draw(count):
    rates = rng.uniform(*np.transpose(BOUNDS), size=(count, 2))
    return rates.astype("float32"), np.sqrt(simulate(rates)).astype("float32")


rates, seen = draw(6000)

# %% [markdown]
# Look at a few before you learn from them.

# %%
_, ax = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
for (infection, recovery), curve in zip(rates[:5], seen[:5]):
    ax.plot(DAYS, curve**2, ".-", label=f"{infection:.2f}, {recovery:.2f}")
ax.set(xlabel="day", ylabel="sick people")
ax.legend(title="infection, recovery")

# %% [markdown]
# ## Learn the posterior
#
# A conditional flow is a flow with one more input. `condition_shape` is the shape of an outcome;
# the first argument of `fit` are causes, the second what was seen. Posteriors that end at the edge
# of what you hold possible also want `bounds=BOUNDS`; these are narrow, and end by themselves.

# %%
model = keras_flows.zoo.NSF((2,), condition_shape=(10,), depth=4, seed=0)
model.compile(keras.optimizers.Adam(1e-3))
stop = keras.callbacks.EarlyStopping(patience=6, restore_best_weights=True)
history = model.fit(
    rates,
    seen,
    batch_size=128,
    epochs=40,
    validation_split=0.1,
    callbacks=[stop],
    verbose=0,
)
plot.training(history, "loss")

# %% [markdown]
# ## Ask about what you saw
#
# Here is one outbreak. Its causes were 0.45 and 0.15; the model was never shown it. `sample` with
# this one condition takes a fraction of a second, and so does that of the next outbreak: the
# training was for all of them.

# %%
true = np.array([[0.45, 0.15]], "float32")
observed = np.sqrt(simulate(true)[0]).astype("float32")
posterior = model.sample(2000, condition=observed, seed=1).numpy()  # (2000, 2)

axes = plot.pairs(posterior, names=["infection", "recovery"])
axes[1, 0].plot(*true[0], "r+", markersize=14, markeredgewidth=2)

# %% [markdown]
# Read it as: the rates are about here, give or take so much, and lean together a little, as faster
# infection with faster recovery looks much the same. The red cross, the truth, is among them.

# %%
low, high = np.percentile(posterior, [2.5, 97.5], axis=0)
for name, *ends in zip(("infection", "recovery"), low, high):
    print(f"{name}: {ends[0]:.3f} to {ends[1]:.3f} with 95 %")
assert np.all(low < true) and np.all(true < high)

# %% [markdown]
# Infection is between 0.41 and 0.50, recovery between 0.14 and 0.16: ten numbers tell the second
# much better than the first.
#
# ## Predict
#
# Simulate from the posterior's samples: what they have in common should look like what was seen.
# That is a check; simulate beyond the last day, and it is a forecast with its uncertainty.

# %%
again = simulate(posterior)
_, ax = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
for share, colour in ((95, "0.9"), (50, "0.75")):
    ends = np.percentile(again, [50 - share / 2, 50 + share / 2], axis=0)
    ax.fill_between(DAYS, *ends, color=colour, label=f"{share} % of simulations")
ax.plot(DAYS, observed**2, "ro-", label="seen")
ax.set(xlabel="day", ylabel="sick people")
ax.legend()

# %% [markdown]
# ## Ask whether it can be trusted
#
# One good posterior proves little. Draw fresh outbreaks, whose causes you know, and rank the true
# causes among samples of their posteriors. If the flow is as sure as it should be, every rank is
# equally frequent, and regions of 80 % hold the truth in 80 of 100 cases.

# %%
fresh = draw(200)
below, less_probable = keras_flows.calibration.ranks(model, *fresh, count=99)
plot.calibration(below, less_probable, count=99, names=["infection", "recovery"])

# %% [markdown]
# Lines within the grey are what chance allows. That of infection dips below it for a while: its
# posteriors lie a trifle too low. To have a number, count how often the region of 80 % holds the
# truth: where at least a fifth of the samples is less probable.

# %%
held = np.mean(less_probable >= 20)
print(f"regions of 80 % hold the truth in {100 * held:.0f} % of cases")
assert 0.7 < held < 0.9

# %% [markdown]
# It is 79 %, of 200 cases. A flow that is too sure of itself was trained on too few simulations:
# draw more, or stop earlier.
#
# ## Where to go next
#
# - Outcomes that are images or long series: give a `condition_network` ([Conditional
#   densities](../conditional_densities.md#features-of-a-condition)).
# - The benchmark of the field, against exact posteriors: [Inference from
#   simulations](../conditional_densities.md#inference-from-simulations).
# - Save, load and look inside a flow: [two moons](two_moons.py).
# - Answer requests by it: [serving](serving.py).
