#!/bin/sh
# Installs the service's files: unit, account, folders, udev rule, example configuration. Starts nothing and keeps a
# configuration that is there. DESTDIR=FOLDER installs into another root and leaves this system alone.
set -eu
cd "$(dirname "$0")/../systemd"
root=${DESTDIR:-}

put() {  # put MODE FILE PATH
    install -D -m "$1" "$2" "$root$3"
}
put 0644 jouled.service /etc/systemd/system/jouled.service
put 0644 sysusers/jouled.conf /etc/sysusers.d/jouled.conf
put 0644 tmpfiles/jouled.conf /etc/tmpfiles.d/jouled.conf
put 0644 udev/90-jouled-powercap.rules /etc/udev/rules.d/90-jouled-powercap.rules
put 0644 ../docs/operations.md /usr/share/doc/jouled/operations.md
[ -e "$root/etc/jouled/config.toml" ] || put 0644 jouled.toml /etc/jouled/config.toml
[ -z "$root" ] || exit 0

systemd-sysusers jouled.conf
systemd-tmpfiles --create jouled.conf
udevadm control --reload
udevadm trigger --subsystem-match=powercap --action=add
systemctl daemon-reload
echo "installed; edit /etc/jouled/config.toml, then: systemctl enable --now jouled"
