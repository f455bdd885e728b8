"""What `jouled check` says of receivers that follow files or empty queues: whether they can. Nothing is emptied."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from jouled.api import DrainSettings, FileFollow, FollowSettings, PageDrain, Receiver
from jouled.app.config.types import Config
from jouled.app.runtime.plugins import Plugins


class ReceiverLook(Struct, frozen=True, kw_only=True):
    """One receiver that is switched on: its name, whether it can be used, and what to know or to mend."""

    name: str
    works: bool
    message: str
    mend: str = ""


def look_at_receivers(config: Config, plugins: Plugins, origin: str) -> list[ReceiverLook]:
    """Look at every receiver that the configuration switches on. Raises `ConfigurationError`."""
    settings = plugins.receiver_settings(config.receivers, origin)
    looks = (_look(plugins.requests[name], settings[name]) for name in sorted(settings))
    return [look for look in looks if look is not None]


def _look(receiver: Receiver, settings: Struct) -> ReceiverLook | None:
    if isinstance(receiver, FileFollow) and isinstance(settings, FollowSettings) and settings.directory:
        return _folder(receiver, Path(settings.directory))
    if isinstance(receiver, PageDrain) and isinstance(settings, DrainSettings) and settings.own:
        message = f"empties {receiver.path} of every {receiver.engine_type} engine: nobody else may read it"
        return ReceiverLook(name=receiver.name, works=True, message=message)
    return None


def _folder(receiver: FileFollow, folder: Path) -> ReceiverLook:
    try:
        found = sorted(folder.glob(receiver.pattern))
        os.listdir(folder)  # noqa: PTH208 - glob() says nothing of a folder that is missing or may not be read
    except OSError as error:
        mend = f"Start the engine so that it writes there, and let this user read it: setfacl -m u:jouled:rx {folder}"
        return ReceiverLook(name=receiver.name, works=False, message=f"{folder}: {error.strerror}", mend=mend)
    unreadable = [file for file in found[-1:] if not os.access(file, os.R_OK)]
    if unreadable:
        mend = f"setfacl -m u:jouled:r {unreadable[0]}; setfacl -d -m u:jouled:r {folder}"
        return ReceiverLook(name=receiver.name, works=False, message=f"{unreadable[0]} may not be read", mend=mend)
    return ReceiverLook(name=receiver.name, works=True, message=f"{folder}: {len(found)} files like {receiver.pattern}")


def receiver_lines(looks: Sequence[ReceiverLook]) -> Iterator[str]:
    """For the operator; nothing where none is switched on."""
    if looks:
        yield ""
        yield "Requests"
    for look in looks:
        yield f"  {look.name:<20} {'ok' if look.works else 'unusable':<9} {look.message}"
        if look.mend:
            yield f"  {'':<20} {'mend':<9} {look.mend}"
