"""The builder's parts by name: a class of one's own wherever a frozen module or a speech synthesiser is named.

- "package.module:Class" is such a name, "package.module:Class=PATH" gives it a file or folder; anything else is a path or program.
- The module must be importable where the workers run: a file in the working directory is.
"""
import importlib
import re

NAME = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)(?:=(.*))?")


def split_name(name: str) -> tuple[str | None, str]:
    """"module:Class=PATH" -> ("module:Class", "PATH"); what is not of that form -> (None, name)."""
    match = NAME.fullmatch(name)
    return (f"{match[1]}:{match[2]}", match[3] or "") if match else (None, name)


def find_class(name: str) -> type:
    """The class "module:Class"; ValueError when there is none."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"no class {name}: {error}; the module must lie in the working directory or be installed") from error
