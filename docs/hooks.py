"""Reference pages that are generated from the code when the site is built."""

from __future__ import annotations

from typing import Any

from mkdocs.structure.files import File, Files
from typer.testing import CliRunner

from ostlight.cli import app
from ostlight.config.reference import settings_reference
from ostlight.selection.registry import find, names


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
    """Every setting with its default, allowed values and meaning."""
    lines = [
        "# Configuration",
        "",
        "A YAML file names what it changes; everything else keeps its default. "
        "On the command line any setting is changed by `key=value`.",
    ]
    section = None
    for setting in settings_reference():
        head = setting.key.rpartition(".")[0] or "top level"
        if head != section:
            section = head
            lines += [
                "",
                f"## {section}",
                "",
                "| setting | default | allowed | meaning |",
                "| --- |" + " --- |" * 3,
            ]
        cells = [f"`{setting.key}`", f"`{setting.default}`", setting.allowed, setting.description]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    """Every command as ``--help`` shows it."""
    runner = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"})
    lines = ["# Command line", "", "```", runner.invoke(app, ["--help"]).output.strip(), "```"]
    for name in sorted(command.name or command.callback.__name__ for command in app.registered_commands):
        lines += ["", f"## ostlight {name}", "", "```", runner.invoke(app, [name, "--help"]).output.strip(), "```"]
    return "\n".join(lines) + "\n"


def selectors_page() -> str:
    """Every shipped selector with its options."""
    lines = [
        "# Selectors",
        "",
        "`ostlight selectors` lists those installed here; "
        "[Baselines](../explanation/baselines.md) says where each comes from.",
    ]
    for name in names():
        cls = find(name).cls
        if cls is None:
            continue
        lines += ["", f"## {name}", "", cls.summary(), ""]
        rows = [(f"`{o.key}`", f"`{o.default}`", o.allowed, o.description) for o in settings_reference(cls.Options)]
        lines += ["| option | default | allowed | meaning |", "| --- |" + " --- |" * 3] if rows else ["No options."]
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
