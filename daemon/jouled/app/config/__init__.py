"""Configuration: TOML and environment in, checked types out."""

from jouled.app.config.load import load, settings_for
from jouled.app.config.options import Paths, RunOptions, paths
from jouled.app.config.types import Config, EngineConfig

__all__ = ["Config", "EngineConfig", "Paths", "RunOptions", "load", "paths", "settings_for"]
