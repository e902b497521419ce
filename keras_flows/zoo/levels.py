"""Which numbers of levels fit an input."""

from keras_flows.arguments import check_integers, require


def resolve_levels(levels, input_shape, default, unsqueezed=0):
    """`levels`, or by default the most that fit up to `default`; ValueError if it does not fit.

    All levels but the last `unsqueezed` halve height and width.
    """
    if levels is not None:
        check_integers(1, levels=levels)
    if len(input_shape) == 1:
        require(levels in (None, 1), "Argument `levels` must be 1 for vectors", levels=levels)
        return 1
    height, width, _ = input_shape
    most = unsqueezed
    while height % 2 == 0 and width % 2 == 0:
        height, width, most = height // 2, width // 2, most + 1
    fit = f"1..{most}" if most else "none: both must be even"
    require(
        most >= (levels or 1),
        f"Each of the levels must halve height and width. Of input_shape={tuple(input_shape)} "
        f"the levels that fit are {fit}",
        levels=levels,
    )
    return min(default, most) if levels is None else levels
