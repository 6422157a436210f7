"""The words of a command line: which are options, which key=value, and sentences for those that are neither."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dollar.cli.written import expanded

FURTHER = ("--config-dir", "-cd")  # a folder of the user's own with further choices
SEVERAL = ("-m", "--multirun")
HELP = ("--help", "-h")
# Those options that a word without = follows.
VALUED = (*FURTHER, "--cfg", "-c", "--package", "-p", "--info", "-i", "--config-name", "-cn", "--config-path", "-cp")
ALONE = (*SEVERAL, *HELP, "--run", "-r", "--resolve", "--version", "--hydra-help", "--shell-completion", "-sc")
OPTIONS = (*VALUED, *ALONE, "--experimental-rerun")


def options_in(arguments: Sequence[str]) -> list[bool]:
    """Which words are options, or what follows one."""
    pairs = zip(["", *arguments], arguments, strict=False)
    return [
        word.startswith("-") or before in FURTHER or (before in VALUED and "=" not in word) for before, word in pairs
    ]


def options_first(arguments: Sequence[str]) -> list[str]:
    """The same words with hydra's options before the key=value ones, since it understands no option between those."""
    words = list(zip(options_in(arguments), arguments, strict=True))
    return [word for option, word in words if option] + [word for option, word in words if not option]


def settings_in(arguments: Sequence[str]) -> list[str]:
    """The words that are no options."""
    return [word for option, word in zip(options_in(arguments), arguments, strict=True) if not option]


def several_in(arguments: Sequence[str]) -> bool:
    """Whether a sweep was requested."""
    return bool({*SEVERAL} & {*arguments})


def further_folder(arguments: Sequence[str]) -> Path | None:
    """The folder that --config-dir names; ValueError where there is none."""
    found = None
    for before, word in zip(["", *arguments], arguments, strict=False):
        option, _, value = word.partition("=")
        if before in FURTHER or (option in FURTHER and value):
            found = Path(expanded(word if before in FURTHER else value)).absolute()
            if not found.is_dir():
                raise ValueError(f"--config-dir={found}: there is no such folder; name one with yamls of your own")
    return found


def absolute(arguments: Sequence[str]) -> list[str]:
    """The options, with the whole path of a folder of further choices, so that neither ~ nor a dash misleads hydra."""
    found, further = [], further_folder(arguments)
    for before, word in zip(["", *arguments], arguments, strict=False):
        if before in FURTHER:
            found.append(str(further))
        elif word.partition("=")[0] in FURTHER and "=" in word:
            found += ["--config-dir", str(further)]
        elif options_in([before, word])[1]:
            found.append(word)
    return found


def check_words(arguments: Sequence[str]) -> None:
    """Raise ValueError for an option that there is not, and for a word that is no key=value."""
    options = options_in(arguments)
    for before, option, word in zip(["", *arguments], options, arguments, strict=False):
        name, equals, value = word.partition("=")
        if option and word.startswith("-") and before not in FURTHER and name not in OPTIONS:
            key = re.sub(r"(?<=\w)-(?=\w)", "_", name.lstrip("-"))
            write = f"{key}={value}" if equals else f"{key}=VALUE"
            raise ValueError(f"there is no option {name}; a setting is given without dashes, as {write}")
    words = settings_in(arguments)
    for before, word in zip(["", *words], words, strict=False):
        if ("=" in word and not word.startswith("=")) or re.fullmatch(r"~[\w.@]+", word):
            continue
        said = f"{word!r} says nothing; everything is given as key=value"
        if before.endswith("=") or any(other.startswith("=") for other in words):
            raise ValueError(f"{said}, without blanks around =")
        raise ValueError(f"{said}" + (f", what has blanks in quotes: '{before} {word}'" if "=" in before else ""))
