"""Refuses a tag that is not the package's version, or a version that is not fit for a release.

python .github/check_tag.py v1.2.3
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RELEASE = re.compile(r"\d+\.\d+\.\d+(rc\d+)?")


def problem(tag: str, version: str, changelog: str) -> str | None:
    """What stands against releasing `version` under `tag`, in one sentence; `None` for nothing."""
    if tag != f"v{version}":
        return f"The tag is {tag}, but trl_ziegler/_version.py says {version}; tag v{version}, or change the version."
    if not RELEASE.fullmatch(version):
        return f"{version} is not a released version; use MAJOR.MINOR.PATCH, or MAJOR.MINOR.PATCHrcN for a candidate."
    if f"\n## {version}" not in changelog:
        return f"CHANGELOG.md has no section {version}; give what is under Unreleased that heading."
    return None


if __name__ == "__main__":
    (version,) = re.findall(
        r'__version__ = "(.+)"', (ROOT / "trl_ziegler" / "_version.py").read_text(encoding="utf-8")
    )
    found = problem(sys.argv[1], version, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    sys.exit(found)
