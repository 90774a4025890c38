"""What is uploaded where, and what is refused before anything is written; the Hub is played by an object."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError

import ostlight
from ostlight.errors import ConfigError, DataError
from ostlight.sharing import push
from ostlight.sharing.folder import MANIFEST

Select = Callable[..., Path]
TOKEN = "hf_0123456789abcdefghijklmnop"


class FakeHub:
    """Records what it is asked; ``private`` is what the repository is that is there already."""

    endpoint = "https://hub"

    def __init__(self, private: bool | None = None, error: Exception | None = None) -> None:
        self.private, self.error, self.uploads = private, error, list[dict[str, Any]]()

    def create_repo(self, name: str, repo_type: str, private: bool, exist_ok: bool) -> None:
        if self.error is not None:
            raise self.error
        assert (repo_type, exist_ok) == ("dataset", True)
        self.private = private if self.private is None else self.private

    def repo_info(self, name: str, repo_type: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, **arguments: Any) -> None:
        self.uploads.append(arguments)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeHub]:
    def make(token: str | None = TOKEN, **state: Any) -> FakeHub:
        made = FakeHub(**state)
        monkeypatch.setattr(push, "HfApi", lambda: made)
        monkeypatch.setattr(push, "get_token", lambda: token)
        return made

    return make


def test_it_is_private_and_leaves_no_file_of_an_earlier_export(select: Select, hub: Callable[..., FakeHub]) -> None:
    made = hub()
    exported = ostlight.export(select(), push="me/mine")
    (upload,) = made.uploads
    assert made.private is True
    assert (upload["repo_id"], upload["repo_type"], upload["folder_path"]) == ("me/mine", "dataset", exported.folder)
    assert upload["ignore_patterns"] == [MANIFEST]
    assert "data/train-*" in upload["delete_patterns"]
    assert exported.address == "https://hub/datasets/me/mine"


@pytest.mark.parametrize(("private", "public", "uploads"), [(None, True, 1), (False, True, 1), (True, True, 1)])
def test_a_public_upload_is_asked_for(
    select: Select, hub: Callable[..., FakeHub], private: bool | None, public: bool, uploads: int
) -> None:
    made = hub(private=private)
    ostlight.export(select(), push="me/mine", public=public)
    assert len(made.uploads) == uploads


def test_a_public_repository_is_refused_without_it(select: Select, hub: Callable[..., FakeHub]) -> None:
    made = hub(private=False)
    with pytest.raises(DataError):
        ostlight.export(select(), push="me/mine")
    assert made.uploads == []


@pytest.mark.parametrize(("name", "token"), [("me/mine", None), ("mine", TOKEN), ("me/mi ne", TOKEN), ("a/b/c", TOKEN)])
def test_no_token_or_no_name_is_refused_before_anything_is_written(
    select: Select, hub: Callable[..., FakeHub], name: str, token: str | None
) -> None:
    hub(token=token)
    run = select()
    with pytest.raises(ConfigError) as error:
        ostlight.export(run, push=name)
    assert len(error.value.problems) == 1
    assert not (run / "export").exists()


def test_a_refusal_of_the_hub_is_one_line_without_the_token(
    select: Select, hub: Callable[..., FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    response = httpx.Response(403, request=httpx.Request("POST", "https://hub/api"))
    hub(error=HfHubHTTPError(f"no rights\nfor {TOKEN}", response=response))
    run = select()
    with pytest.raises(DataError) as error:
        ostlight.export(run, push="me/mine")
    assert TOKEN not in str(error.value)
    assert "\n" not in str(error.value)
    assert (run / "export" / "README.md").is_file()
