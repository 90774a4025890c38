"""Reference pages that are generated from the code when the site is built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import typer
from mkdocs.structure.files import File, Files

from ostlight.cli import app
from ostlight.config.reference import settings_reference
from ostlight.selection.registry import find, names, option_lines


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages."""
    pages = {
        "reference/configuration.md": configuration_page(),
        "reference/cli.md": cli_page(),
        "reference/selectors.md": selectors_page(),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def configuration_page() -> str:
    """Every setting with its type, default and meaning."""
    lines = [
        "# Configuration",
        "",
        "A YAML file names what it changes; everything else keeps its default. On the command line any setting is changed by `key=value`.",
    ]
    section = None
    for setting in settings_reference():
        head = setting.key.rpartition(".")[0] or "top level"
        if head != section:
            section = head
            lines += ["", f"## {section}", "", "| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
        lines.append(
            f"| `{setting.key}` | {_cell(setting.type)} | `{_cell(setting.default)}` | {_cell(setting.description)} |"
        )
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    """Every command with its arguments and options."""
    command = typer.main.get_command(app)
    assert isinstance(command, click.Group)
    lines = ["# Command line", "", "`ostlight COMMAND --help` shows the same."]
    for name, sub in sorted(command.commands.items()):
        lines += ["", f"## ostlight {name}", "", sub.help or "", "", "```", *_usage(name, sub), "```"]
    return "\n".join(lines) + "\n"


def _usage(name: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=f"ostlight {name}")
    yield from command.get_help(context).splitlines()


def selectors_page() -> str:
    """Every shipped selector with its options."""
    lines = [
        "# Selectors",
        "",
        "`ostlight selectors` lists those installed here. [Baselines](../explanation/baselines.md) says where each comes from.",
    ]
    for name in names():
        cls = find(name).cls
        if cls is None:
            continue
        lines += ["", f"## {name}", "", cls.summary(), "", "```", *(option_lines(cls) or ["no options"]), "```"]
    return "\n".join(lines) + "\n"


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
