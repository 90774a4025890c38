"""Lightning's logger for Trackio, which has W&B's functions and keeps its runs on this machine."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

PROJECT = "ostlight"
"""Of runs in Weights & Biases and Trackio; MLflow calls it an experiment."""


class TrackioLogger(Logger):
    """One Trackio run for each stage, grouped by run folder. ``TRACKIO_DIR`` says where runs are kept.

    Args:
        folder: of the run.
        stage: its name.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        import trackio

        super().__init__()
        self._trackio: Any = trackio
        self._folder, self._stage = folder, stage
        self._run: Any = None
        self._has_begun = False

    @property
    def name(self) -> str:
        return PROJECT

    @property
    def version(self) -> str:
        return f"{self._folder.name}-{self._stage}"

    @property
    def experiment(self) -> Any:
        """The run; begun when something is first logged."""
        if self._run is None:
            with _silent():
                self._run = self._trackio.init(
                    project=PROJECT,
                    name=self.version,
                    group=self._folder.name,
                    resume="allow" if self._has_begun else "never",
                    embed=False,
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )
            self._has_begun = True
        return self._run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_text_and_images(self, texts: Mapping[str, str], images: Mapping[str, Path]) -> None:
        """Logs Markdown and image files by name."""
        media = {name: self._trackio.Markdown(text) for name, text in texts.items()}
        run = self.experiment  # an image is copied to where the run is kept
        run.log(media | {name: self._trackio.Image(str(file)) for name, file in images.items()})

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Logs nothing: ``config.yaml`` in the run folder holds the settings, without keys."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the run; what is logged after it resumes it."""
        if self._run is not None:
            with _silent():
                self._run.finish()
            self._run = None


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Trackio prints how to show a run each time."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
