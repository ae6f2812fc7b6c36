"""The zone of a bucket: S3, and what speaks its protocol, such as Ceph's gateway.

Asked by GetBucketLocation through s3fs. Amazon answers with the region, Ceph's gateway with the
zone group that the bucket was made in. The endpoint is s3fs's and botocore's to know:
`endpoint_url` in fsspec's configuration for `s3` (`FSSPEC_S3_ENDPOINT_URL`), or `AWS_ENDPOINT_URL`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from deepflow.decide.location import Location
from deepflow.hints import Near
from deepflow.locate.resolvers import Resolver
from deepflow.locate.storage import filesystem, scheme_of

__all__ = ["S3Resolver"]

_FIRST_REGION: Final = "us-east-1"
"""Amazon's answer for a bucket there is empty."""
_OLD_NAMES: Final = {"EU": "eu-west-1"}
_ANSWER_WITHIN_S: Final = 10
"""Longest that a request holds its thread; the locator has given up on it long before."""


class S3Resolver(Resolver):
    """Objects in S3 and Ceph: the region or zone group of their bucket.

    The location says nothing of the object itself, which is not asked about: one request a bucket.
    """

    schemes = ("s3", "s3a")

    def __init__(self, options: Mapping[str, Mapping[str, object]] | None = None) -> None:
        self._options = options or {}

    def key(self, near: Near) -> str:
        """The bucket."""
        return urlsplit(near.value).netloc

    def resolve(self, near: Near) -> Location:
        """Raises what s3fs raises: `OSError` and its kin; `ImportError` where it is missing."""
        bucket = self.key(near)
        if not bucket:
            raise ValueError(f"{near.value} names no bucket; write s3://bucket/key")
        zone = self._ask(near.value, bucket)
        return Location(zones=(zone,) if zone else ())

    def _ask(self, url: str, bucket: str) -> str:
        options = dict(self._options.get(scheme_of(url), {}))
        within = {"connect_timeout": _ANSWER_WITHIN_S, "read_timeout": _ANSWER_WITHIN_S}
        config = {**within, "retries": {"max_attempts": 0}}
        given = options.get("config_kwargs")
        options["config_kwargs"] = {**config, **given} if isinstance(given, Mapping) else config
        fs, _ = filesystem(url, options)
        fs.retries = 1  # s3fs's own, above botocore's
        try:
            answer = fs.call_s3("get_bucket_location", Bucket=bucket)
        except PermissionError:  # only the owner may ask that; its header says the same to anyone
            headers = fs.call_s3("head_bucket", Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"]
            zone = str(headers.get("x-amz-bucket-region", ""))
        else:
            zone = str(answer.get("LocationConstraint") or "")
            if not zone and _is_amazon(fs):
                zone = _FIRST_REGION
        return _OLD_NAMES.get(zone, zone)


def _is_amazon(fs: Any) -> bool:
    """Whether requests went to Amazon, as botocore's client says after its whole configuration."""
    endpoint = str(fs.s3.meta.endpoint_url)
    return (urlsplit(endpoint).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
