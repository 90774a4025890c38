"""The processor of a model folder, also where packages that only videos need are missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from transformers import AutoProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor, get_video_processor_config
from transformers.models.smolvlm import processing_smolvlm
from transformers.processing_utils import ProcessorMixin
from transformers.utils.hub import PushToHubMixin
from transformers.utils.import_utils import is_torchvision_available


class StoredVideo(PushToHubMixin):
    """What a model says about videos, in place of what reads them: kept, so that it is saved again.

    Args:
        settings: of its video processor; they become the attributes, and any other attribute is ``None``.
    """

    _auto_class = None
    model_input_names: tuple[str, ...] = ()

    def __init__(self, settings: dict[str, Any]) -> None:
        vars(self).update(settings)

    def __getattr__(self, name: str) -> None:
        # SmolVLM looks up the length of videos before it lays out any turn.
        if name.startswith("_"):
            raise AttributeError(name)

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def load_processor(path: str, **options: Any) -> Any:
    """What ``AutoProcessor`` gives; the video part of Qwen-VL's, InternVL's, SmolVLM's needs no package of its own.

    Args:
        path: folder or hub name.
        options: of ``AutoProcessor.from_pretrained``.

    Raises:
        ImportError, OSError, ValueError: it cannot be loaded.
    """
    with ExitStack() as stack:
        if not is_torchvision_available():
            stack.enter_context(_videos_left_aside())
        if getattr(processing_smolvlm, "num2words", str) is None:
            # It spells the number of frames in the text before a video, and is asked for before any image.
            stack.enter_context(_instead(processing_smolvlm, "num2words", str))
        return AutoProcessor.from_pretrained(path, **options)


@contextmanager
def _videos_left_aside() -> Iterator[None]:
    check = ProcessorMixin.check_argument_for_proper_class

    def lenient(self: Any, name: str, argument: Any) -> Any:
        return StoredVideo if isinstance(argument, StoredVideo) else check(self, name, argument)  # type: ignore[no-untyped-call]

    def stored(path: str, *_: Any, **__: Any) -> StoredVideo:
        return StoredVideo(get_video_processor_config(path))

    with (
        _instead(ProcessorMixin, "check_argument_for_proper_class", lenient),
        _instead(AutoVideoProcessor, "from_pretrained", staticmethod(stored)),
    ):
        yield


@contextmanager
def _instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
