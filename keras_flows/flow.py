"""The model of all zoo models, and of any bijection of yours."""

import random

import keras

from keras_flows import distribute, layer_changes
from keras_flows import export as saved_model
from keras_flows import presets as preset_folders
from keras_flows.arguments import check_integers, require
from keras_flows.batches import of_any_rows
from keras_flows.condition_features import takes_null_label
from keras_flows.condition_spec import make_condition_spec
from keras_flows.data_spec import DataSpec
from keras_flows.private import flatten_layers
from keras_flows.serialization import SetLater
from keras_flows.training import LikelihoodTraining


@keras.saving.register_keras_serializable(package="keras_flows")
class Flow(SetLater, LikelihoodTraining):
    """A normalizing flow: dequantisation, a bijection to a flat latent, and a base distribution.

    log p(x) = log prior(z) + log |det dz/dx|, z = bijection(x + u), in nats, of the data as given.

    Images are uint8 (batch, height, width, channels) and come back as such; the bijection sees
    floor(x / 2^(8 - bits)) + u in [0, 2^bits). Vectors are floats (batch, D), without noise but in
    `integer_columns`. In `fit` and `evaluate` u is uniform in [0, 1): that is the bound on the
    likelihood of discrete data that papers report. Everywhere else it is the bin's centre, 1/2, so
    that the same request has the same answer.

    Use it as any `keras.Model`: `compile(optimizer)`, `fit`, `evaluate`, `predict`, `save`. There
    is no loss to choose. `fit` first adapts the model (`adapt`) if that has not been done; until
    then, a model with data-dependent layers refuses to evaluate, encode, decode, sample or export.

    Args:
        bijection: a `Bijection` from data of `input_shape` to latents (batch, D).
        input_shape: (height, width, channels) or (D,), without the batch.
        bits: of images, 1 to 8 (the default): how many of each pixel's bits are modelled.
        noise: of images, the deviation s of normal noise, of images scaled to [-1, 1], as models
            take it that are for their samples. Then x + 127.5 s n, n standard normal, is in the
            place of x + u, and it is x itself where u would be 1/2. `evaluate`, which calls its
            metric `noisy_bits_per_dim`, tells the likelihood of noisy images, no bound on that of
            discrete ones; `decode` rounds to the nearest pixel; and `sample` takes the noise off
            by one step, x + s^2 grad log p(x). The bijection sees values beyond [0, 255].
        dequantization: of images, what u is drawn from in `fit` and `evaluate`: "uniform", or
            "variational", a small conditional flow of u given x, which `fit` trains with the rest
            (Flow++, Ho et al. 2019, arXiv:1902.00275): a tighter bound, once it has learned; see
            `evaluate_bound`. All else, with u = 1/2, is the same.
        prior: "gaussian" or "logistic", the standard one in each latent dimension.
        num_classes: of a class-conditional model, whose `condition` is labels, integers in
            [0, num_classes) of shape (batch,); -1 stands for none, if the layers that read it take
            that, as `layers.CausalAffine` does.
        condition_shape: of a model whose `condition` is floats, (batch, *condition_shape); those of
            rank 1 are standardised by `adapt`. fit and evaluate take the condition as y, the other
            methods as `condition`, and every layer of the bijection gets it as that.
        condition_network: a Keras layer or model from the condition to features, (batch, n) or
            (batch, tokens, n) or (batch, height, width, n), which the bijection gets instead. It
            runs once a call, and is trained with the flow.
        bounds: of vectors, for each feature a pair (low, high), between which or on which data must
            lie, or None. The zoo's models keep samples inside, as they start with a `Logit`; a
            bijection of your own must do so itself.
        integer_columns: of vectors, the indices of features that are whole numbers. They are
            dequantised as pixels are, within bounds to [low, high + 1), and come back whole.
        adapt_examples: how many examples `fit` adapts to: the first, or, of an array of vectors,
            rows at random. By default 256 images or 10,000 vectors.
        seed: of the noise in `fit`, `evaluate` and `adapt`, which is a pure function of it, the
            number of batches trained on and the position in the batch. None draws one. Initial
            weights follow `keras.utils.set_random_seed`.

    Raises:
        ValueError: for arguments out of their range or a bijection that does not fit `input_shape`.

    Example:

    ```python
    couplings = [
        keras_flows.layers.SplineCoupling(keras_flows.networks.ResidualMLP(32), swap=swap)
        for swap in (False, True)
    ]
    flow = keras_flows.Flow(keras_flows.layers.Chain(couplings), input_shape=(4,))
    flow.compile("adam")
    flow.fit(np.random.normal(size=(64, 4)), verbose=0)
    flow.sample(10, seed=1)                      # (10, 4)
    ```
    """

    def __init__(
        self,
        bijection,
        input_shape,
        *,
        bits=None,
        noise=None,
        dequantization="uniform",
        prior="gaussian",
        num_classes=None,
        condition_shape=None,
        condition_network=None,
        bounds=None,
        integer_columns=None,
        adapt_examples=None,
        seed=None,
        dtype=None,
        **kwargs,
    ):
        if adapt_examples is not None:
            check_integers(1, adapt_examples=adapt_examples)
        if seed is not None:
            check_integers(0, seed=seed)
        # Networks inside may compute in half; the flow, its latents and likelihoods never do.
        policy = keras.dtype_policies.get(dtype)
        require(
            policy.variable_dtype in ("float32", "float64"),
            "Argument `dtype` must keep variables in float32 or float64, as 'mixed_bfloat16' does",
            dtype=policy.name,
        )
        condition = make_condition_spec(
            *(num_classes, condition_shape, policy.variable_dtype),
            takes_null_label=condition_network is None and takes_null_label(bijection),
        )
        super().__init__(
            bijection,
            DataSpec(
                input_shape,
                bits,
                condition,
                policy.variable_dtype,
                noise=noise,
                bounds=bounds,
                integer_columns=integer_columns,
            ),
            prior,
            condition_network,
            adapt_examples=adapt_examples,
            seed=random.randrange(2**31) if seed is None else seed,
            dequantization=dequantization,
            policy=policy,
            dtype=policy.variable_dtype,
            **kwargs,
        )
        self._policy = policy
        self.input_shape = self.data_spec.shape
        self.is_image = self.data_spec.is_image
        self.bits = self.data_spec.bits
        self.noise = noise
        self.dequantization = dequantization
        columns = self.data_spec.vector_columns  # None for images
        self.bounds = columns and columns.bounds
        self.integer_columns = columns and columns.integer_columns
        self.num_classes = num_classes
        self.condition_shape = None if condition_shape is None else condition.shape
        self.is_conditional = condition.shape is not None
        self.size = self.data_spec.size

    def build(self, input_shape):
        """Checks the shape: the constructor has built, and a subclass's own adds what it needs."""
        if tuple(input_shape)[1:] != self.input_shape:
            raise ValueError(
                f"The model was made for input_shape={self.input_shape}. Received: {input_shape}"
            )

    def __call__(self, inputs, condition=None, **kwargs):
        # Before Keras makes a tensor of a data frame.
        inputs, condition = self._arrays(inputs, condition)
        return super().__call__(inputs, condition=condition, **kwargs)

    def call(self, inputs, condition=None, training=False):
        inputs = self.data_spec.check(inputs)
        condition = self.data_spec.condition.check(condition, inputs.shape[0])
        x = self.dequantize(inputs)
        if training:  # when a row more would change the statistics of the batch
            latent, log_prob = self.latent_and_log_prob(x, condition, training)
        else:
            latent, log_prob = of_any_rows(self.latent_and_log_prob, x, condition)
        return {"latent": latent, "log_prob": log_prob}

    def compute_output_spec(self, inputs, condition=None, training=False):
        self.data_spec.check_spec(inputs)
        self.data_spec.condition.check_source(condition)
        batch = inputs.shape[0]
        return {
            "latent": keras.KerasTensor((batch, self.size), self.compute_dtype),
            "log_prob": keras.KerasTensor((batch,), self.compute_dtype),
        }

    def get_layer(self, name=None, index=None):
        """As in Keras, and by name at any depth; where names repeat, by `path`.

        Inside of a `Repeat` that is the pattern, whose weights are not used: see `get_steps`.
        """
        inner = [layer for layer in flatten_layers(self) if layer is not self]
        found = [layer for layer in inner if name is not None and name in (layer.name, layer.path)]
        if index is not None or not found or name in [layer.name for layer in self.layers]:
            return super().get_layer(name, index)
        require(
            len(found) == 1,
            "Argument `name` must be that of one layer; `path` tells them apart",
            name=name,
            paths=[layer.path for layer in found],
        )
        return found[0]

    def get_config(self):
        return {**super().get_config(), "dtype": keras.dtype_policies.serialize(self._policy)}

    def get_later(self):
        later = {
            "layers": layer_changes.changes_of(self),
            "columns": self.data_spec.columns,
            "condition_columns": self.data_spec.condition.columns,
        }
        return {**super().get_later(), **{name: value for name, value in later.items() if value}}

    def set_later(self, later):
        super().set_later(later)
        if "layers" in later:
            layer_changes.change(self, later["layers"])
        for name, spec in (
            ("columns", self.data_spec),
            ("condition_columns", self.data_spec.condition),
        ):
            if name in later:
                require(
                    isinstance(later[name], list) and spec.shape == (len(later[name]),),
                    f"`{name}` of a config must have a name for each of {spec.shape}",
                    **{name: later[name]},
                )
                spec.columns = later[name]

    def quantize(self, mode=None, config=None, filters=None, **kwargs):
        """As in Keras. ValueError, before anything is changed, if there is a `Repeat`."""
        for layer in flatten_layers(self):
            if filters is None and getattr(layer, "untracked_layers", ()):
                layer.quantize(mode, config=config)
        super().quantize(mode, config, filters, **kwargs)

    def export(self, path):
        """Writes a SavedModel that TF Serving loads; see `keras_flows.export`.

        Of several workers, only the chief writes it.
        """
        self._check_adapted("export")
        if distribute.is_chief(self.distribute_strategy):
            saved_model.export(self, path)

    presets = preset_folders.PresetsOf()

    @classmethod
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """A model of the zoo as it was trained, or its architecture alone.

        It is compiled with Keras' default optimizer; to train it on, compile it with yours.

        Args:
            preset: a name out of `presets`, the path of a folder that `save_to_preset` wrote, or
                its address on a hub: "hf://USER/REPOSITORY", with "@REVISION" behind it or without,
                or "kaggle://USER/MODEL/keras/VARIATION", with "/VERSION" or without.
            load_weights: False for new weights, as the constructor draws them.
            kwargs: constructor arguments that replace the preset's, such as `dtype`.

        Raises:
            ValueError: for an unknown name, one that is a folder here, too, a folder with files
                that a preset does not have, a config of another class, of a newer version or with
                code, weights that are missing or whose SHA-256 is not the metadata's, or an address
                where nothing can be had.
            ImportError: if the hub's client (`pip install 'keras_flows[hub]'`) is not installed.
        """
        return preset_folders.load(cls, preset, load_weights, **kwargs)

    def save_to_preset(self, preset_dir):
        """Writes config.json, metadata.json and model.weights.h5 into a new or empty folder.

        Of several workers, only the chief writes it.

        Raises:
            FileExistsError: if `preset_dir` holds something.
            ValueError: if the model has classes or functions that are not registered, a Lambda, or
                one layer in two places.
        """
        self._check_adapted("save_to_preset")
        config = preset_folders.config_of(self)  # by all workers: it makes variables
        if distribute.is_chief(self.distribute_strategy):
            preset_folders.save(self, config, preset_dir)
