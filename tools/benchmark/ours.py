"""This library's contestants. Making one imports TensorFlow; importing this module does not."""

import math

from sizes import (
    BINS,
    BLOCKS,
    FEATURES,
    IMAGE,
    LEARNING_RATE,
    LEVELS,
    TAIL_BOUND,
    WIDTH,
    number_of_cores,
    random_images,
    random_vectors,
)

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


class Ours:
    """A model of the zoo, trained by the step that `fit` runs."""

    def __init__(self, model, data):
        import tensorflow as tf

        self.model, self.data = model, data
        if not model.adapted:
            model.adapt(data)
        compile_and_build(model)
        model.make_train_function()
        self.batches = iter(tf.data.Dataset.from_tensors((data,)).repeat().prefetch(1))
        self.parameters = count(model.trainable_variables)

    def train_step(self):
        return float(self.model.train_function(self.batches)["loss"])

    def log_prob(self):
        return self.model.log_prob(self.data).numpy()

    def sample(self):
        return self.model.sample(len(self.data)).numpy()

    def graph(self):
        import tensorflow as tf

        step = tf.function(self.model.train_step, autograph=False)
        return step.get_concrete_function(next(self.batches)).graph


class Bare:
    """The networks of the model's couplings, in a row by shape, each fed by the one before.

    `couplings` are pairs of a built coupling and the event shape of what its network reads.
    """

    def __init__(self, couplings, batch_size):
        import keras
        import tensorflow as tf

        variables = [variable for c, _ in couplings for variable in c.trainable_variables]
        optimizer = keras.optimizers.Adam(LEARNING_RATE)
        optimizer.build(variables)

        # As the model's, one part of the batch for each core.
        parts = 1 if tf.config.list_physical_devices("GPU") else number_of_cores()

        def forward(batch_size):
            return sum(of_part(batch_size // parts) for _ in range(parts))

        def of_part(batch_size):
            total, features = 0.0, {}
            for coupling, shape in couplings:
                if shape not in features:
                    x = tf.random.stateless_normal((batch_size, *shape), (0, 1))
                    x.set_shape((None, *shape))
                    features[shape] = x
                parameters = coupling.parameters_of(features[shape])
                features[shape] = parameters[..., : shape[-1]]  # so that its gradient is needed
                total += tf.reduce_sum(parameters)
            return total

        def step(batch_size):
            with tf.GradientTape() as tape:
                total = forward(batch_size)
            optimizer.apply_gradients(zip(tape.gradient(total, variables), variables))
            return total

        self.batch_size = tf.constant(batch_size)
        self.step = tf.function(step, autograph=False)
        self.forward = tf.function(forward, autograph=False)
        self.parameters = count(variables)

    def train_step(self):
        return float(self.step(self.batch_size))

    def log_prob(self):
        return float(self.forward(self.batch_size))

    sample = log_prob

    def graph(self):
        return self.step.get_concrete_function(self.batch_size).graph


class Convolutions:
    """The convolutions of Glow's networks, forward and both gradients, one after the other."""

    def __init__(self, depth, batch_size, dtype="float32"):
        import tensorflow as tf

        height, width, channels = IMAGE
        self.parameters, layers = 0, []
        for level in range(1, LEVELS + 1):
            inner = channels * 2 ** (level + 1)
            for size, before, after in (
                (3, inner // 2, WIDTH),
                (1, WIDTH, WIDTH),
                (3, WIDTH, inner),
            ):
                shape = (batch_size, height >> level, width >> level, before)
                x = tf.cast(tf.random.stateless_normal(shape, (0, 1)), dtype)
                filters = tf.random.stateless_normal((size, size, before, after), (0, 2))
                y = tf.cast(tf.random.stateless_normal((*shape[:-1], after), (0, 3)), dtype)
                layers.append((x, tf.cast(filters, dtype), y))
                self.parameters += depth * math.prod(filters.shape)
        options = {"strides": [1, 1, 1, 1], "padding": "SAME"}

        def one_by_one(layers, both):
            last = []  # so that each begins when the one before has ended, with all cores
            total = 0.0  # of a value of each, as TensorFlow runs nothing that is of no use
            for x, filters, y in layers:
                calls = [lambda x=x, filters=filters: tf.nn.conv2d(x, filters, **options)]
                if both:
                    calls += [
                        lambda x=x, filters=filters, y=y: tf.raw_ops.Conv2DBackpropInput(
                            input_sizes=tf.shape(x), filter=filters, out_backprop=y, **options
                        ),
                        lambda x=x, filters=filters, y=y: tf.raw_ops.Conv2DBackpropFilter(
                            input=x, filter_sizes=tf.shape(filters), out_backprop=y, **options
                        ),
                    ]
                for call in calls * depth:
                    with tf.control_dependencies(last):
                        last = [tf.identity(call())]
                        total += tf.cast(last[0][0, 0, 0, 0], tf.float32)
            return total

        self.layers = layers
        self._one_by_one = tf.function(one_by_one, autograph=False)

    def train_step(self):
        return float(self._one_by_one(self.layers, both=True))

    def log_prob(self):
        return float(self._one_by_one(self.layers, both=False))

    sample = log_prob

    def graph(self):
        return None


def compile_and_build(model):
    import keras

    model.compile(keras.optimizers.Adam(LEARNING_RATE))
    model.optimizer.build(model.trainable_variables)


def count(variables):
    return sum(math.prod(variable.shape) for variable in variables)


def glow_model(depth, **options):
    from keras_flows import zoo

    return zoo.Glow(IMAGE, levels=LEVELS, depth=depth, width=WIDTH, **options)


def glow(depth, batch_size, dtype="float32", **options):
    return Ours(glow_model(depth, dtype=POLICIES[dtype], **options), random_images(batch_size))


def reversible_glow(depth, batch_size, dtype="float32"):
    return glow(depth, batch_size, dtype, reversible=True)


def bare_glow(depth, batch_size, dtype="float32"):
    from keras_flows import layers, networks

    height, width, channels = IMAGE
    couplings = []
    for level in range(1, LEVELS + 1):
        inner = channels * 2 ** (level + 1)
        shape = (height >> level, width >> level)
        for _ in range(depth):
            network = networks.ConvNet(WIDTH, dtype=POLICIES[dtype])
            coupling = layers.AffineCoupling(network)
            coupling.build((None, *shape, inner))
            couplings.append((coupling, (*shape, inner // 2)))
    return Bare(couplings, batch_size)


def real_nvp(depth, batch_size, dtype="float32"):
    from keras_flows import zoo

    options = {"batch_norm": False, "standardize": False}  # which the peers do not either
    options["dtype"] = POLICIES[dtype]
    model = zoo.RealNVP((FEATURES,), depth=depth, width=WIDTH, **options)
    return Ours(model, random_vectors(batch_size))


def bare_real_nvp(depth, batch_size, dtype="float32"):
    from keras_flows import layers, networks

    couplings = []
    for _ in range(depth):
        coupling = layers.AffineCoupling(networks.MLP(WIDTH, dtype=POLICIES[dtype]))
        coupling.build((None, FEATURES))
        couplings.append((coupling, (FEATURES // 2,)))
    return Bare(couplings, batch_size)


def nsf(depth, batch_size, dtype="float32"):
    from keras_flows import zoo

    options = {"num_blocks": BLOCKS, "bins": BINS, "tail_bound": TAIL_BOUND, "standardize": False}
    options["dtype"] = POLICIES[dtype]
    model = zoo.NSF((FEATURES,), depth=depth, width=WIDTH, **options)
    return Ours(model, random_vectors(batch_size))


def bare_nsf(depth, batch_size, dtype="float32"):
    from keras_flows import layers, networks

    couplings = []
    for _ in range(depth):
        network = networks.ResidualMLP(WIDTH, BLOCKS, dtype=POLICIES[dtype])
        coupling = layers.SplineCoupling(network, bins=BINS)
        coupling.build((None, FEATURES))
        couplings.append((coupling, (FEATURES // 2,)))
    return Bare(couplings, batch_size)


OURS = {
    "glow": {
        "keras_flows": glow,
        "reversible": reversible_glow,
        "bare": bare_glow,
        "convolutions": Convolutions,
    },
    "real_nvp": {"keras_flows": real_nvp, "bare": bare_real_nvp},
    "nsf": {"keras_flows": nsf, "bare": bare_nsf},
}
