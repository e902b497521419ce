"""Optimizers for the stacked weights of a `Repeat`."""

from keras_flows.optimizers.muon import Muon

__all__ = ["Muon"]
