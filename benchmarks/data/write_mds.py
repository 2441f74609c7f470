"""Write the pairs of the bench as MDS shards; runs in the environment that has mosaicml-streaming."""

import json
import os
import sys

from loaders import import_streaming, s3


def main() -> None:
    """Copy the pairs of `files/` to `mds/` in the bucket."""
    os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
    bucket = sys.argv[1].removeprefix("s3://")
    captions = json.loads(s3().get_object(Bucket=bucket, Key="files/captions.json")["Body"].read())
    columns = {"image": "bytes", "caption": "str"}
    with import_streaming().MDSWriter(out=f"s3://{bucket}/mds", columns=columns, size_limit=1 << 24) as target:
        for number, caption in enumerate(captions):
            image = s3().get_object(Bucket=bucket, Key=f"files/{number:06d}.jpg")["Body"].read()
            target.write({"image": image, "caption": caption})


if __name__ == "__main__":
    main()
