"""Small datasets that the package brings along: they prepare offline, in a second or so.

`EMBEDDED` maps the name that `keras_flows.data.load` takes to the builder. The builders stay out of
TFDS' own registry, where a second "digits" would be an error.
"""

from keras_flows.datasets.digits import Digits
from keras_flows.datasets.moons import Moons
from keras_flows.datasets.two_moons_simulations import TwoMoonsSimulations

EMBEDDED = {"digits": Digits, "moons": Moons, "two_moons_simulations": TwoMoonsSimulations}
