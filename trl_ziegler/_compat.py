"""The TRL releases this package works with, and the one place that imports TRL's experimental PPO.

`trl.experimental.ppo` was removed in TRL 1.13, hence the upper bound. Importing this module checks the installed
release first, so that a TRL outside the range is named before an import of it fails for a less helpful reason.
"""

import warnings
from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

LOWEST_TRL = "0.29"
FIRST_UNSUPPORTED_TRL = "1.13"
TRL_RANGE = f">={LOWEST_TRL},<{FIRST_UNSUPPORTED_TRL}"


def installed_trl_version() -> str | None:
    """The version of the installed TRL distribution, or None where there is none."""
    try:
        return version("trl")
    except PackageNotFoundError:
        return None


def check_trl_version(found: str | None = None) -> None:
    """Refuse a TRL release outside `TRL_RANGE`.

    Args:
        found (`str`, *optional*): The version to check; by default that of the installed distribution.

    Raises:
        ImportError: If TRL is missing or outside the range. Pre-releases of the first unsupported release are outside.
    """
    found = found or installed_trl_version()
    if found is None or not SpecifierSet(TRL_RANGE).contains(found, prereleases=True):
        state = "no TRL is installed" if found is None else f"TRL {found} is installed"
        raise ImportError(
            f'trl_ziegler works with TRL {TRL_RANGE}, but {state}; run `pip install "trl{TRL_RANGE}"`.', name="trl"
        )


check_trl_version()

with warnings.catch_warnings():
    from trl.import_utils import TRLExperimentalWarning

    # The notice says that the API may change without deprecation: `TRL_RANGE` is our answer to that.
    warnings.simplefilter("ignore", TRLExperimentalWarning)
    from trl.experimental.ppo import PPOConfig, PPOTrainer

__all__ = ["FIRST_UNSUPPORTED_TRL", "LOWEST_TRL", "TRL_RANGE", "PPOConfig", "PPOTrainer", "check_trl_version"]
