"""The constructor's arguments are the config, and what was set later is one key of it."""

import functools
import inspect

import keras

from keras_flows.arguments import require

SET_LATER = "set_later"


class ConstructorConfig:
    """Mixin of Keras layers that keep each constructor argument under its own name.

    `get_config` reads those attributes, also of what a subclass hands on as `**kwargs`, so no class
    writes one of its own. Nested layers, lists and regularizers are serialised by Keras; nothing
    else than registered classes is ever restored.
    """

    defaults_of_old_configs = {}
    """Values of arguments that older configs lack."""

    def __new__(cls, *args, **kwargs):
        instance = super().__new__(cls, *args, **kwargs)
        instance.__dict__["_keywords"] = tuple(kwargs)  # before Keras may track attributes
        return instance

    def get_config(self):
        config = super().get_config()
        parameters = inspect.signature(type(self).__init__).parameters.values()
        named = [p.name for p in parameters if p.kind != p.VAR_KEYWORD and p.name != "self"]
        for name in dict.fromkeys([*named, *self._keywords]):
            if name not in config:
                config[name] = keras.saving.serialize_keras_object(getattr(self, name))
        return config

    @classmethod
    def from_config(cls, config):
        # `dtype` is Keras' own to restore.
        restored = {
            name: keras.saving.deserialize_keras_object(value)
            if isinstance(value, dict | list) and name != "dtype"
            else value
            for name, value in {**cls.defaults_of_old_configs, **config}.items()
        }
        layer = super().from_config(restored)
        if not config.get("trainable", True):
            # The constructor freezes no layers inside, nor does an assignment that changes nothing.
            type(layer).trainable.fset(layer, False)
        return layer


def _adding(get_config):
    @functools.wraps(get_config)
    def with_later(self):
        config, later = get_config(self), self.get_later()
        return {**config, SET_LATER: later} if later else config

    return with_later


def _taking_out(from_config):
    @functools.wraps(from_config)
    def with_later(cls, config, *args, **kwargs):
        config = dict(config)
        later = config.pop(SET_LATER, None)
        model = from_config(cls, config, *args, **kwargs)
        if later:
            require(isinstance(later, dict), f"`{SET_LATER}` must be a dict", **{SET_LATER: later})
            model.set_later(later)
        return model

    return with_later


class SetLater(ConstructorConfig):
    """Mixin of Keras models whose config also holds what was set after they were made.

    A class tells it as a dict, `get_later`, and takes it, `set_later`; each adds to what `super()`
    does. It is the config's `set_later`, absent where there is nothing. It comes on top of whatever
    `get_config` and `from_config` a subclass writes, which need not know of it: a constructor would
    not take it, nor could it be done before the last constructor has ended.
    """

    from_config = classmethod(_taking_out(ConstructorConfig.from_config.__func__))

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "get_config" in vars(cls):
            cls.get_config = _adding(cls.get_config)
        if "from_config" in vars(cls):
            cls.from_config = classmethod(_taking_out(vars(cls)["from_config"].__func__))

    def get_later(self):
        """What was set later, for JSON: {name: value}."""
        return {}

    def set_later(self, later):
        """Sets it in a model that comes from its constructor."""
