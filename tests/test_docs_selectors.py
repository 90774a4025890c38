"""The guide to writing a selector: every block of it runs, and every selector in it holds the contract."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import ostlight
from ostlight.config import load_config
from ostlight.testing import check_selector

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "how-to" / "your-own-selector.md").read_text()
CLASSES = re.findall(r"^class (\w+)\(ostlight.Selector\)", GUIDE, re.MULTILINE)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """All Python blocks, one after the other, as one module."""
    file = tmp_path_factory.mktemp("guide") / "the_guide.py"
    file.write_text("\n\n".join(blocks("python")))
    spec = importlib.util.spec_from_file_location("the_guide", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["the_guide"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", CLASSES)
def test_its_selectors_hold_the_contract(guide: ModuleType, name: str):
    check_selector(getattr(guide, name), processes=False)


@pytest.mark.slow
def test_its_test_passes(guide: ModuleType):
    guide.test_it_holds_the_contract()


def test_no_class_is_left_out():
    assert {"LongestFirst", "AnswerLength", "HardForTheProxy", "BrightImages", "Asked", "OneAnswerOnce"} == set(CLASSES)


def test_its_registered_name_is_found(guide: ModuleType, settings):
    assert len(ostlight.select(settings(selector={"name": "longest-first"}), "budget.count=6").kept) == 6


def test_its_configuration_binds(tmp_path: Path):
    for block in blocks("yaml"):
        (tmp_path / "config.yaml").write_text(block)
        load_config(tmp_path / "config.yaml")


def test_its_package_is_the_examples():
    (block,) = blocks("toml")
    example = (ROOT / "examples" / "my_selector" / "pyproject.toml").read_text()
    assert tomllib.loads(block) == tomllib.loads(example)


def test_its_commands_exist():
    for command in re.findall(r"^ostlight (\w+)", "\n".join(blocks("sh")), re.MULTILINE):
        done = subprocess.run([sys.executable, "-m", "ostlight.cli", command, "--help"], capture_output=True, text=True)
        assert done.returncode == 0, command


def test_every_kind_of_block_is_tested():
    assert set(re.findall(r"^```(\w+)", GUIDE, re.MULTILINE)) == {"python", "yaml", "toml", "sh"}
