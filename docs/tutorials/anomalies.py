# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Find what does not belong
#
# You have many examples of what is normal, and few or none of what is not: payments, machines,
# patients. Learn the density of the normal ones. What has a low density is strange, and you can say
# how strange, and which column makes it so.
#
# It takes half a minute of computing.

# %%
import keras
import numpy as np
from matplotlib import pyplot
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

import keras_flows
from keras_flows import plot

keras.utils.set_random_seed(0)

# %% [markdown]
# ## Take the table as it is
#
# Scikit-learn has a table of tumours: 30 columns, measured in microscopes' pictures. Train on
# benign ones alone. Keep 50 to stop by, and others to test with; what is malignant, the model never
# sees.

# %%
table = load_breast_cancer()
rng = np.random.default_rng(0)
benign = rng.permutation(table.data[table.target == 1]).astype("float32")
malignant = table.data[table.target == 0].astype("float32")  # (212, 30)
train, validation, unseen = np.split(benign, [200, 250])

for name in ("mean area", "mean smoothness"):
    column = train[:, list(table.feature_names).index(name)]
    print(f"{name}: {column.min():.3g} to {column.max():.3g}")

# %% [markdown]
# Columns differ by factors of thousands. Give them raw: the zoo's models standardise vectors by
# themselves, and tell densities in your units.
#
# Are columns whole numbers, or within bounds, as ages and shares are? Say so by `integer_columns`
# and `bounds`, and samples keep to it ([Tabular
# data](../tabular_data.md#bounds-and-whole-numbers)). Of these columns none is.
#
# ## Learn what is normal
#
# 200 rows are few. Take `RealNVP`, which has fewer ways to learn them by heart than splines have,
# and stop early.

# %%
model = keras_flows.zoo.RealNVP(input_shape=(30,), seed=0)
model.compile(keras.optimizers.Adam(1e-3))
stop = keras.callbacks.EarlyStopping(patience=20, restore_best_weights=True)
history = model.fit(train, validation_data=(validation,), epochs=300, callbacks=[stop], verbose=0)
plot.training(history, "loss")

# %% [markdown]
# The two lines part: that is overfitting, and the red point is where to stop, which the callback
# did. The loss may fall below 0: densities, unlike probabilities, may be above 1.
#
# ## Score
#
# The log-likelihood is the score. Draw it for rows that the model has not seen; whatever is below
# -75 goes to -75, as some tumours are further out than a picture can show.

# %%
scores = {"benign": model.log_prob(unseen).numpy(), "malignant": model.log_prob(malignant).numpy()}
plot.likelihoods({name: np.maximum(each, -75) for name, each in scores.items()}, bins=20)

# %% [markdown]
# How well does it tell them apart? AUROC is the share of pairs, one of each kind, in which the
# malignant one is the stranger: 1 is perfect, 0.5 is chance.

# %%
is_malignant = np.repeat([0, 1], [len(unseen), len(malignant)])
auroc = roc_auc_score(is_malignant, -np.concatenate([*scores.values()]))
print(f"AUROC {auroc:.3f}")
assert auroc > 0.93

# %% [markdown]
# It is 0.97, and no malignant tumour was needed to get there.
#
# ## Choose a threshold
#
# To raise an alarm, decide how many false ones you can bear. Of normal rows that were not trained
# on, take the log-likelihood that one in ten is below. No strange row is needed for that.

# %%
threshold = np.quantile(model.log_prob(validation), 0.1)
flagged = {name: np.mean(each < threshold) for name, each in scores.items()}
print(f"flagged: {flagged['benign']:.0%} of benign, {flagged['malignant']:.0%} of malignant")
assert flagged["benign"] < 0.3 and flagged["malignant"] > 0.8

# %% [markdown]
# That flags 10 % of the unseen benign rows, as was to be, and 94 % of the malignant ones.
#
# ## Ask why
#
# An alarm without a reason helps nobody. Give one column after the other of a strange row the value
# that is usual, and see how much likelier the row becomes. What helps most is the reason.

# %%
strange = malignant[10]
mended = np.repeat(strange[None], 30, axis=0)
np.fill_diagonal(mended, np.median(train, axis=0))
gain = model.log_prob(mended).numpy() - model.log_prob(strange[None]).numpy()

top = np.argsort(gain)[-6:]
_, ax = pyplot.subplots(figsize=(6, 2.6), layout="constrained")
ax.barh(table.feature_names[top], gain[top])
ax.set_xlabel("nats that the usual value would gain")

# %% [markdown]
# Columns hang together, so one alone may not mend the row: a large radius with a usual area is
# stranger than both large.

# %% [markdown]
# ## Where to go next
#
# - Three flows, three other methods, several seeds: [Anomalies](../tabular_data.md#anomalies).
# - Of images, the density alone may be fooled: [Images unlike the training
#   data](../out_of_distribution.md).
# - Names of columns, data frames: [Tabular data](../tabular_data.md#data-frames).
# - Score requests by a server: [serving](serving.py).
