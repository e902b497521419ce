"""Presets for others: onto the hubs from which `from_preset` has them."""

from keras_flows import hub, presets
from keras_flows.arguments import require
from keras_flows.flow import Flow


def upload_preset(uri, preset):
    """Puts a preset on a hub, where `from_preset(uri)` finds it. It is loaded first, as a test.

    It takes the hub's client (`pip install 'keras_flows[hub]'`), logged in. What is new is public
    on Hugging Face and private on Kaggle: make it yourself before, there, for the other.

    Args:
        uri: "hf://USER/REPOSITORY" or "kaggle://USER/MODEL/keras/VARIATION".
        preset: a folder that `save_to_preset` wrote, or the name of a preset.

    Raises:
        ImportError: if the hub's client is not installed.
        ValueError: for what `from_preset` would refuse, for another `uri`, and for what the hub
            refuses.

    Example:

    ```python
    model = keras_flows.zoo.NSF(input_shape=(3,), depth=1, width=8, standardize=False)
    model.save_to_preset("mine")
    keras_flows.upload_preset("hf://USER/mine", "mine")
    ```
    """
    require(hub.has_form(uri, to_write=True), f"Argument `uri` must be {hub.FORMS}", uri=uri)
    require(
        not hub.is_address(preset), "Argument `preset` must be a folder or a name", preset=preset
    )
    has_weights = "weights" in presets.read(preset, presets.METADATA)
    Flow.from_preset(preset, load_weights=has_weights)
    hub.upload(presets.find(preset), uri)
