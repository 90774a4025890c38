"""Uploads an export to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ostlight.errors import ConfigError, DataError
from ostlight.progress import phase
from ostlight.redact import redact
from ostlight.sharing.folder import MANIFEST

STALE = ("data/train-*", "images/*", "llama-factory/*", "ms-swift/*", "trl/*")
"""Files of an earlier export on the Hub, which go where this one does not have them."""


class Hub:
    """A data set's repository on the Hub that an export goes to.

    Args:
        name: ``OWNER/NAME``.
        public: whether everybody may see it.

    Raises:
        ConfigError: no such name is possible, or there is no token.
    """

    def __init__(self, name: str, public: bool = False) -> None:
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise ConfigError([f"--push: {name!r} is no name of a data set; write OWNER/NAME"], "export") from error
        if name.count("/") != 1:
            raise ConfigError([f"--push: {name!r} has no owner; write OWNER/NAME"], "export")
        if get_token() is None:
            problem = "--push needs a token of the Hugging Face Hub: set HF_TOKEN, or run `hf auth login`"
            raise ConfigError([problem], "export")
        self.name, self.public, self.api = name, public, HfApi()

    def push(self, folder: Path) -> str:
        """Uploads the folder as one commit, makes the repository if it is not there, and returns its address.

        Raises:
            DataError: the repository is public and this export is not; the Hub refuses, or cannot be reached.
        """
        with phase(f"uploading to {self.name}"), self._asking():
            self.api.create_repo(self.name, repo_type="dataset", private=not self.public, exist_ok=True)
            is_private = self.api.repo_info(self.name, repo_type="dataset").private
            if not is_private and not self.public:
                raise DataError(f"{self.name} is public on the Hub; add --public to upload there, or name another")
            self.api.upload_folder(
                repo_id=self.name,
                repo_type="dataset",
                folder_path=folder,
                commit_message="Export of a selection by ostlight",
                ignore_patterns=[MANIFEST],
                delete_patterns=list(STALE),
            )
        return f"{self.api.endpoint}/datasets/{self.name}"

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
            said = " ".join(redact(str(getattr(error, "server_message", None) or error)).split())[:300]
            raise DataError(f"the Hugging Face Hub refuses {self.name}: {type(error).__name__}: {said}") from error
