"""One route from YAML and ``key=value`` to a checked configuration."""

from ostlight.config.load import load_config
from ostlight.config.schema import Config

__all__ = ["Config", "load_config"]
