"""The constructor's arguments are the complete config."""

import inspect

import keras


class ConstructorConfig:
    """Mixin of Keras layers that keep each constructor argument under its own name.

    `get_config` reads those attributes, so no class writes one of its own. Nested layers, lists and
    regularizers are serialised by Keras; nothing else than registered classes is ever restored.
    """

    def get_config(self):
        config = super().get_config()
        for name, parameter in inspect.signature(type(self).__init__).parameters.items():
            if name not in config and name != "self" and parameter.kind != parameter.VAR_KEYWORD:
                config[name] = keras.saving.serialize_keras_object(getattr(self, name))
        return config

    @classmethod
    def from_config(cls, config):
        # `dtype` is Keras' own to restore.
        restored = {
            name: keras.saving.deserialize_keras_object(value)
            if isinstance(value, dict | list) and name != "dtype"
            else value
            for name, value in config.items()
        }
        return super().from_config(restored)
