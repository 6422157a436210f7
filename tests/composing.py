"""Configurations composed once for all tests that ask for the same."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import omegaconf.base
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime

CONF = str(Path(__file__).resolve().parent.parent / "conf")


def compose_once() -> None:
    """Keep what hydra composes: a command composes its configuration four times, which takes longer than its mistake.

    The whole is kept by all that it depends on, and the choices of its groups and their yamls by these alone, since
    most tests differ by single values; so are words of the command line and interpolations, which a grammar reads. Each
    caller gets a copy, pickled, which is quicker than a deep copy. The mode is looked for only where it is given.
    Processes that tests start compose as a user's do.
    """
    made: dict[Any, bytes] = {}
    load, mode = ConfigLoaderImpl.load_configuration, Hydra.get_mode
    choose, merge = defaults_list._create_defaults_list, ConfigLoaderImpl._compose_config_from_defaults_list
    parse, read = OverridesParser.parse_rule, ConfigRepository.load_config

    def kept(key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in made:
            made[key] = pickle.dumps(make())
        return pickle.loads(made[key])

    def load_configuration(
        self: Any,
        config_name: str | None,
        overrides: list[str],
        run_mode: Any,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> Any:
        how = (config_name, run_mode, from_shell, validate_sweep_overrides)
        job = JobRuntime().get("name") if JobRuntime in Singleton._instances else None
        key = (*how, *overrides, os.getcwd(), str(self.config_search_path.get_path()), job)
        return kept(key, lambda: load(self, config_name, list(overrides), *how[1:]))

    def chosen(repo: Any, config_name: str | None, overrides: Any, prepend_hydra: bool, skip_missing: bool) -> Any:
        """The yamls of these choices, and the tree of them; what hydra notes of the choices on the way as well."""
        asked = {name: value for name, value in vars(overrides).items() if name != "config_overrides"}
        key = ("choices", sources(repo), config_name, prepend_hydra, skip_missing, repr(asked))

        def make() -> Any:
            found = choose(repo, config_name, overrides, prepend_hydra, skip_missing)
            return found, {name: vars(overrides)[name] for name in asked}

        found, noted = kept(key, make)
        vars(overrides).update(noted)
        return found

    def merged(self: Any, defaults: list[Any], repo: Any) -> Any:
        return kept(("merged", sources(repo), repr(defaults)), lambda: merge(self, defaults, repo))

    def parse_rule(self: Any, word: str, rule: str) -> Any:
        return kept(("word", word, rule), lambda: parse(self, word, rule))

    def load_config(self: Any, config_path: str) -> Any:
        return kept(("yaml", sources(self), config_path), lambda: read(self, config_path))

    def sources(repo: Any) -> str:
        """Where yamls are read, and those that lie outside of conf/ with their times, for tests write them."""
        places = [source.path for source in repo.get_sources()]
        own = [Path(p.removeprefix("file://")) for p in places if p.startswith("file://") and not p.endswith(CONF)]
        return str([places, [(str(f), f.stat().st_mtime_ns) for folder in own for f in sorted(folder.rglob("*.yaml"))]])

    def get_mode(self: Any, config_name: str | None, overrides: list[str]) -> Any:
        return mode(self, config_name, overrides) if any("hydra" in given for given in overrides) else None

    ConfigLoaderImpl.load_configuration, Hydra.get_mode = load_configuration, get_mode
    OverridesParser.parse_rule, ConfigRepository.load_config = parse_rule, load_config
    omegaconf.base.parse = cache(omegaconf.base.parse)  # of an interpolation, into a tree that is only read
    defaults_list._create_defaults_list, ConfigLoaderImpl._compose_config_from_defaults_list = chosen, merged
