"""Profiles: which table of which vendor's PDU holds which power. They are data, so that users add their own."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from jouled.model.errors import SourceError, SourceState

SHIPPED = Path(__file__).with_name("snmp_pdu_profiles")
AUTO = "auto"

Oid = Annotated[str, Meta(pattern=r"^[0-2](\.[0-9]+)+$", max_length=500)]
ColumnOid = Annotated[str, Meta(pattern=r"^[0-2](\.([0-9]+|\{index\}))+$", max_length=500)]
"""An object identifier in which `{index}` stands for the socket's index."""

IndexForm = Annotated[str, Meta(pattern=r"^([0-9]+|\{id\})(\.([0-9]+|\{id\}))*$", max_length=100)]
"""How a lone number becomes an index: `1.{id}`. Without `{id}` there is only one."""


class Column(Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Where a value stands.

    digits_oid: a column with the number of decimal digits: the value is divided by ten to the power of it.
    available_oid: a column that is 1 where the value may be believed. invalid: values that mean that there is none
    (negative ones and the greatest of 32 bits always do). verified: two independent sources agree on it, or a vendor's
    MIB says so.
    """

    oid: ColumnOid
    verified: bool = False
    digits_oid: ColumnOid | None = None
    available_oid: ColumnOid | None = None
    invalid: tuple[int, ...] = ()


class PowerColumn(Column, kw_only=True, frozen=True):
    """A power gauge; `watts`: of one count."""

    watts: Annotated[float, Meta(gt=0)] = 1.0


class EnergyColumn(Column, kw_only=True, frozen=True):
    """An energy counter; `joules`: of one count; `wraps_at`: how many counts it can hold."""

    joules: Annotated[float, Meta(gt=0)] = 3600.0
    wraps_at: Annotated[int, Meta(gt=0)] | None = 2**32


class Sockets(Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The outlets or the inlets of a PDU; `index`: what a lone number becomes."""

    power: PowerColumn
    energy: EnergyColumn | None = None
    index: IndexForm = "{id}"


class Profile(Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One family of PDUs.

    match: beginnings of the sysObjectIDs that it may have; where several profiles match, the one with the longest
    beginning is tried first, then the one with the lowest `rank`, and the first that has one of the sockets is taken.
    source: where the identifiers come from. averaging_seconds: what a power value is the mean of, 0 if the vendor does
    not say.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9_]+$")]
    vendor: str
    source: str
    match: tuple[Oid, ...] = ()
    rank: int = 0
    averaging_seconds: Annotated[float, Meta(ge=0, le=60)] = 0.0
    outlets: Sockets | None = None
    inlets: Sockets | None = None


def load(own: str) -> Mapping[str, Profile]:
    """All profiles by name: the shipped ones, and over them those of the folder `own` (empty: none).

    Raises:
        SourceError: a file cannot be read, or is no profile.
    """
    profiles = _folder(SHIPPED)
    return {**profiles, **_folder(Path(own))} if own else profiles


def candidates(profiles: Mapping[str, Profile], object_id: str) -> list[Profile]:
    """The profiles of this sysObjectID, the likeliest first."""

    def match_length(profile: Profile) -> int:
        return max((len(prefix) for prefix in profile.match if _begins(object_id, prefix)), default=0)

    fitting = [profile for profile in profiles.values() if match_length(profile)]
    return sorted(fitting, key=lambda profile: (-match_length(profile), profile.rank, profile.name))


def _begins(object_id: str, prefix: str) -> bool:
    return f"{object_id}.".startswith(f"{prefix}.")


def _folder(folder: Path) -> dict[str, Profile]:
    try:
        profiles = [_profile(path) for path in sorted(folder.iterdir()) if path.suffix == ".toml"]
    except OSError as error:
        state = SourceState.DENIED if isinstance(error, PermissionError) else SourceState.DOWN
        raise SourceError(
            state,
            "profiles_unreadable",
            f"{error.filename} cannot be read: {error.strerror}",
            mend="Let the daemon's user read the folder named by profiles_directory and the files in it",
        ) from error
    return {profile.name: profile for profile in profiles}


def _profile(path: Path) -> Profile:
    try:
        return msgspec.convert(tomllib.loads(path.read_bytes().decode()), Profile)
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of what does not fit
        raise SourceError(
            SourceState.DOWN,
            "bad_profile",
            f"{path} is no profile: {error}",
            mend=f"Compare it with {SHIPPED / 'example.toml'}",
        ) from error
