"""Callbacks that look at a flow while it trains: what it draws, inverts and encodes.

At the end of an epoch they look at the weights that the model then has. Those are the averages if
a `keras.callbacks.SwapEMAWeights(swap_on_epoch=True)` stands before them among the callbacks.
"""

from keras_flows.callbacks.latent_statistics import LatentStatistics
from keras_flows.callbacks.round_trip_error import RoundTripError
from keras_flows.callbacks.sample_grid import SampleGrid

__all__ = ["LatentStatistics", "RoundTripError", "SampleGrid"]
