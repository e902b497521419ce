from keras_flows import layers


def in_pairs(make, depth, *, reversible, dtype):
    """`depth` couplings whose two parts take turns in conditioning.

    Args:
        make: from `swap` to the list of a coupling and what goes with it.
        depth: how many; from six on, pairs of them are the steps of a `Repeat`. Fewer are traced
            no faster in a loop.

    Returns:
        A list of bijections.
    """
    if depth < 6:
        return [layer for i in range(depth) for layer in make(swap=i % 2 == 1)]
    pair = layers.Chain([*make(swap=False), *make(swap=True)], dtype=dtype)
    pairs = layers.Repeat(pair, depth // 2, reversible=reversible, dtype=dtype)
    return [pairs, *make(swap=False)] if depth % 2 else [pairs]
