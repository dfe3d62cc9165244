"""Legal sizes of a video."""

from skyreels_v2_infer.errors import Faults, InputError

RESOLUTIONS = {"540P": (544, 960), "720P": (720, 1280)}  # height, width
SIZE_MULTIPLE = 16  # 8 in the VAE, 2 in the patches of the transformer
LARGEST = 16384  # H.264's limit


def check_size(height: int, width: int) -> None:
    """Raises an `InputError` that names the sides that are wrong, their values and the nearest legal ones."""
    faults = Faults()
    faults.check(_check_side, "height", height)
    faults.check(_check_side, "width", width)
    faults.raise_all()


def _check_side(name: str, value: int) -> None:
    if value < SIZE_MULTIPLE:
        raise InputError(name, value, f"must be a multiple of {SIZE_MULTIPLE}, at least {SIZE_MULTIPLE}")
    if value > LARGEST:
        raise InputError(name, value, f"must be a multiple of {SIZE_MULTIPLE}, at most {LARGEST}")
    if value % SIZE_MULTIPLE:
        below = value // SIZE_MULTIPLE * SIZE_MULTIPLE
        legal = f"must be a multiple of {SIZE_MULTIPLE}, nearest are {below} and {below + SIZE_MULTIPLE}"
        raise InputError(name, value, legal)
