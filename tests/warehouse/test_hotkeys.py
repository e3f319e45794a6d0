import pytest
import sr25519
from substrateinterface import Keypair

from warehouse.hotkeys import (
    ZERO_HOTKEY,
    ZERO_PUBLIC_KEY,
    InvalidHotkeyError,
    hotkey_of,
    is_hotkey,
    parse_signature,
    public_key,
    signed_message,
    verify,
)

ALICE = Keypair.create_from_uri("//Alice")


def test_an_address_and_its_key():
    assert public_key(ALICE.ss58_address) == ALICE.public_key
    assert hotkey_of(ALICE.public_key) == ALICE.ss58_address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        ALICE.ss58_address + "\n",
        " " + ALICE.ss58_address,
        ALICE.ss58_address[:-1],
        ALICE.ss58_address[:-1] + ("1" if ALICE.ss58_address[-1] != "1" else "2"),
        "0x" + ALICE.public_key.hex(),
        ALICE.public_key.hex(),
        Keypair(public_key=ALICE.public_key, ss58_format=0).ss58_address,
        Keypair(public_key=ALICE.public_key, ss58_format=2).ss58_address,
        "F7Hs",  # an account index
        ZERO_HOTKEY,
        "\uff15" + ALICE.ss58_address[1:],  # a full-width 5
        "5" * 100_000,
    ],
)
def test_what_is_no_address(text):
    assert not is_hotkey(text)
    with pytest.raises(InvalidHotkeyError):
        public_key(text)


def test_zero_key_signs_nothing_though_sr25519_accepts_its_constant_signature():
    constant = bytes(63) + b"\x80"
    assert sr25519.verify(constant, b"any message", ZERO_PUBLIC_KEY)
    assert not verify(ZERO_HOTKEY, constant, b"any message")


def test_plain_and_wrapped_signatures_verify():
    message = b"0x00ff"  # given as text, the library would decode this as hex
    assert verify(ALICE.ss58_address, ALICE.sign(message), message)
    assert verify(ALICE.ss58_address, ALICE.sign(b"<Bytes>0x00ff</Bytes>"), message)
    assert not verify(ALICE.ss58_address, ALICE.sign(b"another"), message)


@pytest.mark.parametrize("signature", [b"", b"\0" * 63, b"\0" * 64, b"\xff" * 64, b"\0" * 65])
def test_garbage_is_no_signature(signature):
    assert not verify(ALICE.ss58_address, signature, b"message")


def test_signatures_as_text():
    signature = ALICE.sign(b"message")
    assert parse_signature(signature.hex()) == signature
    assert parse_signature("0x" + signature.hex().upper()) == signature
    for text in ("", "0x", signature.hex()[:-1], signature.hex() + "0", "zz" * 64):
        with pytest.raises(ValueError):
            parse_signature(text)
    with pytest.raises(ValueError):
        parse_signature(signature.hex()[:-2] + "  ")


def test_what_the_two_schemes_cover():
    values = {"method": "POST", "path": "/x?y=1", "body": b"", "timestamp": "7", "nonce": "n"}
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert signed_message(scheme=1, **values) == f"{empty}:7".encode()
    assert signed_message(scheme=2, **values) == f"v2\nPOST\n/x?y=1\n{empty}\n7\nn".encode()
