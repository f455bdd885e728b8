"""A fake /sys with hwmon chips, laid out as the kernel does: the class folder links to the device's."""

from pathlib import Path


def make_chip(root: Path, number: int, name: str, place: str = "", *, old: bool = False, **files: object) -> Path:
    """Make chip `number`; returns the folder with its attributes. `old`: they lie in the device's own folder."""
    device = root / "devices" / (place or f"virtual{number}")
    folder = device / "hwmon" / f"hwmon{number}"
    folder.mkdir(parents=True)
    (folder / "device").symlink_to("../..")
    attributes = device if old else folder
    for file, content in {"name": name, **files}.items():
        (attributes / file).write_text(f"{content}\n")
    classes = root / "class" / "hwmon"
    classes.mkdir(parents=True, exist_ok=True)
    (classes / f"hwmon{number}").symlink_to(f"../../devices/{device.name}/hwmon/hwmon{number}")
    return attributes


def make_meter(root: Path, number: int, oem_info: str, microwatts: object, **files: object) -> Path:
    """An ACPI power meter."""
    files = {"power1_average": microwatts, "power1_oem_info": oem_info, "power1_is_battery": 0, **files}
    return make_chip(root, number, "power_meter", f"ACPI000D:{number:02}", **files)


def make_supply(root: Path, number: int, place: str, microwatts: object, millivolts: int = 230_000) -> Path:
    """A power supply by PMBus."""
    return make_chip(
        root,
        number,
        "cffps2",
        place,
        in1_label="vin",
        in1_input=millivolts,
        power1_label="pin",
        power1_input=microwatts,
        power2_label="pout1",
        power2_input=440_000_000,
    )


def bind_driver(root: Path, driver: str, *addresses: str) -> None:
    """A PCI driver that holds these devices."""
    folder = root / "bus" / "pci" / "drivers" / driver
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "new_id").write_text("")
    for address in addresses:
        (folder / address).symlink_to(root / "devices" / address)
