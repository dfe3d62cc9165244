"""Bytes of a model's parts on the device, and the way to hold them that fits into its memory.

From headers and configurations alone, without torch and without a download.
"""

from contextlib import suppress
from pathlib import Path

from skyreels_v2_infer.cli.settings import GenerateSettings, replaced_parts
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.plan import cost
from skyreels_v2_infer.plan.memory import Chosen, choose
from skyreels_v2_infer.plan.plan import Plan
from skyreels_v2_infer.plan.show import WEIGHT_BYTES
from skyreels_v2_infer.run.model_files import known_folder
from skyreels_v2_infer.weights.key_tables import BLOCK_LINEAR
from skyreels_v2_infer.weights.layouts import Given
from skyreels_v2_infer.weights.locate import Checkpoint
from skyreels_v2_infer.weights.stored import Weights
from skyreels_v2_infer.weights.tensor_files import ARCHIVES


def chosen_memory(
    settings: GenerateSettings,
    plan: Plan,
    config: dict,
    dtype: str,
    free: float | None,
    on_cpu: bool,
    tiling: str | None = None,
) -> Chosen:
    """What the device holds when, see `plan.memory`.

    Args:
        dtype: of the weights.
        free: memory of the device in GiB, if --memory is not given; None: unlimited.
        tiling: in place of --vae_tiling.

    Raises:
        InputError: nothing fits.
    """
    weight_bytes = WEIGHT_BYTES[dtype]
    return choose(
        plan,
        config,
        gib=free if settings.memory is None else settings.memory,
        given=settings.memory is not None,
        weight_bytes=weight_bytes,
        vae_bytes=WEIGHT_BYTES[settings.vae_dtype],
        loaded=loaded_bytes(settings, config, known_folder(settings), weight_bytes),
        offload=settings.offload,
        tiling=tiling or settings.vae_tiling,
        on_cpu=on_cpu,
    )


def loaded_bytes(settings: GenerateSettings, config: dict, folder: Path | None, weight_bytes: int) -> dict[str, float]:
    """Bytes by part, of the parts that are stored quantised and stay so (--weights), or that --quantize rounds.

    Args:
        config: of the transformer.
        folder: of the model, if it is local.
        weight_bytes: per parameter that is not quantised.
    """
    rounded = settings.quantize is not None
    merged = rounded and bool(settings.lora)  # expanded for the LoRA, and then rounded
    found: dict[str, float] = {}
    if settings.weights == "stored":
        names = ("transformer", "text_encoder", *(["image_encoder"] if config["model_type"] == "i2v" else []))
        for name in names:
            if merged and name == "transformer":
                continue
            pattern = BLOCK_LINEAR if rounded and name == "transformer" else None
            with suppress(InputError):  # reported by the run itself
                weights = opened(settings, name, config, folder)
                if weights is not None and weights.is_quantized:
                    found[name] = weights.loaded_bytes(weight_bytes, pattern)
    if rounded and "transformer" not in found:
        one_byte = cost.block_weights(config)
        found["transformer"] = (cost.parameters(config) - one_byte) * weight_bytes + one_byte
    return found


def opened(settings: GenerateSettings, name: str, config: dict, folder: Path | None) -> Weights | None:
    """The headers of a part; None if it is not on this machine, or in ``.pth`` files, whose headers need torch."""
    given = replaced_parts(settings).get(name)
    if folder is None if given is None else not Path(given).expanduser().exists():
        return None
    path = settings.model_id if given is None else Given(given, f"{'dit' if name == 'transformer' else name}_path")
    part = Checkpoint.open(path, (name,), config=config if name == "transformer" else None).parts[name]
    if any(file.suffix in ARCHIVES for file in part.files):
        return None
    return Weights(part, name, path)
