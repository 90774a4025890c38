"""A judge server on this machine, and a judge that asks it."""

from __future__ import annotations

import pytest
from judge_server import Loopback

from ostlight_selectors.llm_judge.options import JudgeOptions
from ostlight_selectors.llm_judge.remote import RemoteJudge
from ostlight_selectors.llm_judge.reply_store import ReplyStore
from ostlight_selectors.llm_judge.rubric import Rubric
from ostlight_selectors.llm_judge.server import Server


@pytest.fixture
def loopback():
    """``loopback(script)``: a server that is closed when the test ends."""
    open_servers = []

    def start(script) -> Loopback:
        open_servers.append(Loopback(script))
        return open_servers[-1]

    yield start
    for server in open_servers:
        server.close()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    """The waits between tries keep their proportions."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.004)


@pytest.fixture
def judge(tmp_path):
    """``judge(url)``: a judge behind that address, its replies in ``tmp_path``."""
    from ostlight.selection.usage import Usage

    def make(url: str, key: str | None = None, **options) -> RemoteJudge:
        chosen = JudgeOptions(model="m", base_url=url, **{"concurrency": 4, "max_retries": 3, **options})
        rubric = Rubric.read(chosen.rubric)
        return RemoteJudge(chosen, rubric, Server(chosen, key, rubric, Usage()), ReplyStore(tmp_path / "r", 0))

    return make
