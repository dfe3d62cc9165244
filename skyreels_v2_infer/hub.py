"""The Hugging Face hub: whether it answers. Asked once, for a few seconds, before libraries try again and again."""

import os
import threading
from functools import cache

PATIENCE = 8.0  # seconds for an answer, resolving the host's name included


class UnreachableError(OSError):
    """The hub does not answer, and what is needed of it was not downloaded before."""


@cache
def silence(endpoint: str) -> str | None:
    """Why the hub at an address gives no answer; None: it answers, with whatever. Proxies are used."""
    import ssl
    import urllib.error
    import urllib.request

    found: list[str | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=PATIENCE).close()
        except (urllib.error.HTTPError, ssl.SSLError):  # an answer; certificates are checked by who downloads
            found.append(None)
        except urllib.error.URLError as error:
            reason = error.reason
            found.append(None if isinstance(reason, ssl.SSLError) else getattr(reason, "strerror", None) or str(reason))
        except (OSError, ValueError) as error:
            found.append(getattr(error, "strerror", None) or str(error) or type(error).__name__)
        else:
            found.append(None)

    asking = threading.Thread(target=ask, daemon=True)  # a name's resolution cannot be given a time limit
    asking.start()
    asking.join(PATIENCE)
    return found[0] if found else f"no answer in {PATIENCE:g} s"


def only_local(model: str, flag: str, file: str = "config.json") -> bool:
    """Whether files of a model must be taken as they are here, since the hub does not answer.

    Args:
        model: hub id or folder.
        flag: that names it, for messages.
        file: that every download of the model has.

    Raises:
        UnreachableError: they are not here either.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if os.path.isdir(model) or constants.HF_HUB_OFFLINE:
        return False
    reason = silence(constants.ENDPOINT)
    if reason is None:
        return False
    if isinstance(try_to_load_from_cache(model, file), str):
        return True
    raise UnreachableError(unreachable(flag, model, reason))


def unreachable(flag: str, model: object, reason: str) -> str:
    """The one line about it."""
    return f"--{flag} {model}: no such folder, and the Hugging Face hub cannot be reached ({reason})"
