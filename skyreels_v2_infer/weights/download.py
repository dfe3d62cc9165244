"""The folder of a model: a local one, or one from the Hugging Face hub, downloaded into the hub's cache."""

import os
import re
from contextlib import suppress
from pathlib import Path

from skyreels_v2_infer import embedded, hub
from skyreels_v2_infer.errors import first_line
from skyreels_v2_infer.media.files import read_small
from skyreels_v2_infer.plan.models import HUB_ID
from skyreels_v2_infer.progress import counting_bytes, doing
from skyreels_v2_infer.weights.config import config_in
from skyreels_v2_infer.weights.headers import check_regular
from skyreels_v2_infer.weights.layouts import CONFIG_FILES, DOWNLOADS, PARTS, argument_of, layout_of, own_class, refusal
from skyreels_v2_infer.weights.tensor_files import SUFFIXES

HUB_FILE = re.compile(rf"({HUB_ID.pattern})/(.+\.\w+)")


def local_file(model_id: str | Path) -> Path | None:
    """The file that model_id names, one of the hub (``owner/name/path/to/file``) downloaded; None: it names no file.

    Raises:
        InputError: what it names is neither file nor folder, or is not on the hub.
        OSError: the download failed; calling again resumes it.
    """
    path = Path(model_id).expanduser()
    if not str(model_id).strip() or os.path.isdir(path):
        return None
    if os.path.exists(path):
        check_regular(path, model_id)
        return path
    match = HUB_FILE.fullmatch(str(model_id))
    if match is None or path.suffix.lower() not in SUFFIXES:
        return None
    return fetch(match[1], [match[2]], model_id) / match[2]


def snapshot_of(folder: Path) -> Path:
    """A folder as it is; of a model's folder in the hub's cache (``models--owner--name``) its snapshot.

    That is the one that ``refs/main`` names, or else the newest.
    """
    snapshots = folder / "snapshots"
    if not snapshots.is_dir() or layout_of(folder) == "diffusers" or (folder / "config.json").is_file():
        return folder
    with suppress(OSError, ValueError):
        name = read_small(folder / "refs" / "main", most=100).decode().strip()
        if re.fullmatch(r"\w+", name) and (snapshots / name).is_dir():
            return snapshots / name
    found = [place for place in snapshots.iterdir() if place.is_dir()]
    return max(found, key=lambda place: place.stat().st_mtime) if found else folder


def local_folder(model_id: str | Path) -> Path | None:
    """The folder that model_id names; None if it is a model id of the Hugging Face hub.

    Raises:
        InputError: neither an existing folder nor a well-formed hub id.
    """
    path = Path(os.path.expanduser(model_id))  # unlike Path.expanduser, it leaves a name as it is without such a user
    # os.path.isdir returns False for a path that is too long; Path.is_dir raises OSError.
    if str(model_id).strip() and os.path.isdir(path):
        return snapshot_of(path)
    if str(model_id).strip() and os.path.exists(path):
        raise refusal(model_id, "is a file; a checkpoint is a folder")
    if not HUB_ID.fullmatch(str(model_id)):
        raise refusal(model_id, "no such folder (and no id of the Hugging Face hub, which looks like owner/name)")
    return None


def download_model(model_id: str | Path, parts: tuple[str, ...] = PARTS) -> str:
    """Returns the folder of a model; a hub id (``owner/name``) is downloaded into the hub's cache first.

    Of the embedded model, ``tiny``, it is the one for diffusion forcing.

    The configuration is downloaded first: it decides which of `parts` are needed. huggingface_hub
    resumes interrupted downloads.

    Raises:
        InputError: no such folder or model.
        OSError: the download failed; calling again resumes it.
    """
    if model_id == embedded.NAME:
        return str(embedded.folder(image_to_video=False))
    folder = local_folder(model_id)
    if folder is None:
        folder = fetch(str(model_id), CONFIG_FILES, model_id)
        config = config_in(folder, model_id)
        wanted = [part for part in parts if part != "image_encoder" or config["model_type"] == "i2v"]
        # A repository that holds only a transformer has its files at the top level, like the original layout.
        files = DOWNLOADS["original" if own_class(folder) else layout_of(folder)]
        folder = fetch(str(model_id), [pattern for part in wanted for pattern in files[part]], model_id)
    return str(folder)


def fetch(name: str, patterns: list[str], model_id: object) -> Path:
    """Downloads the files of a hub model (``owner/name``) that match the patterns; returns the snapshot's folder.

    Args:
        model_id: as the user gave it, for messages.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    reason = None if constants.HF_HUB_OFFLINE else hub.silence(constants.ENDPOINT)
    local = {"local_files_only": True} if reason else {}
    try:
        with doing(f"downloading {name}") as stage:
            counter = counting_bytes(stage)
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, tqdm_class=counter, **local))
    except errors.GatedRepoError as error:
        reason = "its authors grant access on request: ask at its page on the hub, then log in with `hf auth login`"
        raise refusal(model_id, f"cannot be downloaded: {reason}") from error
    except errors.RepositoryNotFoundError as error:
        reason = "neither a folder here nor a public model on the Hugging Face hub"
        raise refusal(model_id, reason) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE:
            reason = "neither a folder here nor downloaded before, and HF_HUB_OFFLINE keeps it from being downloaded"
            raise refusal(model_id, reason) from error
        raise hub.UnreachableError(
            hub.unreachable(argument_of(model_id), model_id, reason or first_line(error))
        ) from error
    except Exception as error:  # network and disk errors of any type
        raise OSError(f"--{argument_of(model_id)} {model_id} cannot be downloaded: {first_line(error)}") from error
