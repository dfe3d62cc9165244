"""--config: a YAML or JSON file of flags, which the command line overrides.

A configuration is the user's own, like a shell script with the same flags: it may name files, folders and models. A
manifest, which may come from anybody, is read as by --replay, under the same rules.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from skyreels_v2_infer.cli.job_files import without_repetition
from skyreels_v2_infer.cli.parser import Parser
from skyreels_v2_infer.cli.replay import REPLACED, replayed_flags
from skyreels_v2_infer.cli.row_words import flags_of, shown, words_of
from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.media.files import read_small
from skyreels_v2_infer.plan.yaml_text import read_yaml

MOST_BYTES = 2**18
# Flags that a file cannot give: those that print something and end, those about a file of settings, and trust.
TYPED_ONLY = ("help", "version", "list_models", "config", "replay", "trust_replay")
ON_OFF = ("compile", "vae_tiling")  # flags with these values, which YAML reads as true and false
# Flags -> others in the file that they override as well.
OVERRIDES = {flag[2:]: names for flag, names in REPLACED.items()} | {
    "height": ("resolution", *REPLACED["--height"]),
    "width": ("resolution", *REPLACED["--width"]),
}


@dataclass(frozen=True)
class Config:
    """The flags of a file: words of a command line by the flag's name."""

    flags: Mapping[str, list[str]] = field(default_factory=dict)

    def beside(self, given: Collection[str], without: Collection[str] = ()) -> dict[str, list[str]]:
        """Those that take effect where the flags `given` override them; never those of `without`."""
        left_out = {*given, *without, *(name for flag in given for name in OVERRIDES.get(flag, ()))}
        return {name: words for name, words in self.flags.items() if name not in left_out}


def configured(parser: Parser, argv: Sequence[str], args: argparse.Namespace) -> tuple[Config, list[str], list[str]]:
    """What --config gives, the command line without it, and both together as one command line.

    Args:
        args: what `argv` says.

    Raises:
        InputError: the file cannot be used.
    """
    path, typed = args.config, flags_of(argv)
    if path is None:
        return Config(), list(argv), list(argv)
    del typed["config"]
    values = read_config(path)
    if {"format", "script", "settings"} <= values.keys():
        rest = [word for words in typed.values() for word in words]
        config = Config(flags_of(replayed_flags(path, parser.script, rest, args.trust_replay, "config")))
        if args.replay is None:
            typed.pop("trust_replay", None)
    else:
        config = Config(flags_in(parser, path, values))
    rest = [word for words in typed.values() for word in words]
    return config, rest, [*rest, *(word for words in config.beside(typed).values() for word in words)]


def flags_in(parser: Parser, path: Path, values: Mapping[str, object]) -> dict[str, list[str]]:
    """The flags of a configuration; raises an `InputError` that names all keys that are none, or whose values are
    wrong."""
    flags: dict[str, list[str]] = {}
    wrong = []
    for key, value in values.items():
        name = str(key).removeprefix("--")
        try:
            if name in TYPED_ONLY:
                raise ValueError("belongs on the command line")
            if parser.takes(f"--{name}") is None or name.startswith("no-"):
                raise ValueError(parser.unknown(f"--{name}"))
            flags[name] = words_in(parser, name, value)
        except ValueError as error:
            wrong.append(f"{shown(str(key))}: {error}")
    if wrong:
        raise InputError("config", path, "; ".join(wrong))
    return flags


def words_in(parser: Parser, name: str, value: object) -> list[str]:
    """A flag and its value in a configuration -> words of a command line.

    Raises:
        ValueError: the value is of the wrong type.
    """
    if name == "dry_run" and isinstance(value, bool):
        return ["--dry_run"] * value
    if isinstance(value, bool) and name in ON_OFF:
        return [f"--{name}={'on' if value else 'off'}"]
    if name == "sweep" and isinstance(value, Mapping):
        value = [
            f"{flag}={json.dumps(some if isinstance(some, list) else [some], default=str)}"
            for flag, some in value.items()
        ]
    return words_of(parser, name, value)


def read_config(path: Path) -> dict[str, object]:
    """The mapping in a ``.json`` file, or in one of another name, which is YAML.

    Raises:
        InputError: there is none.
    """
    language = "JSON" if path.suffix.lower() == ".json" else "YAML"
    try:
        content = read_small(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error, 100)
        raise InputError("config", path, f"cannot be read ({reason})") from None
    try:
        text = content.decode("utf-8-sig")
        values = json.loads(text, object_pairs_hook=without_repetition) if language == "JSON" else read_yaml(text)
    except ImportError:
        legal = "needs PyYAML: pip install pyyaml; or write it as JSON, in a file that ends in .json"
        raise InputError("config", path, legal) from None
    except RecursionError:
        raise InputError("config", path, "is nested too deeply") from None
    except ValueError as error:
        raise InputError("config", path, f"is not valid {language} ({first_line(error, 100)})") from None
    if not isinstance(values, dict):
        hint = "; TOML is not read, but YAML and JSON are" if path.suffix.lower() == ".toml" else ""
        raise InputError("config", path, f"must be a mapping of flags, without dashes, to values{hint}")
    return values
