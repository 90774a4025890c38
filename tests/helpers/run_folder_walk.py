"""Drives one run folder through random steps, each a command line in a fork, and compares it with fresh folders.

``python run_folder_walk.py FOLDER SETTINGS SEED STEPS`` exits with 0 if every step did what it must:

- A command that succeeds leaves what the same command leaves in a fresh folder, byte for byte.
- One that fails says in one line what to do, and doing it works.
- One that is killed, at any of its changes to files, leaves the old or the new of each output, whole.
"""

from __future__ import annotations

import filecmp
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from forks import forked, status_of

BUDGETS = ["budget.count=6", "budget.fraction=0.5"]
SELECTORS = {
    "random": ["selector.name=random"],
    "loss": ["selector.name=loss"],
    "warm": [
        "selector.name=perplexity",
        "proxy.warmup={fraction: 0.2, training: {steps: 2, batch_size: 4, lr: 1e-4}}",
    ],
}
"""Without a proxy, with one, and with one that is warmed up."""
BAD = [
    ["proxy.max_length=4"],
    ["proxy.warmup={fraction: 0.2, training: {steps: 2, batch_size: 4, lr: 1e30, clip: null}}"],
    ["selector.options={prefer: best}"],
    ["selector.name=icons", "anchors.path=null"],
    ["pool.path=no/such/file.parquet"],
    ["budget.stratify_by=nothing"],
    ["budget.count=0"],
    ["compute.precision=half"],
]
"""On top of ``loss``; each is refused, or ends without a score."""
TRAININGS = [[], ["target.training.lr=2e-4"], ["target.training.steps=2", "target.name=named"]]
BAD_TRAINING = ["target.training.lr=1e30", "target.training.clip=null", "target.name=named"]

DAMAGED = (
    "manifest.json",
    "cost_log.jsonl",
    "selection.parquet",
    "quarantine.parquet",
    "scores/*",
    "index/*",
    "selector/notes.json",
    "subset/.files",
    "proxy/warmup.json",
)
"""Files that a selection reads again."""

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "shutil.rmtree"}
"""Audit events of changes to files, beside files opened for writing."""

MOST_CHANGES = 120
"""A command is killed at one of its first so many changes, if it makes as many."""

IMPORTED = (
    "ostlight.cli",
    "ostlight.pipeline.select",
    "ostlight.pipeline.train",
    "ostlight.progress_display",
    "ostlight.reporting.page",
    "ostlight_selectors.icons",
    "ostlight_selectors.loss",
    "ostlight_selectors.perplexity",
    "ostlight_selectors.random",
)
"""Once, before the forks."""

OUTPUTS = ("selection.parquet", "quarantine.parquet", "scores", "subset", "selector")
"""Of a selection: the last two last."""


class Failed(AssertionError):
    """A step did not do what it must."""


@dataclass
class Walk:
    """One run folder and what was done in it.

    Attributes:
        folder: of runs: ``run`` is walked through, others are fresh.
        selected: keys of the selections that ``run`` may hold: the last one that succeeded, and those killed since.
        attempted: names of selectors that may have scores in ``run``.
    """

    folder: Path
    settings: Path
    rng: random.Random
    fresh: dict[str, Path] = field(default_factory=dict)
    selected: list[list[str]] = field(default_factory=list)
    attempted: set[str] = field(default_factory=set)
    trained: list[str] = field(default_factory=list)
    history: list[str] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def command(self, verb: str, overrides: list[str], name: str = "run", kill: tuple[int, int] | None = None) -> int:
        """Runs a command line in a fork and returns its exit status; what it printed is in ``self.printed``."""
        output = self.folder / "output.txt"
        if verb == "report":
            arguments = [verb, str(self.folder / name)]
        else:
            arguments = [verb, str(self.settings), *overrides, f"name={name}", f"folder={self.folder}"]
        self.history.append(f"{shown(arguments, self)}{f' (signal {kill[0]} at change {kill[1]})' if kill else ''}")
        status = status_of(forked(lambda: run_command(arguments, output, self.folder, kill)))
        self.printed = output.read_text()
        self.history[-1] += f" -> {status}"
        if "Traceback" in self.printed:
            raise Failed(f"a traceback:\n{self.printed}")
        return status

    def error(self) -> str:
        """The one line of a command that failed."""
        lines = self.printed.strip().splitlines()
        if not lines or not lines[-1].startswith("error: "):
            raise Failed(f"the last line is no error:\n{self.printed}")
        return lines[-1]

    def reference(self, verb: str, selection: list[str], training: list[str] | None = None) -> Path:
        """A fresh folder in which a selection was made, and a target trained."""
        key = " ".join([*selection, "train", *training] if training is not None else selection)
        if key not in self.fresh:
            name = f"fresh{len(self.fresh)}"
            if training is not None:
                shutil.copytree(self.reference("select", selection), self.folder / name, symlinks=True)
            overrides = [*selection, *(training or [])]
            if self.command(verb, overrides, name):
                raise Failed(f"a fresh folder fails:\n{self.printed}")
            self.history.pop()
            self.fresh[key] = self.folder / name
        return self.fresh[key]

    # Steps

    def select(self, selector: str, budget: str, kill: tuple[int, int] | None = None) -> None:
        selection = [*SELECTORS[selector], budget]
        reference = self.reference("select", selection)
        status = self.command("select", selection, kill=kill)
        if status == 0:
            self.selected, self.attempted = [selection], {selector}
            self.compare_selection(reference)
        elif kill and status in (-signal.SIGKILL, 128 + signal.SIGTERM):
            self.selected.append(selection)
            self.attempted.add(selector)
            self.check_whole()
        else:
            if "Undo the change, or give this run another name" not in self.error() or not self.attempted - {selector}:
                raise Failed(f"refused without need:\n{self.printed}")
            self.cure_refusal(selection, reference)

    def cure_refusal(self, selection: list[str], reference: Path) -> None:
        """Another name; then the change is undone, or the folder is started over."""
        if self.command("select", selection, "other"):
            raise Failed(f"another name does not help:\n{self.printed}")
        same(self.folder / "other", reference, OUTPUTS)
        shutil.rmtree(self.folder / "other")
        held = [s for s in SELECTORS if s in self.attempted]
        for selector in held:
            if self.command("select", [*SELECTORS[selector], BUDGETS[0]]) == 0:
                self.selected, self.attempted = [[*SELECTORS[selector], BUDGETS[0]]], {selector}
                self.compare_selection(self.reference("select", self.selected[0]))
                return
        raise Failed(f"nothing of {held} can be selected any more:\n{self.printed}")

    def bad_select(self) -> None:
        """A setting that cannot be used, and the corrected one, which must find nothing in its way."""
        had_scores = bool(self.attempted)
        if self.command("select", [*SELECTORS["loss"], BUDGETS[0], *self.rng.choice(BAD)]) != 1:
            raise Failed(f"a bad setting is taken:\n{self.printed}")
        self.error()
        self.check_whole()
        if not had_scores or "loss" in self.attempted:
            self.select("loss", self.rng.choice(BUDGETS))

    def damage(self) -> None:
        """A file is cut in half or holds noise; the next selection makes it again, or says what to remove."""
        files = [file for pattern in DAMAGED for file in sorted(self.run.glob(pattern)) if file.is_file()]
        selector, budget = self.selectable()
        if not files or len(self.attempted) > 1:
            return self.select(selector, budget)
        file, selection = self.rng.choice(files), [*SELECTORS[selector], budget]
        content = file.read_bytes()
        file.write_bytes(self.rng.choice([content[: len(content) // 2], self.rng.randbytes(len(content))]))
        self.history.append(f"{file.name} is damaged")
        reference = self.reference("select", selection)
        while self.command("select", selection):
            line = self.error()
            named = next((path for path in (file, file.parent) if f"{path} is damaged" in line), None)
            if named is None or not named.exists():
                raise Failed(f"the damage of {file} is not named, or removing it does not help:\n{self.printed}")
            if file.name == "manifest.json":
                self.remove()
            elif file.parent.name == "subset":
                shutil.rmtree(file.parent)
            else:
                file.unlink()
        self.selected, self.attempted = [selection], {selector}
        return self.compare_selection(reference)

    def train(self, training: list[str], kill: tuple[int, int] | None = None) -> None:
        held = self.held_selection()
        status = self.command("train", [*(held or self.some_selection()), *training], kill=kill)
        if kill and status in (-signal.SIGKILL, 128 + signal.SIGTERM):
            self.check_whole()
            return None
        if held is None:
            if status != 1 or "ostlight select" not in self.error():
                raise Failed(f"trained without a selection:\n{self.printed}")
            self.select(*self.selectable())
            return self.train(training)
        if status and "target.name=named" in training:
            if "give the target another name" not in self.error():
                raise Failed(f"refused without need:\n{self.printed}")
            return self.train([*training[:-1], f"target.name=named{len(self.history)}"])
        if status:
            raise Failed(f"not trained:\n{self.printed}")
        target = Path(os.path.realpath(self.run / "target"))
        reference = Path(os.path.realpath(self.reference("train", held, strip_name(training)) / "target"))
        same(target, reference)
        return None

    def bad_train(self) -> None:
        held = self.held_selection()
        if held is None:
            return self.train([])
        if self.command("train", [*held, *BAD_TRAINING]) != 1:
            raise Failed(f"a training that diverges is taken:\n{self.printed}")
        self.error()
        return self.train(self.rng.choice(TRAININGS))

    def report(self) -> None:
        status = self.command("report", [])
        if status:
            if "ostlight select" not in self.error():
                raise Failed(f"no report, and no way out:\n{self.printed}")
            return
        held = self.held_selection()
        # After a kill some of the outputs are old and some new.
        if held is not None and len(self.selected) == 1:
            reference = self.reference("select", held)
            if self.contents(self.run) != self.contents(reference):
                raise Failed("the report differs from that of a fresh folder")

    def remove(self) -> None:
        """As a message may advise: to start over."""
        self.history.append("rm -r run")
        shutil.rmtree(self.run, ignore_errors=True)
        self.selected, self.attempted = [], set()

    # What must hold

    def held_selection(self) -> list[str] | None:
        """The settings of the selection that the folder holds, which must be one of those it may hold."""
        if not (self.run / "selection.parquet").exists():
            return None
        for selection in reversed(self.selected):
            if filecmp.cmp(
                self.run / "selection.parquet", self.reference("select", selection) / "selection.parquet", shallow=False
            ):
                return selection
        raise Failed("selection.parquet is that of no command")

    def check_whole(self) -> None:
        """After a kill: each output is the old one or the new one."""
        self.held_selection()
        subset = self.run / "subset"
        if subset.exists() and not any(
            differences(subset, self.reference("select", selection) / "subset") == [] for selection in self.selected
        ):
            raise Failed("subset is that of no command")

    def compare_selection(self, reference: Path) -> None:
        same(self.run, reference, OUTPUTS)
        left = [str(path) for path in self.run.rglob(".*") if ".tmp" in path.name or path.suffix in (".new", ".old")]
        if left:
            raise Failed(f"leftovers: {left}")

    def contents(self, run: Path) -> str:
        """A digest of what a report shows, times and costs aside."""
        output = self.folder / "contents.txt"
        output.unlink(missing_ok=True)
        status_of(forked(lambda: output.write_text(report_contents(run))))
        return output.read_text()

    def some_selection(self) -> list[str]:
        return [*SELECTORS["random"], BUDGETS[0]]

    def selectable(self) -> tuple[str, str]:
        """A selector that the folder will not refuse."""
        return self.rng.choice(sorted(self.attempted or SELECTORS)), self.rng.choice(BUDGETS)

    def step(self) -> None:
        rng = self.rng
        kill = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]), rng.randint(1, MOST_CHANGES)
        steps: list[tuple[int, Callable[[], None]]] = [
            (4, lambda: self.select(*self.selectable())),
            (2, lambda: self.select(rng.choice(list(SELECTORS)), rng.choice(BUDGETS))),
            (6, lambda: self.select(*self.selectable(), kill)),
            (1, lambda: self.select(rng.choice(list(SELECTORS)), rng.choice(BUDGETS), kill)),
            (3, lambda: self.train(rng.choice(TRAININGS))),
            (4, lambda: self.train(rng.choice(TRAININGS), kill)),
            (2, self.bad_select),
            (1, self.bad_train),
            (2, self.damage),
            (2, self.report),
            (1, self.remove),
        ]
        rng.choices([step for _, step in steps], [weight for weight, _ in steps])[0]()


def strip_name(training: list[str]) -> list[str]:
    return [setting for setting in training if not setting.startswith("target.name=")]


def shown(arguments: list[str], walk: Walk) -> str:
    return " ".join(arguments).replace(str(walk.folder), "...")


def run_command(arguments: list[str], output: Path, folder: Path, kill: tuple[int, int] | None) -> None:
    """In a fork: the command line; it gets a signal at one of its changes to files in ``folder``."""
    stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.argv[:] = ["ostlight", *arguments]
    if kill is not None:
        number, at = kill
        seen = [0]

        def hook(event: str, details: tuple[object, ...]) -> None:
            is_write = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
            if (is_write or event in CHANGES) and str(folder) in str(details[0]):
                seen[0] += 1
                if seen[0] == at:
                    os.kill(os.getpid(), number)

        sys.addaudithook(hook)
    from ostlight.cli import main

    try:
        main()
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(ended.code or 0))


def report_contents(run: Path) -> str:
    from ostlight.reporting.contents import page_contents
    from ostlight.reporting.finished_run import FinishedRun

    contents = page_contents(FinishedRun.open(run))
    scored = {k: v for k, v in (contents["scored"] or {}).items() if k not in ("run", "scores")}
    text = json.dumps([scored, contents["rejected"], contents["missing"]], default=plain, sort_keys=True)
    return text.replace(str(run), "RUN")


def plain(value: object) -> object:
    return "a function" if callable(value) else getattr(value, "__dict__", None) or repr(value)


def differences(one: Path, other: Path) -> list[str]:
    """Names of the files that are not the same in both folders; two files are the same by their bytes."""
    if one.is_file() and other.is_file():
        return [] if filecmp.cmp(one, other, shallow=False) else [one.name]
    names = {path.relative_to(top) for top in (one, other) for path in top.rglob("*") if path.is_file()}
    return sorted(
        str(name)
        for name in names
        if not ((one / name).is_file() and (other / name).is_file())
        or not filecmp.cmp(one / name, other / name, shallow=False)
    )


def same(one: Path, other: Path, names: tuple[str, ...] = ("",)) -> None:
    for name in names:
        here, there = one / name, other / name
        if here.exists() != there.exists():
            raise Failed(f"{name} is in one of both folders only")
        if here.exists() and (found := differences(here, there)):
            raise Failed(f"{name or one.name} differs from that of a fresh folder: {found}")


def main(folder: str, settings: str, seed: str, steps: str) -> None:
    for module in IMPORTED:
        importlib.import_module(module)
    walk = Walk(Path(folder), Path(settings), random.Random(int(seed)))
    for _ in range(int(steps)):
        try:
            walk.step()
        except BaseException as error:
            print("\n".join(walk.history))
            print(f"{type(error).__name__}: {error}")
            sys.exit(1)
    digest = hashlib.sha256("\n".join(walk.history).encode()).hexdigest()[:8]
    print(f"{len(walk.history)} commands, {digest}")


if __name__ == "__main__":
    main(*sys.argv[1:])
