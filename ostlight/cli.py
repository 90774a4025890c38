"""The command line: one verb a stage, a configuration, and what to change in it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ostlight.errors import OstlightError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Config = Annotated[str, typer.Argument(help="YAML file", metavar="CONFIG")]
Overrides = Annotated[list[str] | None, typer.Argument(help="settings to change", metavar="[KEY=VALUE]...")]


def _print_version(wanted: bool) -> None:
    if wanted:
        import ostlight

        typer.echo(f"ostlight {ostlight.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Choose training data by what a sample does to the model."""


@app.command()
def select(config: Config, overrides: Overrides = None) -> None:
    """Score the pool, pick within the budget, write the subset."""
    import ostlight

    ostlight.select(config, *overrides or [])


@app.command()
def train(config: Config, overrides: Overrides = None) -> None:
    """Train the target on the selected subset."""
    import ostlight

    ostlight.train(config, *overrides or [])


@app.command()
def evaluate(config: Config, overrides: Overrides = None) -> None:
    """Ask the trained target the questions of the test set."""
    import ostlight

    ostlight.evaluate(config, *overrides or [])


@app.command()
def benchmark(config: Config, overrides: Overrides = None) -> None:
    """Compare selectors: score, pick, train and evaluate each, at every budget and seed."""
    import ostlight

    ostlight.benchmark(config, *overrides or [])


Run = Annotated[str, typer.Argument(help="run folder, as `runs/NAME`", metavar="RUN")]


@app.command()
def report(
    run: Run, out: Annotated[str | None, typer.Option(help="file to write instead of RUN/report.html")] = None
) -> None:
    """Write one page about a run: what helps, what hurts, what it cost."""
    import ostlight

    typer.echo(f"report: {ostlight.report(run, out)}")


@app.command()
def explain(
    run: Run,
    id: Annotated[str, typer.Argument(help="of a sample of the pool")],
    layers: Annotated[bool, typer.Option("--layers", help="load the proxy and say in which layers")] = False,
) -> None:
    """Say of one sample what it does to the model, to whom, and why."""
    import ostlight

    ostlight.explain(run, id, layers=layers)


@app.command()
def sources(
    run: Run, tag: Annotated[str | None, typer.Argument(help="by default the one that tells most")] = None
) -> None:
    """Say which generator or tag of the pool helps and hurts which skill."""
    import ostlight

    ostlight.sources(run, tag)


@app.command()
def selectors() -> None:
    """List the selectors: name, what it prefers, options, where it comes from."""
    from ostlight.selection.registry import find, names, option_lines

    for name in names():
        found = find(name)
        typer.echo(f"{name}  ({found.source})")
        if found.cls is None:
            typer.echo(f"    cannot be used: {found.problem}")
            continue
        typer.echo(f"    {found.cls.summary()}")
        for line in option_lines(found.cls):
            typer.echo(f"    {line}")


def main() -> None:
    """Runs the command line; an error of the user's is told in its own words, without a traceback."""
    from ostlight.logs import configure_logging

    configure_logging()
    try:
        app()
    except OstlightError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
