"""What may be in the way of a source that asks over the network."""

LET_OUT = "under systemd name its network by `systemctl edit jouled`: [Service] IPAddressAllow="
"""The unit lets the daemon reach loopback only: what it drops looks like a host that is off."""
