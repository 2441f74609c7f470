"""Convert models between layouts, merge adapters, average two models. Folders may be local or s3:// URIs; no Ray.

python jobs/convert.py import Bunny-v1_0-3B converted --vision-tower siglip-so400m-patch14-384
python jobs/convert.py export --layout bunny converted as-bunny
python jobs/convert.py merge adapter base merged
python jobs/convert.py average recipe-1 recipe-2 --weight 0.3 averaged
"""

import sys

import _source  # noqa: F401
from warren.cli.convert import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
