"""Pictures of flows and of what they learn, by matplotlib (`pip install 'keras_flows[plot]'`).

Each function draws into the `ax` that it is given, or into a new figure of pyplot's, and returns
the Axes: `plot.density(model).figure.savefig("density.png")`. None shows a figure or changes how
others look.
"""

from keras_flows.plot.curves import likelihoods, training
from keras_flows.plot.points import density, latent_grid, pairs
from keras_flows.plot.ranks import calibration
from keras_flows.plot.rows_of_images import images, interpolation, temperatures

__all__ = [
    "calibration",
    "density",
    "images",
    "interpolation",
    "latent_grid",
    "likelihoods",
    "pairs",
    "temperatures",
    "training",
]
