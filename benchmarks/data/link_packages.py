"""Let another virtual environment see this one's packages, behind its own: the peers then run on the same torch."""

import sys
import sysconfig
from pathlib import Path


def main() -> None:
    """Write a `.pth` file into the environment that is given."""
    packages = sysconfig.get_paths()["purelib"]
    target = next(Path(sys.argv[1]).glob("lib/python*/site-packages"))
    (target / "zz-warren.pth").write_text(f"import site; site.addsitedir({packages!r})\n")


if __name__ == "__main__":
    main()
