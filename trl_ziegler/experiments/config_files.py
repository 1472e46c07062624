"""Command lines and configuration files of the recipes: TRL's parser, and what it takes without a word refused."""

import sys
from argparse import Action
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser


class RecipeParser(TrlParser):
    """`TrlParser` that reads `--config=FILE`, too, and refuses shortened flags, keys twice and halves of a count.

    Overrides: `parse_args_and_config`, `set_defaults_with_config`.
    """

    def parse_args_and_config(self, args: Iterable[str] | None = None, **options: Any) -> tuple[Any, ...]:
        """As the parent's, of a file whose keys are there once."""
        self.allow_abbrev = False  # `--num_label 5` would be taken for the one flag that begins so
        flags = separate_config(list(sys.argv[1:] if args is None else args))
        if "--config" in flags:
            refuse_repeated_keys(config_of(flags))
        return super().parse_args_and_config(flags, **options)

    def set_defaults_with_config(self, **values: Any) -> list[str]:
        """As the parent's, with values of their arguments' kind."""
        actions = {action.dest: action for action in self._actions}
        known = {name: _of_kind(actions[name], value) for name, value in values.items() if name in actions}
        return super().set_defaults_with_config(**{**values, **known})


def _of_kind(action: Action, value: Any) -> Any:
    """A default as its argument's type has it, where YAML reads another one than was meant."""
    if value is False and action.dest.endswith("_strategy"):
        return "no"  # which YAML reads so without quotes
    if action.type is int and isinstance(value, float):
        if not value.is_integer():
            raise ValueError(f"`{action.dest}` is {value}; give a whole number.")
        return int(value)
    return value


def separate_config(flags: Sequence[str]) -> list[str]:
    """Flags with `--config=FILE` as two words; `ValueError` where the file is missing."""
    flags = [part for flag in flags for part in (flag.split("=", 1) if flag.startswith("--config=") else [flag])]
    if flags[-1:] == ["--config"]:
        raise ValueError("--config needs a value: the path of a YAML file.")
    return flags


def config_of(flags: Sequence[str]) -> Path:
    """The file that follows `--config`."""
    return Path(flags[flags.index("--config") + 1])


def refuse_repeated_keys(file: Path) -> None:
    """`ValueError` for a key that a mapping of the file has twice, of which a reader keeps the last in silence."""
    if not file.is_file():
        raise ValueError(f"`config` is '{file}', which is no file; give the path of a YAML file.")
    unread = [yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader)]
    while unread:
        node = unread.pop()
        if isinstance(node, yaml.SequenceNode):
            unread.extend(node.value)
        if not isinstance(node, yaml.MappingNode):
            continue
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ValueError(
                    f"{file} has `{key.value}` in line {seen[key.value]} and again in line {line}, which would "
                    "replace the first; give it once."
                )
            seen[key.value] = line
            unread.append(value)


def as_section(name: str, value: Any) -> dict[str, Any]:
    """A section as a mapping, from a YAML mapping, JSON text (`--policy '{"kl_target": 3}'`) or nothing."""
    section = yaml.safe_load(value) if isinstance(value, str) else value
    if section is not None and not isinstance(section, dict):
        raise ValueError(
            f"The section '{name}' is {value!r}; give keys and values, or flags such as --{name}.key value."
        )
    return dict(section or {})


def split_section_flags(argv: list[str], sections: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Separate `--section.key value` (or `=value`) from ordinary flags; values are read as YAML."""
    flags: list[str] = []
    overrides: dict[str, dict[str, Any]] = {}
    rest = iter(argv)
    for token in rest:
        name, _, value = token.removeprefix("--").partition("=")
        section, dot, key = name.partition(".")
        if not token.startswith("--") or not dot or section not in sections:
            flags.append(token)
            continue
        text = value if "=" in token else next(rest, None)
        if text is None:
            raise ValueError(f"{token} needs a value.")
        overrides.setdefault(section, {})[key] = yaml.safe_load(text)
    return flags, overrides
