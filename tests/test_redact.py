"""No key leaves the program, whatever holds it."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest
import yaml

import ostlight
from ostlight.config.load import as_written, load_config
from ostlight.errors import BadRecord, ConfigError
from ostlight.logs import log_to_file
from ostlight.redact import REMOVED, redact, secrets


def key_of(length: int) -> str:
    return "sk-" + "".join("abcdefghjkmnpqrstuvwxyz23456789"[(7 * k + k // 31) % 31] for k in range(length - 3))


@pytest.fixture(params=[20, 40, 64, 256, 600, 4000])
def key(request, monkeypatch) -> str:
    monkeypatch.setattr("ostlight.redact._named", {})
    monkeypatch.setenv("JUDGE_KEY", key_of(request.param))
    return key_of(request.param)


def test_what_is_removed_from_a_text(monkeypatch):
    monkeypatch.setattr("ostlight.redact._named", {})
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("SHORT_TOKEN", "yes")
    assert redact("a 0123456789abcdef, yes") == f"a {REMOVED}, yes"
    assert redact("see https://me:secret-of-mine@host/x?a=1&api_key=zzz#token=yyy") == (
        f"see https://{REMOVED}@host/x?a=1&api_key={REMOVED}#{REMOVED}"
    )
    assert (
        redact("s3://name:pass@bucket/file and s3://bucket/file") == f"s3://{REMOVED}@bucket/file and s3://bucket/file"
    )
    assert (
        redact("https://h/f?X-Amz-Signature=abc&X-Amz-Expires=9")
        == f"https://h/f?X-Amz-Signature={REMOVED}&X-Amz-Expires=9"
    )
    assert redact("Authorization: Bearer abcdefgh.ijk") == f"Authorization: Bearer {REMOVED}"
    for plain in ("https://host/path#section", "a/b/c.jsonl", "me@host.org", "http://localhost:8000/v1"):
        assert redact(plain) == plain


def test_a_path_is_no_key(monkeypatch, tmp_path):
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path))
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody Longer")
    assert str(tmp_path) not in secrets()
    assert redact("Somebody Longer") == "Somebody Longer"


def test_resolvers_are_written_back_and_resolved_once(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("ODD_NAME", "Zk3-" + "q" * 30)
    monkeypatch.setenv("SEED", "7")
    monkeypatch.setenv("NESTED", "${oc.env:ODD_NAME}")
    body = {"a": "${oc.env:ODD_NAME}", "b": "${oc.env:NESTED}", "c": r"price \${x}"}
    options = {"model": "m", "base_url": "http://h/v1", "extra_body": body}
    config = load_config(
        settings(seed="${oc.decode:${oc.env:SEED}}", selector={"name": "llm_judge", "options": options})
    )
    resolved = config.selector.options["extra_body"]
    assert config.seed == 7
    assert resolved == {"a": "Zk3-" + "q" * 30, "b": "${oc.env:ODD_NAME}", "c": "price ${x}"}
    written = as_written(config)
    assert written["seed"] == "${oc.decode:${oc.env:SEED}}"
    assert written["selector"]["options"]["extra_body"] == body
    file = tmp_path / "written.yaml"
    file.write_text(yaml.safe_dump(written))
    again = load_config(file)
    assert again == config
    for other in (load_config(config), load_config(load_config(config, "name=x"), "name=run")):
        assert other.selector == config.selector
        assert as_written(other)["selector"] == written["selector"]
    file.write_text(yaml.safe_dump(settings(written={})))
    with pytest.raises(ConfigError, match="unknown key 'written'"):
        load_config(file)


def test_a_key_written_into_a_configuration_is_stored_as_its_variable(settings, key):
    options = {"model": "m", "base_url": "http://h/v1", "extra_body": {"api_key": key}}
    config = load_config(settings(selector={"name": "llm_judge", "options": options}))
    assert as_written(config)["selector"]["options"]["extra_body"] == {"api_key": "${oc.env:JUDGE_KEY}"}


def test_records_errors_and_logs_hold_no_key(key, tmp_path):
    assert key not in str(BadRecord("request_failed", f"no such key {key}"))
    stream = io.StringIO()
    from rich.console import Console

    ostlight.configure_logging(console=Console(file=stream, width=200))
    log = logging.getLogger("ostlight.somewhere")
    with log_to_file(tmp_path / "log.txt"):
        try:
            raise ValueError(f"the header was Bearer {key}")
        except ValueError:
            log.exception("failed with %s", key)
    for text in (stream.getvalue(), (tmp_path / "log.txt").read_text()):
        assert key[:16] not in text
        assert REMOVED in text


def test_a_traceback_of_the_command_line_holds_no_key(key, tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(
        "import sys, ostlight, ostlight.cli, os\n"
        "def fails(*arguments): raise ZeroDivisionError('with ' + os.environ['JUDGE_KEY'] + ' \\x1b[31m')\n"
        "ostlight.select = fails\n"
        "sys.argv = ['ostlight', 'select', 'x.yaml']\n"
        "ostlight.cli.main()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert key[:16] not in done.stderr + done.stdout
    assert "\x1b" not in done.stderr
