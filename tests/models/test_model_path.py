"""A model path that is no folder: what is tried is said, and a mistake is answered at once."""

from __future__ import annotations

import json
import logging
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from huggingface_hub import constants

from ostlight.config.schema import Model
from ostlight.errors import ModelError
from ostlight.models.load import load_encoder, load_model
from ostlight.models.model_path import check_model_path, setting_of
from ostlight.pipeline import fingerprint


class Hub(BaseHTTPRequestHandler):
    """Has the models ``known/model``, and ``gated/model``, which it gives nobody."""

    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/known/"):
            self.send_response(200)
            self.send_header("ETag", '"1"')
            self.send_header("X-Repo-Commit", "abc")
            self.send_header("Content-Length", "2")
        else:
            is_gated = self.path.startswith("/gated/")
            self.send_response(403 if is_gated else 404)
            self.send_header("X-Error-Code", "GatedRepo" if is_gated else "RepoNotFound")
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine, in place of the real one, which no test asks."""
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    _name_hub(monkeypatch, server.server_port)
    Hub.asked.clear()
    check_model_path.cache_clear()
    yield server
    server.shutdown()
    server.server_close()
    check_model_path.cache_clear()


def _name_hub(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.mark.parametrize("path", ["models/small/x", "/models/x", "./x", "small model"])
def test_what_cannot_be_a_hub_name_is_refused_without_asking(hub, path: str):
    for load in (
        lambda: load_model(Model(path), "proxy"),
        lambda: load_encoder(Model(path), "proxy"),
        lambda: fingerprint.of_model(path, "proxy"),
    ):
        with pytest.raises(ModelError, match="OWNER/NAME") as error:
            load()
        assert error.value.setting == "proxy.path"
        assert path in str(error.value)
    assert Hub.asked == []


def test_the_nearest_folder_is_named_and_a_file_is_no_model(hub, tmp_path: Path):
    (tmp_path / "small").mkdir()
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ModelError, match=f"did you mean '{tmp_path / 'small'}'"):
        check_model_path(str(tmp_path / "smal"), "proxy.path")
    with pytest.raises(ModelError, match="is a file"):
        check_model_path(str(tmp_path / "weights.bin"), "proxy.path")
    check_model_path(str(tmp_path / "small"), "proxy.path")


def test_the_hub_is_asked_once_and_what_is_tried_is_logged(hub, caplog):
    with caplog.at_level(logging.INFO, "ostlight"):
        check_model_path("known/model", "proxy.path")
        check_model_path("known/model", "proxy.path")
    (line,) = caplog.messages
    assert "no folder 'known/model' here" in line
    assert line.endswith(f"asking {constants.ENDPOINT}")
    assert len(Hub.asked) == 1
    check_model_path("gated/model", "proxy.path")  # what loads it says why it cannot be had
    with pytest.raises(ModelError, match="no model of that name"):
        check_model_path("known-not/model", "proxy.path")


def test_a_hub_that_does_not_answer_is_asked_once(hub, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        _name_hub(monkeypatch, nobody.getsockname()[1])
        with pytest.raises(ModelError, match="does not answer") as error:
            fingerprint.of_model("known/model", "target")
    assert error.value.setting == "target.path"


def test_offline_only_the_cache_counts(monkeypatch, tmp_path: Path, caplog):
    check_model_path.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        check_model_path("known/model", "proxy.path")
    cached = tmp_path / "models--known--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "snapshots" / "abc" / "config.json").write_text("{}")
    with caplog.at_level(logging.INFO, "ostlight"):
        check_model_path("known/model", "proxy.path")
    assert "which is in the cache" in caplog.text
    check_model_path.cache_clear()


def test_a_base_model_that_is_missing_is_named_with_the_file_that_names_it(tmp_path: Path):
    config = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "gone")}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="adapter_config.json names: no folder") as error:
        load_model(Model(str(tmp_path)), "target")
    assert error.value.setting == "target.path"


def test_an_option_of_a_selector_is_the_setting_itself():
    assert setting_of("proxy") == "proxy.path"
    assert setting_of("selector.options.source") == "selector.options.source"
    with pytest.raises(ModelError, match=r"^selector\.options\.source: no folder"):
        fingerprint.of_model("/nowhere/at/all", "selector.options.source")
