"""The services of a cluster on one machine, for the demo and the tests: an S3 server and a Ray head."""

from warren.testbed.ports import free_port
from warren.testbed.ray_head import RayHead
from warren.testbed.s3_server import S3Server

__all__ = ["RayHead", "S3Server", "free_port"]
