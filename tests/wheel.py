"""The package as a stranger gets it: sdist and wheel, installed into new environments, used outside the checkout.

    python tests/wheel.py                  # both ends of the TRL range
    python tests/wheel.py --trl 1.12.0     # one release

It needs the package index and a few minutes, so it is no part of the suite: `make wheel`, and every release.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROBE = ROOT / "tests" / "wheel_probe.py"
OUTSIDE = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", ""), "OMP_NUM_THREADS": "1"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "CI": "true"}


def environment(folder: Path) -> Path:
    """The interpreter of a new virtual environment."""
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel made from it."""
    python = environment(folder / "build")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "build"], check=True)
    subprocess.run([python, "-m", "build", "--outdir", folder / "dist", ROOT], check=True, stdout=subprocess.DEVNULL)
    (sdist,), (wheel,) = (list((folder / "dist").glob(pattern)) for pattern in ("*.tar.gz", "*.whl"))
    return sdist, wheel


def missing(sdist: Path, wheel: Path) -> list[str]:
    """Tracked files that an archive should hold and does not."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    tracked = done.stdout.splitlines()
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    package = [name for name in tracked if name.startswith("trl_ziegler/")]
    return [f"sdist: {name}" for name in tracked if name not in in_sdist] + [
        f"wheel: {name}" for name in package if name not in in_wheel
    ]


def probe(wheel: Path, trl: str, folder: Path) -> None:
    """Install the wheel beside a release of TRL, and run the probe with it."""
    constraints = re.sub(r"^trl==.*", f"trl=={trl}", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    folder.mkdir()
    (folder / "constraints.txt").write_text(constraints)
    python = environment(folder / "venv")
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel, "-c", folder / "constraints.txt"], check=True)
    subprocess.run([python, "-I", PROBE, ROOT / "README.md", trl], cwd=folder, env=OUTSIDE | OFFLINE, check=True)


def main() -> None:
    """Build, compare with what is tracked, and probe each release."""
    pinned = re.search(r"^trl==(.*)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    lowest = re.search(r'^LOWEST_TRL = "(.*)"', (ROOT / "trl_ziegler/_compat.py").read_text(), flags=re.MULTILINE)
    assert pinned and lowest
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", nargs="+", default=[pinned[1], lowest[1]], help="releases of TRL to install beside")
    releases = parser.parse_args().trl
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sdist, wheel = build(folder)
        if absent := missing(sdist, wheel):
            sys.exit("Not in the archives:\n" + "\n".join(absent))
        for trl in releases:
            probe(wheel, trl, folder / trl)


if __name__ == "__main__":
    main()
