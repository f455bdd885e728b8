"""What one daemon is to be: configuration, command line and plug-ins, put together and checked."""

import logging
import os
import socket

from msgspec.structs import replace

from jouled.app.config import Config, Paths, RunOptions, paths
from jouled.app.runtime.plugins import check_types, load_plugins
from jouled.app.runtime.requests.pseudonyms import load_or_make
from jouled.model.errors import ConfigurationError
from jouled.outputs.metrics.catalogue import families_off
from jouled.outputs.secret_file import secret

_log = logging.getLogger(__name__)


class Settings:
    """serves: for readers and senders; a daemon that only records does not. off: metric families that nobody gets."""

    def __init__(self, config: Config, options: RunOptions, *, serves: bool) -> None:
        """Load plug-ins, and make the directory of run-time files.

        Raises `JouledError` for what stands against a start.
        """
        self.config = config
        self.options = options
        self.serves = serves
        self.listen = options.listen or config.serve.listen
        self.plugins = load_plugins()
        for refused in self.plugins.refused:
            _log.warning("%s", refused)
        self.power = self.plugins.power_settings(config.power)
        self.sinks = self.plugins.sink_settings(config.sinks) if serves else {}
        self.receivers = self.plugins.receiver_settings(config.receivers)
        check_types(config.engines, self.plugins.engines)
        self.token = secret(config.serve.token_file, "serve.token_file") or None
        self.where = _directories(options, config)
        self.node = config.node.name or socket.gethostname()
        self.parameters = replace(config.parameters(), node=self.node)
        self.pseudonyms = load_or_make(self.where.state) if config.privacy.hash_ids else None
        self.off = families_off(config.metrics.off)


def _directories(options: RunOptions, config: Config) -> Paths:
    where = paths(options, config, os.environ)
    try:
        where.runtime.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the directory {where.runtime} cannot be made: {error.strerror}", mend="Give another one with --state DIR"
        ) from error
    return where
