"""The solvers by name. Each is imported, and torch with it, when it is first looked up."""

from collections.abc import Iterator, Mapping
from importlib import import_module


class Solvers(Mapping):
    """Name -> class.

    ``SOLVERS[name](sigmas)`` takes the noise levels of a run, float32 ``[N + 1]``, falling to 0, and has:

    - ``stochastic``: bool; whether every row needs fresh noise.
    - ``step_frames(velocity, steps, sample, update, noise=None)``: one step of the frames to update, each at its own
      step, in place; returns `sample`. `velocity`, `sample` and `noise` are ``[B, C, F, H, W]``, the last two float32;
      `velocity` may end behind the last frame to update. `steps` is int ``[F]``, `update` bool ``[F]``, both numpy.
      A frame takes the steps 0 to N - 1 in order; the frames that are not to update keep their bits.

    An instance serves one run over one tensor of latents, since a solver may keep a state per frame.
    """

    _classes = {  # noqa: RUF012 - read only
        "unipc": ("unipc", "UniPC"),
        "euler": ("euler", "Euler"),
        "lcm": ("lcm", "LCM"),
    }

    def __getitem__(self, name: str) -> type:
        module, cls = self._classes[name]
        return getattr(import_module(f"skyreels_v2_infer.scheduler.{module}"), cls)

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)


SOLVERS = Solvers()
