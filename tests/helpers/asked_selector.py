"""A selector that writes down what it is asked, for tests that end processes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostlight.models.batch import Batch
from ostlight.selection.context import ScoringContext
from ostlight.selection.selector import Selector


def node() -> str:
    """``first`` on the head of a Ray cluster and without one, ``second`` elsewhere."""
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return "first"
    head = [one["NodeID"] for one in ray.nodes() if "node:__internal_head__" in one["Resources"]]
    return "first" if ray.get_runtime_context().get_node_id() in head else "second"


class Asked(Selector):
    """Scores by the name; appends each sample to ``asked.txt``, one at a time."""

    compute_options = ("folder", "waits")

    @dataclass
    class Options:
        """Attributes:
        folder: gets the files.
        waits: in the middle of its second shard a process waits until ``go`` is there.
        fails: every score fails.
        dies: the process ends.
        """

        folder: str = ""
        waits: bool = False
        fails: bool = False
        dies: bool = False

    def setup(self, context: ScoringContext) -> None:
        self.folder, self.node, self.batches = Path(self.options.folder), node(), 0
        (self.folder / f"set_up-{os.getpid()}").touch()

    def score(self, batch: Batch) -> dict[str, Any]:
        if self.options.dies:
            os._exit(3)
        if self.options.fails:
            raise ValueError("no such thing")
        self.batches += 1
        for k, sample in enumerate(batch.samples):
            with (self.folder / "asked.txt").open("a") as file:
                file.write(f"{self.node} {sample.id}\n")
            if self.batches == 2 and k == 2:
                (self.folder / f"waits-{self.node}").touch()
                while self.options.waits and not (self.folder / "go").exists():
                    time.sleep(0.05)
        return {"score": [float(len(sample.id)) for sample in batch.samples]}
