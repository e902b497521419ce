"""Models of the papers, each built by its constructor."""

from keras_flows.zoo.glow import Glow
from keras_flows.zoo.jet import Jet
from keras_flows.zoo.nice import NICE
from keras_flows.zoo.nsf import NSF
from keras_flows.zoo.real_nvp import RealNVP
from keras_flows.zoo.tarflow import TarFlow

__all__ = ["NICE", "NSF", "Glow", "Jet", "RealNVP", "TarFlow"]
