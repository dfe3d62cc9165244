"""Which tensors of a LoRA file change which of our parameters, and which do not and why; by names and shapes alone.

A tensor's name is prefix + module + suffix. The suffix gives its role, the prefix is the trainer's and is dropped, and
modules are called as in the published files or as in diffusers, with ``.`` or, in kohya's style, ``_`` between the
parts. Names are compared with ``_`` throughout, which keeps those of our parameters distinct.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.weights import key_tables

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

# How a name ends -> its role, in the words of kohya and LyCORIS. With PEFT, an adapter's name ("default") may stand
# behind lora_A and lora_B.
ROLES = [
    (r"(\.lora_up|[._]lora\.up|\.lora_linear_layer\.up|\.lora_B(\.[^.]+)?)\.weight|\.lora_B", "up"),
    (r"(\.lora_down|[._]lora\.down|\.lora_linear_layer\.down|\.lora_A(\.[^.]+)?)\.weight|\.lora_A", "down"),
    (r"(\.lora_up|\.lora_B(\.[^.]+)?)\.bias", "up_bias"),
    (r"\.lora_mid\.weight", "mid"),
    (r"\.alpha", "alpha"),
    (r"\.dora_scale|\.lora_magnitude_vector(\.[^.]+)?(\.weight)?", "dora"),
    (r"\.(diff|w_norm)", "diff"),
    (r"\.(diff_b|b_norm)", "diff_b"),
    (r"\.diff_m", "diff_m"),
    (r"\.set_weight", "set"),
    (r"\.reshape_weight", "reshape"),
    *((rf"\.lokr_{part}", f"lokr_{part}") for part in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b", "t2")),
    *((rf"\.hada_{part}", f"hada_{part}") for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
]
ROLES = [(re.compile(rf"(?:{pattern})$"), role) for pattern, role in ROLES]

PREFIXES = (
    "base_model_model_",
    "diffusion_model_",
    "lora_transformer_",
    "lora_unet_",
    "lycoris_",
    "pipe_dit_",
    "transformer_",
    "video_model_",
    "model_",
    "unet_",
    "dit_",
    "net_",
)
WITHIN = re.compile(r"_orig_mod\.|\.processor(?=\.|_lora|$)")  # left by torch.compile and by old attention classes
FLAT_DIFFUSERS = [(a.replace(r"\.", "_"), b.replace(".", "_")) for a, b in key_tables.DIFFUSERS_TRANSFORMER]

# Tensors of adapters that bring modules of their own and do nothing useful without them.
ADAPTERS = {
    "UniAnimate": re.compile(r"dwpose_embedding|randomref_embedding_pose"),
    "Stand-In": re.compile(r"\.[qkv]_loras\."),
}
IMAGE_PATH = re.compile(r"_(k|v|norm_k)_img_|^img_emb_")
WIDTH = re.compile(r"^blocks\.\d+\.(self|cross)_attn\.[qkvo]\.weight$")
PATCHES = "patch_embedding.weight"
IMAGE_TO_VIDEO_CHANNELS = 36  # input channels of an image-to-video model, of which the first 16 are the noise

NO_MODULE = "no such module"
NO_IMAGE_PATH = "no such module (image path of an image-to-video model)"
NOT_A_CHANGE = "not a tensor of a LoRA"
INCOMPLETE = "parts of it are missing"
NEEDS_DENSE = "needs dense weights, these are quantised (--weights dequantize)"


@dataclass(frozen=True)
class Change:
    """What one group of a file's tensors does to one parameter.

    Attributes:
        parameter: our name.
        shape: of the parameter.
        kind: ``"product"``, ``"hada"`` (LoHa), ``"kron"`` (LoKr), ``"bias"`` (of a product), ``"diff"`` or ``"set"``.
        module: what the file calls the module, behind its prefix and with the file's own separators.
        tensors: role -> name in the file.
        rank: of what is decomposed; None where nothing is.
        channels: if not None, only the first so many input channels are changed.
    """

    parameter: str
    shape: Shape
    kind: str
    module: str
    tensors: Mapping[str, str]
    rank: int | None = None
    channels: int | None = None

    @property
    def needs_base(self) -> bool:
        """Whether the change depends on the weights that it is applied to."""
        return self.kind == "set" or "dora" in self.tensors


@dataclass(frozen=True)
class Report:
    """What of a file is applied to a model, and what is not.

    Attributes:
        tensors: how many the file has.
        skipped: reason -> names in the file.
    """

    file: str
    tensors: int
    changes: tuple[Change, ...]
    skipped: Mapping[str, tuple[str, ...]]

    @property
    def applied(self) -> int:
        """Tensors of the file that are applied; one can serve two parameters."""
        return len({name for change in self.changes for name in change.tensors.values()})

    def of(self, parameter: str) -> list[Change]:
        return [change for change in self.changes if change.parameter == parameter]

    @property
    def parameters(self) -> list[str]:
        return list(dict.fromkeys(change.parameter for change in self.changes))

    @property
    def partial(self) -> dict[str, str]:
        """Parameters that are changed in part, with the part."""
        parts = [change for change in self.changes if change.channels is not None]
        return {c.parameter: f"the first {c.channels} of {c.shape[1]} input channels" for c in parts}

    def line(self) -> str:
        ranks = sorted({change.rank for change in self.changes if change.rank is not None})
        rank = f" (rank {ranks[0]}{f' to {ranks[-1]}' if len(ranks) > 1 else ''})" if ranks else ""
        text = (
            f"{self.file}: {self.applied} of {self.tensors} tensors applied to {len(self.parameters)} parameters{rank}"
        )
        text += "".join(f", {name} to {part}" for name, part in self.partial.items())
        for reason, names in self.skipped.items():
            text += f"; {len(names)} skipped: {reason} ({names[0]}{', ...' if len(names) > 1 else ''})"
        return text

    def as_dict(self) -> dict:
        """In full, of plain values, for a manifest."""
        return {
            "file": self.file,
            "tensors": self.tensors,
            "applied": self.applied,
            "parameters": self.parameters,
            "partial": self.partial,
            "skipped": {reason: list(names) for reason, names in self.skipped.items()},
        }


def flat(name: str) -> str:
    return name.replace(".", "_")


def without_prefixes(module: str) -> Iterator[str]:
    """A module's name as it stands, then with one prefix less each time."""
    yield module
    for prefix in PREFIXES:
        if flat(module).startswith(prefix):
            yield from without_prefixes(module[len(prefix) :].lstrip("_."))
            return


class Names:
    """Looks up our parameters by what files call them."""

    def __init__(self, parameters: Shapes):
        self.ours = {flat(name): name for name in parameters}

    def find(self, module: str, *leaves: str) -> str | None:
        """Our parameter for a module of a file and its leaf (``"weight"``; ``""``: the module is the parameter)."""
        for name in without_prefixes(module):
            for leaf in leaves:
                wanted = flat(f"{name}.{leaf}" if leaf else name)
                for spelling in (wanted, key_tables.renamed(wanted, FLAT_DIFFUSERS)):
                    if spelling in self.ours:
                        return self.ours[spelling]
        return None


def grouped(names: Iterator[str] | Shapes) -> tuple[dict[str, dict[str, str]], list[str]]:
    """({module: {role: name}}, names without a role)."""
    groups: dict[str, dict[str, str]] = {}
    rest = []
    for name in names:
        for pattern, role in ROLES:
            if found := pattern.search(name):
                module = WITHIN.sub("", name[: found.start()])
                groups.setdefault(module, {})[role] = name
                break
        else:
            rest.append(name)
    return groups, rest


def changes_of(tensors: dict[str, str]) -> Iterator[tuple[str, tuple[str, ...], dict[str, str]]]:
    """(kind, leaves of the parameter, {role: name}) for every change that a module's tensors make."""

    def pick(*roles: str) -> dict[str, str]:
        return {role: tensors[role] for role in roles if role in tensors}

    weight = ("weight", "")
    product = pick("up", "down", "mid", "alpha", "dora")
    if {"up", "down"} <= set(product):
        yield "product", weight, product
        if "up_bias" in tensors:
            yield "bias", ("bias",), pick("up_bias", "down", "alpha")
    for kind, family in (("hada", "hada_"), ("kron", "lokr_")):
        if roles := [role for role in tensors if role.startswith(family)]:
            yield kind, weight, pick(*roles, "alpha", "dora")
    for role, leaves in (("diff", weight), ("diff_b", ("bias",)), ("diff_m", ("modulation",)), ("set", weight)):
        if role in tensors:
            yield "set" if role == "set" else "diff", leaves, {role: tensors[role]}


def size_of(kind: str, shape: Mapping[str, Shape]) -> tuple[Shape, int | None]:
    """(shape of a change, its rank if it is decomposed).

    Args:
        shape: of its tensors, by role.

    Raises:
        KeyError, IndexError: a part is missing, or has too few axes.
        ValueError: parts do not fit each other.
    """

    def agree(*ranks: int) -> int:
        if len(set(ranks)) > 1:
            raise ValueError(f"ranks {ranks} differ")
        return ranks[0]

    if kind == "product":
        up, down = shape["up"], shape["down"]
        kernel = shape["mid"][2:] if "mid" in shape else ()
        return (up[0], *down[1:], *kernel), agree(up[1], down[0])
    if kind == "bias":
        return shape["up_bias"], shape["down"][0]
    if kind == "hada":
        a, b = shape["hada_w1_a"], shape["hada_w1_b"]
        if "hada_t1" in shape:
            agree(*shape["hada_t2"][:2], *shape["hada_t1"][:2], a[0])
            return (a[1], b[1], *shape["hada_t1"][2:]), b[0]
        agree(a[1], b[0])
        agree(shape["hada_w2_a"][1], shape["hada_w2_b"][0])
        return (a[0], *b[1:]), b[0]
    if kind == "kron":
        rank, sides = None, []
        for side in ("w1", "w2"):
            if f"lokr_{side}" in shape:
                sides.append(shape[f"lokr_{side}"])
                continue
            a, b = shape[f"lokr_{side}_a"], shape[f"lokr_{side}_b"]
            rank = b[0]
            tucker = shape.get("lokr_t2") if side == "w2" else None
            sides.append((a[0], *b[1:]) if tucker is None else (a[1], b[1], *tucker[2:]))
        (a, b), (c, d, *kernel) = sides
        return (a * c, b * d, *kernel), rank
    return next(iter(shape.values())), None


def without_ones(shape: Shape) -> Shape:
    return tuple(n for n in shape if n != 1)


def match(tensors: Shapes, parameters: Shapes, path: Path, packed: frozenset[str] = frozenset()) -> Report:
    """Finds the parameter of every tensor of a file.

    Args:
        tensors: names and shapes in the file.
        parameters: our names and shapes; of quantised layers, the shape that the weight stands for.
        packed: parameters that are not stored as numbers that can be added to.

    Raises:
        InputError: named `lora`; nothing fits, the file belongs to a model of another width, or is no LoRA.
    """
    groups, rest = grouped(tensors)
    names = Names(parameters)
    check_kind(tensors, groups, names, path)
    changes, skipped = [], {}

    def skip(reason: str, which) -> None:
        skipped.setdefault(reason, []).extend(which)

    for module, roles in groups.items():
        used = set()
        for kind, leaves, parts in changes_of(roles):
            used |= set(parts)
            parameter = names.find(module, *leaves)
            if parameter is None:
                skip(why_not_found(module), parts.values())
                continue
            outcome = fitted(kind, module, parts, tensors, parameter, parameters[parameter], path)
            if isinstance(outcome, Change) and outcome.needs_base and parameter in packed:
                outcome = NEEDS_DENSE
            if isinstance(outcome, Change):
                changes.append(outcome)
            else:
                skip(outcome, parts.values())
        if left := set(roles) - used - ({"reshape"} if used else set()):
            skip(INCOMPLETE, [roles[role] for role in left])
    if rest:
        skip(NOT_A_CHANGE, rest)
    served = {name for change in changes for name in change.tensors.values()}
    unserved = {reason: tuple(dict.fromkeys(n for n in which if n not in served)) for reason, which in skipped.items()}
    report = Report(path.name, len(tensors), tuple(changes), {r: which for r, which in unserved.items() if which})
    if not changes:
        why = "; ".join(f"{len(which)} {reason} ({which[0]}, ...)" for reason, which in report.skipped.items())
        raise InputError("lora", path, f"none of its {len(tensors)} tensors fits this model: {why}")
    return report


def why_not_found(module: str) -> str:
    *_, bare = without_prefixes(module)
    return NO_IMAGE_PATH if IMAGE_PATH.search(key_tables.renamed(f"{flat(bare)}_", FLAT_DIFFUSERS)) else NO_MODULE


def check_kind(tensors: Shapes, groups: dict, names: Names, path: Path) -> None:
    """Raises an `InputError` for files that are no LoRA."""
    for adapter, pattern in ADAPTERS.items():
        if found := [name for name in tensors if pattern.search(name)]:
            legal = f"is an adapter of {adapter} ({found[0]}), which brings modules of its own; a plain LoRA is needed"
            raise InputError("lora", path, legal)
    if not groups:
        if whole := [name for name in tensors if names.find(name, "")]:
            legal = f"holds whole weights ({whole[0]}, ...), not changes to them: it is a checkpoint, not a LoRA"
            raise InputError("lora", path, legal)
        first = f" ({next(iter(tensors))}, ...)" if tensors else ""
        raise InputError("lora", path, f"none of its {len(tensors)} tensors{first} is one of a LoRA")


def fitted(
    kind: str, module: str, parts: dict[str, str], tensors: Shapes, parameter: str, shape: Shape, path: Path
) -> Change | str:
    """The change, or why it cannot be applied.

    Raises:
        InputError: the file belongs to a model of another width, or needs input channels that this model has not.
    """
    try:
        found, rank = size_of(kind, {role: tensors[name] for role, name in parts.items()})
    except KeyError:
        return INCOMPLETE
    except (ValueError, IndexError):
        return "shape: its parts do not fit each other"
    channels = None
    if WIDTH.match(parameter) and found and found[0] != shape[0]:
        raise InputError("lora", path, f"was made for a model of width {found[0]}; this one has {shape[0]}")
    if without_ones(found) != without_ones(shape) and (found[:1] != shape[:1] or math.prod(found) != math.prod(shape)):
        inputs, left = divmod(math.prod(found), shape[0] * math.prod(shape[2:]))
        if parameter != PATCHES or found[:1] != shape[:1] or left or "dora" in parts:
            return f"shape {list(found)} for {list(shape)}"
        if inputs > shape[1]:
            if inputs == IMAGE_TO_VIDEO_CHANNELS:
                return f"shape: {inputs} input channels, this model has {shape[1]}"
            legal = f"is a control adapter: it needs {inputs} input channels, this model has {shape[1]}"
            raise InputError("lora", path, legal)
        channels = inputs
    if "dora" in parts and math.prod(tensors[parts["dora"]]) not in shape[:2]:
        return "shape: dora_scale fits neither rows nor columns"
    *_, bare = without_prefixes(module)
    return Change(parameter, shape, kind, bare, parts, rank, channels)
