"""The command line: one verb a stage, a configuration, and settings to change in it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from ostlight.data.sanitize import printable
from ostlight.errors import ConfigError, OstlightError, PendingError, machine_problem
from ostlight.interrupts import NAMES, REQUEUE, listening, received
from ostlight.logs import configure_logging
from ostlight.ranks import is_first_rank
from ostlight.redact import redact

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""The base of all errors in how a command is written; Typer exports it under no name."""

RENAMED_VERBS = {"pick": "select", "score": "select", "compare": "benchmark", "bench": "benchmark", "test": "evaluate"}
"""Verbs of earlier versions and of similar tools, and what they are called here."""

VERBOSITY = {"-v": 1, "--verbose": 1, "-q": -1, "--quiet": -1}
INTERRUPTED = 130
DOUBTFUL = 3
"""Exit status of a selection that is written, with problems that the log names."""

PENDING = 4
"""Exit status of a command that waits for something outside; the same command goes on."""

KEPT = {
    "select": "finished shards and the last checkpoint of the warm-up are kept",
    "train": "the last checkpoint is kept",
    "benchmark": "finished tasks are kept",
}
"""What a stage that is interrupted has saved; the others start over."""

Config = Annotated[str, typer.Argument(help="YAML file", metavar="CONFIG")]
Overrides = Annotated[list[str] | None, typer.Argument(help="settings to change", metavar="[KEY=VALUE]...")]
Run = Annotated[str, typer.Argument(help="run folder, as `runs/NAME`", metavar="RUN")]


def _print_version(wanted: bool) -> None:
    if wanted:
        import ostlight

        _echo(f"ostlight {ostlight.__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show debugging messages.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors only.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Choose training data by what a sample does to the model."""
    configure_logging(verbose - quiet)


@app.command()
def init(
    data: Annotated[str, typer.Argument(help="file, folder or glob of your data", metavar="DATA")],
    out: Annotated[str | None, typer.Option(help="file to write instead of DATA's name with .yaml")] = None,
) -> None:
    """Look at your data and write a commented configuration."""
    import ostlight

    ostlight.init_config(data, out)


@app.command()
def validate(config: Config, overrides: Overrides = None) -> None:
    """Check a configuration, its data and models; estimate the cost."""
    import ostlight
    from ostlight.config import load_config

    validation = ostlight.validate(config, *overrides or [])
    _echo(str(validation))
    if validation.problems:
        raise typer.Exit(1)
    verb = "benchmark" if load_config(config, *overrides or []).benchmark else "select"
    _echo(f"next: {shlex.join(('ostlight', verb, config, *(overrides or ())))}")


@app.command()
def plan(config: Config, overrides: Overrides = None) -> None:
    """Show what each stage will cost, from shapes alone."""
    import ostlight

    typer.echo(str(ostlight.plan(config, *overrides or [])))


@app.command()
def select(config: Config, overrides: Overrides = None) -> None:
    """Score the pool, select within the budget, write the subset."""
    import ostlight

    if ostlight.select(config, *overrides or []).problems:
        raise typer.Exit(DOUBTFUL)


@app.command()
def rescore(
    config: Config,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="of the new run instead of NAME-ANCHORS")] = None,
) -> None:
    """Score for other anchors from stored products, without a new pass."""
    import ostlight

    ostlight.rescore(config, *overrides or [], name=name)


@app.command()
def train(config: Config, overrides: Overrides = None) -> None:
    """Train the target on the selected subset."""
    import ostlight

    ostlight.train(config, *overrides or [])


@app.command()
def evaluate(config: Config, overrides: Overrides = None) -> None:
    """Measure the trained target's accuracy on the test set."""
    import ostlight

    ostlight.evaluate(config, *overrides or [])


@app.command()
def benchmark(config: Config, overrides: Overrides = None) -> None:
    """Compare selectors by the models they train."""
    import ostlight

    ostlight.benchmark(config, *overrides or [])


@app.command()
def report(
    run: Run, out: Annotated[str | None, typer.Option(help="file to write instead of RUN/report.html")] = None
) -> None:
    """Write one HTML page about a run: utilities, cost, samples."""
    import ostlight

    _echo(f"report: {ostlight.report(run, out)}")


@app.command()
def export(
    run: Run,
    out: Annotated[str | None, typer.Option(help="folder to write instead of RUN/export")] = None,
    tools: Annotated[
        list[str] | None,
        typer.Option("--for", help="also for another trainer: llama-factory, ms-swift, trl", metavar="TRAINER"),
    ] = None,
    license: Annotated[
        list[str] | None, typer.Option(help="of the data, as the Hub names it: cc-by-4.0", metavar="NAME")
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="upload to the Hugging Face Hub, privately", metavar="OWNER/NAME")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="let everybody see the upload")] = False,
) -> None:
    """Write the subset as a data set for the Hub, with a card."""
    import ostlight

    ostlight.export(run, out, tools=tools or (), license=license or (), push=push, public=public)


@app.command()
def explain(
    run: Run,
    id: Annotated[str, typer.Argument(help="of a sample of the pool")],
    layers: Annotated[bool, typer.Option("--layers", help="load the proxy and show in which layers")] = False,
) -> None:
    """Show what one sample does to the model, and why."""
    import ostlight

    ostlight.explain(run, id, layers=layers)


@app.command()
def sources(
    run: Run, tag: Annotated[str | None, typer.Argument(help="by default the most informative one")] = None
) -> None:
    """Show which tags of the pool help or hurt which skill."""
    import ostlight

    ostlight.sources(run, tag)


@app.command()
def selectors(
    name: Annotated[str | None, typer.Argument(help="one selector, with what its options mean")] = None,
) -> None:
    """List the selectors: name, what it prefers, options, package."""
    from ostlight.selection.registry import describe, find, load, names, option_lines

    if name is not None:
        _echo(describe(load(name)))
        return
    for name in names():
        found = find(name)
        _echo(f"{name}  ({found.source})")
        if found.cls is None:
            _echo(f"    cannot be used: {found.problem}")
            continue
        _echo(f"    {found.cls.summary()}")
        for line in option_lines(found.cls):
            _echo(f"    {line}")


def main() -> None:
    """Runs the command line; a user's error is one message without a traceback.

    The exit status is 0 for what is done, 1 for an error, 2 for a command written wrongly, 3 for a selection that is
    written and doubtful (``Selection.problems``), 4 for one that waits for replies from outside, and 128 plus the
    signal's number for a run that a signal ended: 130 (SIGINT), 143 (SIGTERM), 138 (SIGUSR1).
    """
    # Threads that wait by spinning make a busy machine ten times slower (docs/log.md). Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with listening(_tell_interrupted):
        try:
            status = _run()
        except BaseException:
            if received() is None:
                raise
        if (number := received()) is not None:
            _tell_interrupted(number)
            status = 128 + number
    sys.exit(status)


def _run() -> int:
    try:
        status = app(_global_options_first(sys.argv[1:]), prog_name="ostlight", standalone_mode=False)
    except PendingError as error:
        _echo(f"waiting: {error}", err=True)
        return PENDING
    except OstlightError as error:
        return _failed(_message(error), 1)
    except UsageError as error:
        return _failed(_usage_message(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        return _failed("interrupted; the same command resumes the run", INTERRUPTED)
    except Exception as error:
        if (problem := machine_problem(error)) is not None:
            return _failed(problem, 1)
        # Not Python's own traceback: a library's message may hold a key, or what a terminal obeys.
        _echo(traceback.format_exc().rstrip(), err=True)
        return 1
    return status if isinstance(status, int) else 0


def _tell_interrupted(number: int) -> None:
    """Says how to go on; where SLURM has announced the end of the job, puts it back into the queue."""
    if not is_first_rank():
        return
    verb = next((argument for argument in sys.argv[1:] if argument in KEPT), None)
    again = shlex.join(["ostlight", *sys.argv[1:]])
    kept = f"{KEPT[verb]}; go on with: {again}" if verb else f"start again with: {again}"
    _echo(f"interrupted by {NAMES[number]}: {kept}", err=True)
    if number == REQUEUE:
        _echo(_requeue(os.environ["SLURM_JOB_ID"]), err=True)


def _requeue(job: str) -> str:
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"job {job} is not requeued: scontrol: {error.strerror}"
    return f"requeued job {job}" if done.returncode == 0 else f"job {job} is not requeued: {done.stderr.strip()}"


def _global_options_first(arguments: Sequence[str]) -> list[str]:
    """Moves ``-v`` and ``-q`` before the verb, wherever they are written; no arguments ask for help."""
    verbosity = [argument for argument in arguments if argument in VERBOSITY]
    return [*verbosity, *(argument for argument in arguments if argument not in VERBOSITY)] or ["--help"]


def _message(error: OstlightError) -> str:
    """Returns the error's text; on one line where it lists a single problem."""
    if isinstance(error, ConfigError) and len(error.problems) == 1:
        return f"{error.source}: {error.problems[0]}"
    return str(error)


def _usage_message(error: BaseException) -> str:
    """Returns one line: what is wrong with the command, and the nearest valid name."""
    message = " ".join(str(getattr(error, "format_message", error.__str__)()).split())
    verb = next((verb for verb in RENAMED_VERBS if f"No such command {verb!r}" in message), None)
    if verb is not None:
        return f"no command {verb!r}; it is now `ostlight {RENAMED_VERBS[verb]}`"
    setting = next((a for a in sys.argv[2:] if a.startswith("--") and "." in a and a.split("=")[0] in message), None)
    if setting is not None:
        return f"no option {setting.split('=')[0]}; settings have no dashes: {setting.removeprefix('--')}"
    return message if "Did you mean" in message else f"{message.rstrip('.')}; see `ostlight --help`"


def _echo(text: str, err: bool = False) -> None:
    """The one way out for text of the command line: without keys, and without what a terminal obeys."""
    typer.echo(printable(redact(text)), err=err)


def _failed(message: str, status: int) -> int:
    _echo(f"error: {message}", err=True)
    return status


if __name__ == "__main__":
    main()
