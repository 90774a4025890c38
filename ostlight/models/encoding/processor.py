"""The processor of a model folder, also where packages that only video input needs are missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from transformers import AutoProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor, get_video_processor_config
from transformers.models.smolvlm import processing_smolvlm
from transformers.processing_utils import ProcessorMixin
from transformers.utils.hub import PushToHubMixin
from transformers.utils.import_utils import is_torchvision_available


class StoredVideo(PushToHubMixin):
    """Stands for the video processor: holds its settings, so that they are saved again, and reads no video.

    Args:
        settings: of the video processor; they become the attributes, and any other attribute is ``None``.
    """

    _auto_class = None
    model_input_names: tuple[str, ...] = ()

    def __init__(self, settings: dict[str, Any]) -> None:
        vars(self).update(settings)

    def __getattr__(self, name: str) -> None:
        # SmolVLM looks up the length of videos before it renders any turn.
        if name.startswith("_"):
            raise AttributeError(name)

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def load_processor(path: str, **options: Any) -> Any:
    """What ``AutoProcessor`` gives, without the packages that the video part of Qwen-VL, InternVL or SmolVLM needs.

    Args:
        path: folder or hub name.
        options: of ``AutoProcessor.from_pretrained``.

    Raises:
        ImportError, OSError, ValueError: it cannot be loaded.
    """
    with ExitStack() as stack:
        if not is_torchvision_available():
            stack.enter_context(_without_video())
        if getattr(processing_smolvlm, "num2words", str) is None:
            # SmolVLM needs it for the text before a video, and refuses to load without it.
            stack.enter_context(patch.object(processing_smolvlm, "num2words", str))
        return AutoProcessor.from_pretrained(path, **options)


@contextmanager
def _without_video() -> Iterator[None]:
    check = ProcessorMixin.check_argument_for_proper_class

    def lenient(self: Any, name: str, argument: Any) -> Any:
        return StoredVideo if isinstance(argument, StoredVideo) else check(self, name, argument)  # type: ignore[no-untyped-call]

    def stored(path: str, *_: Any, **__: Any) -> StoredVideo:
        return StoredVideo(get_video_processor_config(path))

    with (
        patch.object(ProcessorMixin, "check_argument_for_proper_class", lenient),
        patch.object(AutoVideoProcessor, "from_pretrained", staticmethod(stored)),
    ):
        yield
