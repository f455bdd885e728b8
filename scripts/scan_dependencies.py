"""Holds what is installed here against the known vulnerabilities of PyPI's advisory database, by pip-audit.

Ends with 1 if there is one. Where the database cannot be asked, that is said and nothing is claimed.
"""

import json
import subprocess
import sys
import sysconfig


def main() -> int:
    command = [sys.executable, "-m", "pip_audit", "--path", sysconfig.get_paths()["purelib"], "--format", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        found = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, json.JSONDecodeError, KeyError):
        sys.stdout.write("dependencies were NOT scanned: the advisory database does not answer\n")
        return 0
    scanned = [package for package in found if "skip_reason" not in package]
    known = {package["name"]: package["vulns"] for package in scanned if package["vulns"]}
    for name, faults in known.items():
        for fault in faults:
            fixed = ", ".join(fault["fix_versions"]) or "no version yet"
            sys.stdout.write(f"{name}: {fault['id']} (mended in {fixed})\n")
    if not scanned:
        sys.stdout.write(f"dependencies were NOT scanned: the advisory database knows none of these {len(found)}\n")
    else:
        sys.stdout.write(f"{len(scanned)} of {len(found)} packages scanned, {len(known)} with a known vulnerability\n")
    return 1 if known else 0


if __name__ == "__main__":
    sys.exit(main())
