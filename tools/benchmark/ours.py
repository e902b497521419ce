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
    random_images,
    random_vectors,
)


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

        def forward(batch_size):
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


def compile_and_build(model):
    import keras

    model.compile(keras.optimizers.Adam(LEARNING_RATE))
    model.optimizer.build(model.trainable_variables)


def count(variables):
    return sum(math.prod(variable.shape) for variable in variables)


def glow_model(depth, **options):
    from keras_flows import zoo

    return zoo.Glow(IMAGE, levels=LEVELS, depth=depth, width=WIDTH, **options)


def glow(depth, batch_size, **options):
    return Ours(glow_model(depth, **options), random_images(batch_size))


def reversible_glow(depth, batch_size):
    return glow(depth, batch_size, reversible=True)


def bare_glow(depth, batch_size):
    from keras_flows import layers, networks

    height, width, channels = IMAGE
    couplings = []
    for level in range(1, LEVELS + 1):
        inner = channels * 2 ** (level + 1)
        shape = (height >> level, width >> level)
        for _ in range(depth):
            coupling = layers.AffineCoupling(networks.ConvNet(WIDTH))
            coupling.build((None, *shape, inner))
            couplings.append((coupling, (*shape, inner // 2)))
    return Bare(couplings, batch_size)


def real_nvp(depth, batch_size):
    from keras_flows import zoo

    options = {"batch_norm": False, "standardize": False}  # which the peers do not either
    model = zoo.RealNVP((FEATURES,), depth=depth, width=WIDTH, **options)
    return Ours(model, random_vectors(batch_size))


def bare_real_nvp(depth, batch_size):
    from keras_flows import layers, networks

    couplings = []
    for _ in range(depth):
        coupling = layers.AffineCoupling(networks.MLP(WIDTH))
        coupling.build((None, FEATURES))
        couplings.append((coupling, (FEATURES // 2,)))
    return Bare(couplings, batch_size)


def nsf(depth, batch_size):
    from keras_flows import zoo

    options = {"num_blocks": BLOCKS, "bins": BINS, "tail_bound": TAIL_BOUND, "standardize": False}
    return Ours(
        zoo.NSF((FEATURES,), depth=depth, width=WIDTH, **options), random_vectors(batch_size)
    )


def bare_nsf(depth, batch_size):
    from keras_flows import layers, networks

    couplings = []
    for _ in range(depth):
        coupling = layers.SplineCoupling(networks.ResidualMLP(WIDTH, BLOCKS), bins=BINS)
        coupling.build((None, FEATURES))
        couplings.append((coupling, (FEATURES // 2,)))
    return Bare(couplings, batch_size)


OURS = {
    "glow": {"keras_flows": glow, "reversible": reversible_glow, "bare": bare_glow},
    "real_nvp": {"keras_flows": real_nvp, "bare": bare_real_nvp},
    "nsf": {"keras_flows": nsf, "bare": bare_nsf},
}
