#!/bin/sh
# Sees to the programs that the tests run beside the daemon. Installs what is missing where that is possible (root on
# Debian or a relative of it), else ends with the command to run. `make run` needs none of them.
set -eu

missing=""
need() {  # need FILE-OR-COMMAND PACKAGE
    case $1 in
        /*) [ -e "$1" ] ;;
        *) command -v "$1" >/dev/null ;;
    esac || missing="$missing $2"
}
need gcc gcc                                # compiles the stub libnvidia-ml.so.1
need /usr/include/stdlib.h libc6-dev
need prometheus prometheus                  # scrapes the daemon; promtool checks rules and pages
need promtool prometheus
need victoria-metrics victoria-metrics      # takes points by Influx line protocol and remote write
need /usr/sbin/mosquitto mosquitto          # the MQTT broker
need chromium chromium                      # opens the page
need systemd-analyze systemd                # verifies the unit
need ip iproute2                            # a cable that is pulled
need tc iproute2                            # a line that is thin
need openssl openssl                        # certificates for servers of the tests
need nft nftables                           # a firewall
need ipmitool ipmitool                      # asks the BMC
need ipmi_sim openipmi                      # a BMC that knows no DCMI
need snmpd snmpd                            # a PDU's agent
need strace strace                          # injects errors of the disk
need systemd-nspawn systemd-container       # boots it

[ -z "$missing" ] && exit 0
# shellcheck disable=SC2086  # one word a package
set -- $(printf '%s\n' $missing | sort -u)
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "jouled's tests need programs that are not here: run 'sudo apt-get install --no-install-recommends $*', then 'make test' again." >&2
    exit 1
fi
echo "installing for the tests: $*"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=600 "$@"
