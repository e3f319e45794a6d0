"""Presigned links: equal to botocore's, byte for byte, and nothing secret in what is shown."""

import time
from datetime import UTC, datetime
from functools import cache
from itertools import product
from unittest import mock

import boto3
import httpx
import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from tests.object_storage import DOMAIN, KEYS
from warehouse.presigning import PRESIGNED_SECONDS_MAX, AccessKey, Presigner

ENDPOINTS = (
    "", "http://127.0.0.1:8333", "https://objects.example", "https://objects.example/",
    "https://objects.example:443", "http://objects.example:80", "http://objects.example:443",
    "https://Objects.Example:9000/s3/~v1", "https://[::1]:9000",
)  # fmt: skip
REGIONS = ("eu-west-1", "us-east-1", "cn-north-1", "us-gov-west-1", "ap-southeast-5")
BUCKETS = ("samples", "my-bucket-7", "my.bucket", "a--b", "x" * 63)
# boto3 puts a name with a dot before the numbers of an IP address, where nobody finds it.
ADDRESSED = sorted(
    set(product(ENDPOINTS, BUCKETS, ("path", "virtual")))
    - {("http://127.0.0.1:8333", "my.bucket", "virtual")}
)
KEY = AccessKey("AN/ID+", "a/secret+=", "a/token+=")
AT = 1_767_323_045

text = st.text(st.characters(codec="utf-8"), max_size=40)
# Credentials are headers elsewhere: printable ASCII.
ascii_text = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
keys = st.builds(AccessKey, ascii_text, ascii_text, st.just("") | ascii_text)


def frozen(at_unix):
    instant = datetime.fromtimestamp(at_unix, UTC).replace(tzinfo=None)
    return mock.patch("botocore.auth.get_current_datetime", return_value=instant)


@cache
def client(endpoint, region, style):
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint or None,
        region_name=region,
        aws_access_key_id=KEY.key_id,
        aws_secret_access_key=KEY.secret,
        aws_session_token=KEY.session_token,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": style, "us_east_1_regional_endpoint": "regional"},
        ),
    )


def boto3_url(endpoint, region, style, bucket, key):
    with frozen(AT):
        return client(endpoint, region, style).generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=3600
        )


@pytest.mark.parametrize(("endpoint", "bucket", "style"), ADDRESSED)
def test_addresses_are_those_of_boto3(endpoint, bucket, style):
    for region in REGIONS if not endpoint else ("auto",):
        signer = Presigner(endpoint, region, bucket, is_virtual_host=style == "virtual")
        for key in ("7/first_frame.png", "/a//b/./../ä +%2F?#~*'()!\\"):
            expected = boto3_url(endpoint, region, style, bucket, key)
            assert signer.url(key, KEY, AT, 3600) == expected


def test_the_bucket_stays_in_the_path_where_an_ip_address_is_the_host():
    signer = Presigner("http://127.0.0.1:8333", "auto", "my.bucket", is_virtual_host=True)
    assert signer.url("k", KEY, AT, 60).startswith("http://127.0.0.1:8333/my.bucket/k?")


@given(
    key=text,
    access_key=keys,
    endpoint=st.sampled_from([endpoint for endpoint in ENDPOINTS if endpoint]),
    region=st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=20),
    at_unix=st.integers(0, 4_102_444_799),
    seconds=st.integers(1, PRESIGNED_SECONDS_MAX),
)
def test_signatures_are_those_of_botocore(*, key, access_key, endpoint, region, at_unix, seconds):
    url = Presigner(endpoint, region, "samples").url(key, access_key, at_unix, seconds)
    request = AWSRequest("GET", url.partition("?")[0])
    credentials = ReadOnlyCredentials(
        access_key.key_id, access_key.secret, access_key.session_token or None
    )
    with frozen(at_unix):
        S3SigV4QueryAuth(credentials, "s3", region, expires=seconds).add_auth(request)
    assert url == request.url


@given(text)
def test_any_key_is_in_the_path_as_boto3_writes_it(key):
    # boto3 itself refuses an empty one.
    key = f"k{key}"
    expected = boto3_url(ENDPOINTS[1], "auto", "path", "samples", key)
    assert Presigner(ENDPOINTS[1], "auto", "samples").url(key, KEY, AT, 3600) == expected


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://user:secret@objects.example", "https://objects.example?key=secret",
        "https://objects.example#secret", "ftp://objects.example/secret", "objects.example",
        "https://objects.example/a b", "https://objects.example/../secret",
        "https://objects.example\n", "https://objects.example:port", "https://",
        "https://objects_example",
    ],
)  # fmt: skip
def test_nothing_but_an_address_goes_into_a_link(endpoint):
    with pytest.raises(ValueError, match="endpoint") as refused:
        Presigner(endpoint, "auto", "samples")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "bucket", ["", "ab", "..", "a..b", "a/b", "Samples", "a_b", "-ab", "ab-", "1.2.3.4", "a" * 64]
)
def test_what_is_no_bucket_signs_nothing(bucket):
    with pytest.raises(ValueError, match="bucket"):
        Presigner("https://objects.example", "auto", bucket)


@pytest.mark.parametrize("region", ["auto", "", "eu-west-1.evil.example/", "EU-WEST-1"])
def test_aws_is_addressed_by_its_real_region_only(region):
    with pytest.raises(ValueError, match="region"):
        Presigner("", region, "samples")


@pytest.mark.parametrize("seconds", [0, -1, PRESIGNED_SECONDS_MAX + 1])
def test_a_link_is_good_for_a_week_at_most(seconds):
    with pytest.raises(ValueError, match="seconds"):
        Presigner("https://objects.example", "auto", "samples").url("k", KEY, AT, seconds)


def test_a_key_is_not_shown():
    shown = repr(AccessKey("the-id", "the-secret", "the-token"))
    assert not any(part in shown for part in ("the-id", "the-secret", "the-token"))


def test_a_link_to_a_bucket_that_is_a_host_name_is_fetched(object_server, bucket, virtual_hosts):
    object_server.client().put_object(Bucket=bucket, Key="7/first_frame.png", Body=b"a frame")
    key_id, secret, _ = KEYS["reader"]
    signer = Presigner(virtual_hosts, "auto", bucket, is_virtual_host=True)
    url = signer.url("7/first_frame.png", AccessKey(key_id, secret), int(time.time()), 60)
    assert url.startswith(f"http://{bucket}.{DOMAIN}:")
    answer = httpx.get(url, trust_env=False)
    assert (answer.status_code, answer.content) == (200, b"a frame")
    tampered = httpx.get(url.replace("first_frame", "other"), trust_env=False)
    assert tampered.status_code == 403
