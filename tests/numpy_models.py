"""The papers' models in plain NumPy, float64, written from the papers' formulas.

A second opinion on keras_flows: no Keras, no TensorFlow, nothing of the package. Weights come in
dicts and lists; every model returns the latent (batch, D), in the order in which it leaves, and the
log-likelihood (batch,) in nats of the data as given.
"""

import math

import numpy as np


def relu(x):
    return np.where(x > 0, x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def total(x):
    return np.array([example.sum() for example in x])


def flat(x):
    return x.reshape(len(x), -1)


def normal_log_density(z, mean=0.0, log_std=0.0):
    return total(-0.5 * np.log(2 * np.pi) - log_std - 0.5 * ((z - mean) / np.exp(log_std)) ** 2)


def logistic_log_density(z):
    return total(-np.log(1 + np.exp(z)) - np.log(1 + np.exp(-z)))


def pad(x, border, value):
    return np.pad(x, [(0, 0), (border, border), (border, border), (0, 0)], constant_values=value)


def convolve(x, kernel):
    """Cross-correlation with a kernel (size, size, in, out), nothing added around x."""
    size = len(kernel)
    height, width = (n - size + 1 for n in x.shape[1:3])
    y = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            patch = x[:, i : i + size, j : j + size]
            y[:, i, j] = np.einsum("bklc,klcf->bf", patch, kernel)
    return y


def squeeze(x, where):
    """Channel where(c, dy, dx) is channel c of the cells (2i + dy, 2j + dx)."""
    batch, height, width, channels = x.shape
    z = np.empty((batch, height // 2, width // 2, 4 * channels))
    for c in range(channels):
        for dy in range(2):
            for dx in range(2):
                z[..., where(c, dy, dx)] = x[:, dy::2, dx::2, c]
    return z


def unsqueeze(z):
    """Undoes the squeeze to channel 4c + 2dy + dx."""
    batch, height, width, channels = z.shape
    x = np.empty((batch, 2 * height, 2 * width, channels // 4))
    for channel in range(channels):
        c, cell = divmod(channel, 4)
        dy, dx = divmod(cell, 2)
        x[:, dy::2, dx::2, c] = z[..., channel]
    return x


def by_channel(c, dy, dx):
    return 4 * c + 2 * dy + dx


# NICE: section 5.


def nice(x, weights, prior, bits=8):
    h = flat(x) / 2**bits
    log_det = -h.shape[1] * np.log(2**bits)
    for i, layers in enumerate(weights["couplings"]):
        conditions, changes = (i % 2, 1 - i % 2)
        m = h[:, conditions::2]
        for kernel, bias in layers[:-1]:
            m = relu(m @ kernel + bias)
        kernel, bias = layers[-1]
        h[:, changes::2] += m @ kernel + bias
    h = h * np.exp(weights["scaling"])
    log_det += weights["scaling"].sum()
    density = {"logistic": logistic_log_density, "gaussian": normal_log_density}[prior]
    return h, density(h) + log_det


# RealNVP: sections 3 and 4.1, as released.

EPSILON = 1e-4


def real_nvp(x, weights, training, bits=8):
    """`weights`: for each scale, lists of the couplings "before" and "after" its squeeze."""
    p = 0.05 + 0.9 * x / 2**bits
    log_prob = total(np.log(0.9 / 2**bits) - np.log(p) - np.log(1 - p))
    x = np.log(p / (1 - p))
    # The ordered squeeze: main diagonal of each block first.
    rank = {(0, 0): 0, (1, 1): 1, (0, 1): 2, (1, 0): 3}
    latents = []
    for scale in weights:
        for i, coupling in enumerate(scale["before"]):
            x, log_det = checkerboard_coupling(x, coupling, 1 - i % 2, training)
            log_prob = log_prob + log_det
        if scale is weights[-1]:
            break
        z = squeeze(x, by_channel)
        for i, coupling in enumerate(scale["after"]):
            z, log_det = channel_coupling(z, coupling, i % 2 == 0, training)
            log_prob = log_prob + log_det
        channels = x.shape[-1]
        z = squeeze(unsqueeze(z), lambda c, dy, dx, n=channels: rank[dy, dx] * n + c)
        x, out = z[..., : 2 * channels], z[..., 2 * channels :]
        latents.append(out)
    latents.append(x)
    z = np.concatenate([flat(each) for each in latents], axis=1)
    return z, log_prob + normal_log_density(z)


def moments(x, norm, training):
    if training:
        rows = x.reshape(-1, x.shape[-1])
        return rows.mean(0), ((rows - rows.mean(0)) ** 2).mean(0)
    return norm["mean"], norm["variance"]


def batch_norm(x, norm, training):
    mean, variance = moments(x, norm, training)
    return (x - mean) / np.sqrt(variance + EPSILON) + norm["beta"]


def weight_norm_convolution(x, layer):
    direction = layer["direction"]
    kernel = np.empty_like(direction)
    for f in range(direction.shape[-1]):
        kernel[..., f] = direction[..., f] / np.linalg.norm(direction[..., f])
        kernel[..., f] *= layer.get("magnitude", np.ones(f + 1))[f]
    return convolve(pad(x, len(kernel) // 2, 0), kernel) + layer.get("bias", 0)


def resnet(x, net, training):
    x = weight_norm_convolution(relu(x), net["in"])
    features = weight_norm_convolution(x, net["skip_in"])
    for block in net["blocks"]:
        h = relu(batch_norm(x, block["norm_0"], training))
        h = weight_norm_convolution(h, block["convolution_0"])
        h = relu(batch_norm(h, block["norm_1"], training))
        x = x + weight_norm_convolution(h, block["convolution_1"])
        features = features + weight_norm_convolution(x, block["skip"])
    features = relu(batch_norm(features, net["norm_out"], training))
    return np.split(weight_norm_convolution(features, net["out"]), 2, axis=-1)


def checkerboard_coupling(x, coupling, mask_in, training):
    """The cells (i, j) with mask_in + i + j odd condition; the mask is 1 there."""
    batch, height, width, _ = x.shape
    mask = np.empty((batch, height, width, 1))
    for i in range(height):
        for j in range(width):
            mask[:, i, j] = (mask_in + i + j) % 2
    seen = 2 * batch_norm(x * mask, coupling["norm_in"], training)
    shift, h = resnet(np.concatenate([seen, -seen, mask], -1), coupling["net"], training)
    log_scale = coupling["bound"] * np.tanh(h)
    y = mask * x + (1 - mask) * (x + shift) * np.exp(log_scale)
    mean, variance = moments(y * (1 - mask), coupling["norm_out"], training)
    deviation = np.sqrt(variance + EPSILON)
    z = mask * y + (1 - mask) * (y - mean) / deviation
    return z, total((1 - mask) * (log_scale - np.log(deviation)))


def channel_coupling(x, coupling, first_conditions, training):
    halves = np.split(x, 2, axis=-1)
    kept, changed = halves if first_conditions else halves[::-1]
    seen = batch_norm(kept, coupling["norm_in"], training)
    shift, h = resnet(np.concatenate([seen, -seen], -1), coupling["net"], training)
    log_scale = coupling["bound"] * np.tanh(h)
    y = (changed + shift) * np.exp(log_scale)
    mean, variance = moments(y, coupling["norm_out"], training)
    deviation = np.sqrt(variance + EPSILON)
    z = (y - mean) / deviation
    z = np.concatenate([kept, z] if first_conditions else [z, kept], axis=-1)
    return z, total(log_scale - np.log(deviation) * np.ones_like(y))


# Glow: sections 3 and 4, as released.


def glow(x, weights, bits=8, labels=None):
    """The latents are normalised by their priors. Also returns the classifier's cross-entropy."""
    log_prob = np.full(len(x), -x[0].size * np.log(2.0**bits))
    z, latents, cross_entropy = x / 2**bits - 0.5, [], None
    for level in weights["levels"]:
        z = squeeze(z, by_channel)
        for step in level["steps"]:
            z, log_det = glow_step(z, step)
            log_prob = log_prob + log_det
        if level is weights["levels"][-1]:
            nothing = np.zeros((*z.shape[:3], 0))
            h = scaled_convolution(nothing, weights["top"])
            if labels is not None:
                one_hot = np.eye(len(weights["classes"]["kernel"]))[labels]
                h = h + scaled_linear(one_hot, weights["classes"])[:, None, None]
            if "classifier" in weights:
                logits = scaled_linear(z.mean(axis=(1, 2)), weights["classifier"])
                p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
                cross_entropy = -np.log(p[np.arange(len(x)), labels])
            out = z
        else:
            z, out = np.split(z, 2, axis=-1)
            h = scaled_convolution(z, level["prior"])
        mean, log_std = np.split(h, 2, axis=-1)
        log_prob = log_prob + normal_log_density(out, mean, log_std * np.ones_like(out))
        latents.append(flat((out - mean) / np.exp(log_std)))
    return np.concatenate(latents, axis=1), log_prob, cross_entropy


def glow_step(x, step):
    cells = x.shape[1] * x.shape[2]
    act_norm = step["act_norm"]
    scale = np.exp(3 * act_norm["log_scale"])
    z = scale * (x + act_norm["bias"])
    log_det = cells * np.log(scale).sum()

    z = np.einsum("bhwc,cd->bhwd", z, step["matrix"])
    log_det = log_det + cells * np.log(abs(np.linalg.det(step["matrix"])))

    z1, z2 = np.split(z, 2, axis=-1)
    h = z1
    for layer in step["hidden"]:
        h = relu(scaled_convolution(h, layer))
    h = scaled_convolution(h, step["out"])
    if h.shape[-1] == z2.shape[-1]:  # additive
        return np.concatenate([z1, z2 + h], axis=-1), np.full(len(x), log_det)
    shift, h = np.split(h, 2, axis=-1)
    scale = sigmoid(h + 2)
    return np.concatenate([z1, (z2 + shift) * scale], axis=-1), log_det + total(np.log(scale))


def scaled_convolution(x, layer):
    """The image gets a border of zeros, and a channel that is 1 on the border alone."""
    kernel = layer["kernel"]
    border = len(kernel) // 2
    if border:
        edge = pad(np.zeros((*x.shape[:3], 1)), border, 1)
        x = np.concatenate([pad(x, border, 0), edge], axis=-1)
    return (convolve(x, kernel) + layer["bias"]) * np.exp(3 * layer["log_scale"])


def scaled_linear(x, layer):
    return (x @ layer["kernel"] + layer["bias"]) * np.exp(3 * layer["log_scale"])


# Jet: section 3, as released.


def jet(x, weights, patch, grid, max_scale, bits=8):
    """`weights`: for each coupling its "kind", the "order" of channels, and its network's."""
    rows, columns = grid
    half_range = (2**bits - 1) / 2
    x = x / half_range - 1
    tokens = np.empty((len(x), rows * columns, patch * patch * x.shape[-1]))
    for r in range(rows):
        for c in range(columns):
            cells = x[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
            tokens[:, r * columns + c] = flat(cells)
    log_prob = -x[0].size * np.log(half_range)
    for coupling in weights:
        tokens, log_det = jet_coupling(tokens, coupling, columns, max_scale)
        log_prob = log_prob + log_det
    return flat(tokens), normal_log_density(tokens) + log_prob


def jet_coupling(x, coupling, columns, max_scale):
    batch, number, channels = x.shape
    z, kind = x.copy(), coupling["kind"]
    if kind == "channels":
        first, second = np.split(coupling["order"], 2)
        x1, x2 = x[..., first], x[..., second]
    else:
        places = [divmod(token, columns) for token in range(number)]
        odd = {
            "checkerboard": [(r + c) % 2 for r, c in places],
            "vstripes": [c % 2 for _, c in places],
            "hstripes": [r % 2 for r, _ in places],
        }[kind.removesuffix("-inv")]
        first, second = (np.flatnonzero(np.equal(odd, parity)) for parity in (0, 1))
        if kind.endswith("-inv"):
            first, second = second, first
        x1, x2 = (x[:, half].reshape(batch, number, channels // 2) for half in (first, second))
    shift, raw = np.split(vit(x1, coupling["network"]), 2, axis=-1)
    scale = max_scale * sigmoid(raw)
    x2 = (x2 + shift) * scale
    if kind == "channels":
        z[..., second] = x2
    else:
        z[:, second] = x2.reshape(batch, number // 2, channels)
    return z, total(np.log(scale))


def vit(x, net):
    x = linear(x, net["in"]) + net["places"]
    for block in net["blocks"]:
        x = x + attention(layer_norm(x, block["norm_1"]), block)
        h = linear(layer_norm(x, block["norm_2"]), block["wide"])
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + linear(h, block["narrow"])
    return linear(layer_norm(x, net["norm_out"]), net["out"])


def attention(x, block, causal=False):
    q, k, v = (linear(x, block[name]) for name in ("query", "key", "value"))
    heads = []
    for head in np.split(np.arange(q.shape[-1]), block["num_heads"]):
        scores = np.einsum("bqd,bkd->bqk", q[..., head], k[..., head]) / np.sqrt(len(head))
        shares = np.exp(scores) * (np.tri(x.shape[1]) if causal else 1)
        shares /= shares.sum(-1, keepdims=True)
        heads.append(shares @ v[..., head])
    return linear(np.concatenate(heads, axis=-1), block["out"])


def layer_norm(x, norm, epsilon=1e-6):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * norm["gamma"] + norm["beta"]


def linear(x, layer):
    return x @ layer["kernel"] + layer["bias"]


# TarFlow: section 2, as released.


def tarflow(x, weights, patch, bits=8, labels=None):
    """`weights`: of each block, its transformer's."""
    half_range = 2**bits / 2
    x = np.moveaxis(x / half_range - 1, -1, 1)
    rows, columns = (size // patch for size in x.shape[2:])
    cells = [
        flat(x[:, :, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch])
        for r in range(rows)
        for c in range(columns)
    ]
    tokens = np.stack(cells, axis=1)
    log_prob = -x[0].size * np.log(half_range)
    for i, net in enumerate(weights):
        turn = slice(None, None, -1 if i % 2 else 1)
        h = linear(tokens, net["in"]) + net["places"]
        if labels is not None:
            vectors = np.append(net["classes"], [net["classes"].mean(0)], axis=0)  # -1 is the last
            h = h + vectors[labels][:, None]
        h = causal_transformer(h[:, turn], net)
        log_scale, shift = np.split(linear(h, net["out"])[:, :-1], 2, axis=-1)
        y = tokens[:, turn].copy()
        y[:, 1:] = (y[:, 1:] - shift) / np.exp(log_scale)
        tokens = y[:, turn]
        log_prob = log_prob - total(log_scale)
    return flat(tokens), normal_log_density(tokens) + log_prob


def causal_transformer(h, net):
    for block in net["blocks"]:
        h = h + attention(layer_norm(h, block["norm_1"], 1e-5), block, causal=True)
        wide = linear(layer_norm(h, block["norm_2"], 1e-5), block["wide"])
        erf = np.vectorize(math.erf)(wide / np.sqrt(2))
        h = h + linear(wide * (1 + erf) / 2, block["narrow"])
    return h
