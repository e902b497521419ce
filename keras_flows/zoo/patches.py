"""Which sizes of patches fit an image."""

from keras_flows.arguments import check_input_shape, check_integers, require


def check_is_image(input_shape, name):
    check_input_shape(input_shape)
    require(
        len(input_shape) == 3,
        f"Argument `input_shape` must be (height, width, channels): {name} is for images",
        input_shape=input_shape,
    )


def resolve_patch_size(patch_size, input_shape, fits, rule, preferred=lambda size, number: True):
    """`patch_size`, or by default 4, 2 or 1; ValueError, with those that do, if it does not fit.

    A size that divides height and width, into a number of patches, fits if `fits(size, number)`,
    which `rule` says in words. Of the default ones the first that is `preferred`, which is such a
    function, too, is taken, or else the first that fits.
    """
    if patch_size is not None:
        check_integers(1, patch_size=patch_size)
    height, width, _ = input_shape
    numbers = {
        size: height * width // size**2
        for size in range(1, min(height, width) + 1)
        if height % size == width % size == 0
    }
    fit = [size for size, number in numbers.items() if fits(size, number)]
    require(
        fit and patch_size in (None, *fit),
        f"Argument `patch_size` must divide height and width, into {rule}. Of "
        f"input_shape={tuple(input_shape)} those that fit are {fit or 'none'}",
        patch_size=patch_size,
    )
    defaults = (size for size in (4, 2, 1) if size in fit)
    return patch_size or max(defaults, key=lambda size: preferred(size, numbers[size]))
