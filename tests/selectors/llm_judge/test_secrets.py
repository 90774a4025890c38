"""The judge's key is in no file and no output, whatever the server says and wherever the configuration has it."""

from __future__ import annotations

import json
from typing import Any

import pyarrow.parquet as pq
import pytest
from judge_server import Send, says, scored

import ostlight
from ostlight.errors import ConfigError


@pytest.fixture(params=[20, pytest.param(64, marks=pytest.mark.slow), 600, pytest.param(4000, marks=pytest.mark.slow)])
def key(request, monkeypatch) -> str:
    made = "sk-" + "".join("abcdefghjkmnpqrstuvwxyz23456789"[(7 * k + k // 31) % 31] for k in range(request.param - 3))
    monkeypatch.setattr("ostlight.redact._named", {})
    monkeypatch.setenv("JUDGE_KEY", made)
    return made


@pytest.mark.parametrize("logger", ["csv", pytest.param("wandb", marks=pytest.mark.slow)])
def test_a_run_holds_no_key_in_any_file_or_output(settings, loopback, key, logger, capfd, caplog):
    """The server says the key in all that it may say; the configuration holds it where nobody thought of it."""
    caplog.set_level("DEBUG", "ostlight")

    def script(body: dict[str, Any], n: int) -> Send:
        kind = n % 6
        if kind == 0:
            return Send({"error": {"message": "x" * 490 + f" bad request from {key}"}}, 400, {"X-Key": key})
        if kind == 1:
            return says(f"your key is {key}" * 3)
        if kind == 2:
            return says(None, refusal=f"I will not, {key}")
        if kind == 3:
            return says('{"score": 3}', finish_reason=f"stopped by {key}")
        if kind == 4:
            return Send({"error": "y" * 480 + key})
        return scored(3, reason=f"since {key} asks")

    server = loopback(script)
    options = {
        "model": "m",
        "base_url": server.url,
        "api_key_env": "JUDGE_KEY",
        "max_retries": 1,
        "extra_body": {"key": "${oc.env:JUDGE_KEY}", "again": key},
    }
    config = settings(selector={"name": "llm_judge", "options": options})
    config["compute"]["logger"] = logger
    selection = ostlight.select(config)
    assert selection.rejected["request_failed"] > 0
    ostlight.report(selection.folder.path)
    for file in (p for p in selection.folder.path.rglob("*") if p.is_file()):
        content = file.read_bytes()
        if file.suffix == ".parquet":
            content += json.dumps(pq.read_table(file).to_pylist(), default=str).encode()
        assert key[:16].encode() not in content, file
    printed = capfd.readouterr()
    assert key[:16] not in printed.out + printed.err


def test_addresses_with_passwords_are_refused(settings):
    options = {"model": "m", "base_url": "http://host/v1#sk-0123456789abcdefghij"}
    with pytest.raises(ConfigError, match="put the key into an environment variable") as caught:
        ostlight.select(settings(selector={"name": "llm_judge", "options": options}))
    assert "0123456789abcdefghij" not in str(caught.value)
