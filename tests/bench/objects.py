"""Object storage: how fast links are signed, beside boto3 in the same run."""

import itertools
from collections.abc import Callable

import boto3
from botocore.config import Config
from pydantic import SecretStr

from api.media import MediaLinks, generated_video_key
from api.settings import ApiSettings
from tests.bench import history, limits, report
from tests.bench.report import Figure
from warehouse.settings import WarehouseSettings

SETTINGS = WarehouseSettings(
    s3_endpoint_url="https://objects.example",
    s3_samples_bucket="samples",
    s3_read_access_key_id="a-key-id",
    s3_read_secret_access_key=SecretStr("a-secret"),
)


def presigning() -> Figure:
    """Measure links to videos on one core, always to another one: none is given again."""
    api_settings = ApiSettings()
    ours = _links_per_second(MediaLinks(api_settings, SETTINGS).url)
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=SETTINGS.s3_endpoint_url,
        region_name=SETTINGS.s3_region,
        aws_access_key_id=SETTINGS.s3_read_access_key_id,
        aws_secret_access_key=SETTINGS.s3_read_secret_access_key.get_secret_value(),
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )
    boto3s = _links_per_second(
        lambda key: client.generate_presigned_url(
            "get_object",
            Params={"Bucket": SETTINGS.s3_samples_bucket, "Key": key},
            ExpiresIn=api_settings.media_url_seconds,
        )
    )
    client.close()
    return Figure(
        "Presigned URLs, one core",
        [ours],
        "URLs/s",
        target=10_000,
        limit=boto3s,
        limit_name=f"boto3's generate_presigned_url ({report.number(boto3s)}/s)",
    )


def _links_per_second(sign: Callable[[str], object]) -> float:
    miner = history.hotkey("miner")
    task_ids = itertools.count()
    return limits.per_second(lambda: sign(generated_video_key(next(task_ids), miner)))
