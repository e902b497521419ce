"""Work with latents and likelihoods: what a flow knows beyond samples.

Latents come from `model.encode`, or of many data in batches from `model.predict(x)["latent"]`, and
go back by `model.decode`. Attributes are directions (Kingma and Dhariwal 2018, arXiv:1807.03039,
section 6):

```python
z = model.encode(images).numpy()
bold = keras_flows.latent.direction(z, images.mean(axis=(1, 2, 3)) > images.mean())
bolder = model.decode(z[:8] + 0.5 * bold)
```

Scores of how little data are like those that a model was trained on are the larger the less they
are. The likelihood alone is none for images: it is high for those that are simple, seen or not.
"""

import zlib

import numpy as np
import tensorflow as tf

from keras_flows.arguments import check_integers, check_one_of, require


def interpolate(a, b, n=8, how="linear"):
    """Latents from `a` to `b` in equal steps.

    ```python
    z = keras_flows.latent.interpolate(*model.encode(images[:2]), n=5)
    between = model.decode(z)                              # uint8 (5, height, width, channels)
    ```

    Args:
        a, b: latents of one shape, (D,) or (batch, D).
        n: how many, at least 2; the first and the last are `a` and `b`.
        how: "linear", or "spherical", along the arc whose radius goes from that of `a` to that of
            `b`: the latents of a Gaussian in many dimensions all have about the same.

    Returns:
        An array (n, D) or (n, batch, D).

    Raises:
        ValueError: for other shapes, numbers or names, and opposite or zero latents to interpolate
            between spherically, which have no arc.
    """
    check_integers(2, n=n)
    check_one_of(("linear", "spherical"), how=how)
    a, b = _floats(a), _floats(b)
    require(
        a.shape == b.shape and a.ndim in (1, 2),
        "Arguments `a` and `b` must have one shape, (D,) or (batch, D)",
        a=a.shape,
        b=b.shape,
    )
    share = np.linspace(0.0, 1.0, n, dtype=np.result_type(a, b)).reshape(n, *[1] * a.ndim)
    if how == "linear":
        return (1 - share) * a + share * b
    radii = [np.linalg.norm(each, axis=-1, keepdims=True) for each in (a, b)]
    require(
        all(np.all(radius > 0) for radius in radii),
        "Arguments `a` and `b` must not be zero for how='spherical'",
        norms=[float(radius.min()) for radius in radii],
    )
    first, last = a / radii[0], b / radii[1]
    # As the angle of half the chord: exact for small ones, too.
    angle = 2 * np.arctan2(
        np.linalg.norm(last - first, axis=-1, keepdims=True),
        np.linalg.norm(last + first, axis=-1, keepdims=True),
    )
    require(
        np.all(np.pi - angle > 1e-4),
        "Arguments `a` and `b` must not be opposite for how='spherical'",
        angle=float(angle.max()),
    )
    # np.sinc is smooth at 0: sin(share angle) / sin(angle) is share there.
    weights = [s * np.sinc(s * angle / np.pi) / np.sinc(angle / np.pi) for s in (1 - share, share)]
    radius = (1 - share) * radii[0] + share * radii[1]
    return radius * (weights[0] * first + weights[1] * last)


def direction(z, has):
    """The mean of the latents with an attribute minus that of those without, (D,).

    `model.decode(z + strength * direction)` adds it to data, with strengths around -1 to 1.

    ```python
    z = model.encode(images)
    bold = keras_flows.latent.direction(z, images.mean(axis=(1, 2, 3)) > images.mean())
    bolder = model.decode(z + 0.5 * bold)
    ```

    Args:
        z: latents (n, D) of data.
        has: (n,) booleans, or 0 and 1, which of them have the attribute: some, not all.
    """
    z, has = _floats(z), np.asarray(has)
    require(
        z.ndim == 2 and has.shape == z.shape[:1],
        "Arguments `z` and `has` must have shapes (n, D) and (n,)",
        z=z.shape,
        has=has.shape,
    )
    require(
        set(np.unique(has).tolist()) == {0, 1},
        "Argument `has` must be booleans, or 0 and 1, with both among them",
        values=np.unique(has)[:5].tolist(),
    )
    has = has.astype(bool)
    return z[has].mean(axis=0) - z[~has].mean(axis=0)


def nearest(z, among, k=1):
    """Which of some latents are nearest to each of others, by Euclidean distance.

    ```python
    z = model.encode(images).numpy()
    indices, distances = keras_flows.latent.nearest(z[:4], z[4:], k=3)
    ```

    Args:
        z: latents (n, D) to find neighbours of.
        among: latents (m, D).
        k: how many, at most m.

    Returns:
        Indices into `among` and distances, both (n, k), the nearest first.
    """
    z, among = _floats(z), _floats(among)
    require(
        z.ndim == among.ndim == 2 and z.shape[1] == among.shape[1],
        "Arguments `z` and `among` must have shapes (n, D) and (m, D)",
        z=z.shape,
        among=among.shape,
    )
    check_integers(1, k=k)
    require(k <= len(among), f"Argument `k` must be at most {len(among)}, all of `among`", k=k)
    indices, distances = [], []
    for row in z:  # of differences: the expanded square would cancel
        distance = np.sqrt(np.sum((among - row) ** 2, axis=1))
        order = np.argsort(distance, kind="stable")[:k]
        indices.append(order)
        distances.append(distance[order])
    return np.reshape(indices, (-1, k)).astype(int), np.reshape(distances, (-1, k))


def typicality(log_prob, reference, batch=1):
    """|-log p - H| in nats, H the entropy, estimated by data like those trained on.

    Nalisnick et al. 2019 (arXiv:1906.02994): data of a density in many dimensions are not where it
    is highest, but where -log p is about its mean. Of groups it is the mean of -log p that is
    compared, which tells the more the larger they are.

    ```python
    entropy_of = model.log_prob(images[:50])                # better: ones held out
    scores = keras_flows.latent.typicality(model.log_prob(images[50:]), entropy_of)
    ```

    Args:
        log_prob: (n,) in nats, of the data to score.
        reference: (m,) in nats, of data like those trained on, better held out.
        batch: the size of the groups, of neighbours in `log_prob`, which it must divide into.

    Returns:
        An array (n / batch,), the larger the less typical; infinity where log_prob is not finite.
    """
    log_prob, reference = np.asarray(log_prob, "float64"), np.asarray(reference, "float64")
    check_integers(1, batch=batch)
    require(
        log_prob.ndim == reference.ndim == 1 and len(reference) and len(log_prob) % batch == 0,
        f"Arguments `log_prob` and `reference` must be (n,) and (m,), n a multiple of {batch=}",
        log_prob=log_prob.shape,
        reference=reference.shape,
    )
    _check_finite(reference=reference)
    groups = log_prob.reshape(-1, batch).mean(axis=1)
    return np.where(np.isfinite(groups), np.abs(reference.mean() - groups), np.inf)


def likelihood_ratio(log_prob, other):
    """log q - log p in nats: how much better another model, or a compressor, knows the data.

    What makes an image simple, it is likely under both for, and cancels. The other one is
    `compressor_log_prob` (Serrà et al. 2020, arXiv:1909.11480), or that of a model of more general
    data, or of the same with noise added (Ren et al. 2019, arXiv:1906.02845).

    ```python
    other = keras_flows.latent.compressor_log_prob(images)
    scores = keras_flows.latent.likelihood_ratio(model.log_prob(images), other)
    ```

    Args:
        log_prob: (n,) in nats, of the data under the model.
        other: (n,) in nats, of the same data.

    Returns:
        An array (n,), the larger the less like data that the model was trained on; infinity where
        log_prob is not finite.
    """
    log_prob, other = np.asarray(log_prob, "float64"), np.asarray(other, "float64")
    require(
        log_prob.ndim == 1 and log_prob.shape == other.shape,
        "Arguments `log_prob` and `other` must have one shape (n,)",
        log_prob=log_prob.shape,
        other=other.shape,
    )
    _check_finite(other=other)
    return np.where(np.isfinite(log_prob), other - log_prob, np.inf)


def _floats(z):
    """An array of floats, of integers and half precision float32: differences would overflow."""
    z = np.asarray(z)
    return z if z.dtype in ("float32", "float64") else z.astype("float32")


def _check_finite(**argument):
    ((name, values),) = argument.items()
    count = int(np.sum(~np.isfinite(values)))
    require(count == 0, f"Argument `{name}` must be finite", not_finite=count, of=len(values))


def compressor_log_prob(images):
    """-8 ln 2 times the bytes that each image takes as a PNG or by zlib, whichever are fewer.

    By a code of that length an image has that log-probability, in nats, as `model.log_prob` has.
    Of a model with `bits` < 8, give what it sees, `images // 2 ** (8 - bits)`.

    ```python
    log_prob = keras_flows.latent.compressor_log_prob(images)                  # (n,), negative
    ```

    Args:
        images: uint8 (n, height, width, channels).
    """
    images = np.asarray(images)
    require(
        images.ndim == 4 and images.dtype == np.uint8,
        "Argument `images` must be uint8 of shape (n, height, width, channels)",
        dtype=images.dtype.name,
        shape=images.shape,
    )
    return -8 * np.log(2) * np.array([_compressed_size(image) for image in images], "float64")


def _compressed_size(image):
    size = len(zlib.compress(image.tobytes(), 9))
    if image.shape[-1] <= 4:  # what a PNG can hold
        size = min(size, len(tf.io.encode_png(image, compression=9).numpy()))
    return size
