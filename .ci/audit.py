"""Looks up the known vulnerabilities of every installed package, and says if their data cannot be fetched.

Exit code 1 if a vulnerability is known, 0 otherwise. pip-audit calls a package that it cannot look up "skipped",
so that without a network it finds nothing wrong: the packages that it did look up are counted here.
"""

import json
import subprocess
import sys

PATIENCE = 300  # seconds; a network that swallows packets would take that long for every package
COMMAND = [
    sys.executable,
    "-m",
    "pip_audit",
    "--format=json",
    "--progress-spinner=off",
    "--skip-editable",
    "--timeout=5",
]


def main() -> int:
    """Audits and prints one line per vulnerability."""
    try:
        done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=PATIENCE, check=False)
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError) as error:
        print(f"audit skipped, pip-audit gave no answer: {error}")
        return 0
    audited = [package for package in packages if "skip_reason" not in package]
    for package in audited:
        for found in package["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "none yet"
            print(f"{package['name']} {package['version']}: {found['id']}; fixed in: {fixed}")
    if audited:
        print(f"audited {len(audited)} of {len(packages)} packages")
    else:
        print(f"audit skipped, no data could be had for any of {len(packages)} packages")
    return int(any(package["vulns"] for package in audited))


if __name__ == "__main__":
    sys.exit(main())
