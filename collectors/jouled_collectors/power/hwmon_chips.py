"""The chips under /sys/class/hwmon, and the words on their channels."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jouled_collectors.power.sysfs_file import exists, text

_FOLDER = re.compile(r"hwmon\d+")


@dataclass(frozen=True, slots=True)
class Chip:
    """One chip. place: where its device sits, such as a PCI address, for the number of its folder changes."""

    folder: Path
    name: str
    place: str

    def file(self, name: str) -> Path:
        """The path of an attribute; drivers of the old registration have theirs in the device's folder."""
        path = self.folder / name
        older = self.folder / "device" / name
        return older if not exists(path) and exists(older) else path

    def text(self, name: str) -> str:
        """What an attribute says; empty if it cannot be read."""
        return text(self.file(name))

    def labelled(self, quantity: str) -> Iterator[tuple[str, str]]:
        """Number and label of each labelled channel of a quantity (`power`, `energy`, `in`), in order of numbers."""
        pattern = re.compile(rf"{quantity}(\d+)_label")
        found = {match[1] for path in self._files() if (match := pattern.fullmatch(path.name))}
        for number in sorted(found, key=int):
            if label := self.text(f"{quantity}{number}_label"):
                yield number, label

    def _files(self) -> Iterator[Path]:
        for folder in (self.folder, self.folder / "device"):
            try:
                yield from folder.iterdir()
            except OSError:
                continue


def chips(hwmon: Path) -> list[Chip]:
    """All chips, in order of their places so that names do not depend on the order of drivers. Raises `OSError`."""
    folders = [folder for folder in hwmon.iterdir() if _FOLDER.fullmatch(folder.name)]
    return sorted(
        (_chip(folder) for folder in folders), key=lambda chip: (chip.place, len(chip.folder.name), chip.folder)
    )


def _chip(folder: Path) -> Chip:
    device = folder / "device"
    try:
        place = device.resolve().name if device.is_symlink() else ""
    except OSError:
        place = ""
    return Chip(folder, text(folder / "name") or text(device / "name"), place or folder.name)
