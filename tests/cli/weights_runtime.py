"""The metadata of a runtime that takes weights: calls, events, errors and signed extensions.

Added to what the simulated node says of its storage. The pallet's index, the calls' and the errors'
have gaps, as on the real chain: who counts positions instead reads the wrong name.
"""

from functools import cache

from cli.simulated.metadata import (
    ACCOUNT,
    BLAKE,
    IDENTITY,
    NETUID,
    STORAGE,
    Item,
    Registry,
    by_netuid,
    hashed,
    twox,
)
from cli.simulated.metadata import _entry as entry
from cli.simulated.scale import blob, compact, flag, option, text, unsigned, vector

SUBTENSOR = 7
PALLETS = {"System": 0, "Timestamp": 2, "SubtensorModule": SUBTENSOR, "Commitments": 18}
HASH = ("newtype", "primitive_types::H256", ("array", 32, "u8"))
INDEX = ("newtype", "subtensor_runtime_common::NetUidStorageIndex", "u16")
BYTES = ("vector", "u8")
COMMIT = ("newtype", "bounded_collections::bounded_vec::BoundedVec", BYTES)
UNIT = ("tuple",)

CALLS = {
    0: ("set_weights", (("netuid", NETUID), ("dests", ("vector", "u16")),
                        ("weights", ("vector", "u16")), ("version_key", "u64"))),
    113: ("commit_timelocked_weights", (("netuid", NETUID), ("commit", COMMIT),
                                        ("reveal_round", "u64"),
                                        ("commit_reveal_version", "u16"))),
}  # fmt: skip
ERRORS = {
    "SubnetNotExists": 1,
    "HotKeyNotRegisteredInSubNet": 4,
    "NotEnoughStakeToSetWeights": 9,
    "IncorrectWeightVersionKey": 10,
    "SettingWeightsTooFast": 26,
    "CommittingWeightsTooFast": 27,
    "NeuronNoValidatorPermit": 30,
    "UidVecContainInvalidOne": 33,
    "CommitRevealEnabled": 51,
    "CommitRevealDisabled": 52,
    "IncorrectCommitRevealVersion": 53,
}
ERROR = ("enum", "pallet_subtensor::pallet::Error", tuple((n, i, ()) for n, i in ERRORS.items()))
MODULE_ERROR = ("struct", "sp_runtime::ModuleError",
                (("index", "u8"), ("error", ("array", 4, "u8"))))  # fmt: skip
DISPATCH_ERROR = ("enum", "sp_runtime::DispatchError", (
    ("Other", 0, ()), ("CannotLookup", 1, ()), ("BadOrigin", 2, ()),
    ("Module", 3, ((None, MODULE_ERROR),)),
))  # fmt: skip
WEIGHT = ("struct", "sp_weights::weight_v2::Weight",
          (("ref_time", ("compact", "u64")), ("proof_size", ("compact", "u64"))))  # fmt: skip
CLASS = ("enum", "frame_support::dispatch::DispatchClass",
         (("Normal", 0, ()), ("Operational", 1, ()), ("Mandatory", 2, ())))  # fmt: skip
PAYS = ("enum", "frame_support::dispatch::Pays", (("Yes", 0, ()), ("No", 1, ())))
DISPATCH_INFO = ("struct", "frame_support::dispatch::DispatchInfo",
                 (("weight", WEIGHT), ("class", CLASS), ("pays_fee", PAYS)))  # fmt: skip
SYSTEM_EVENT = ("enum", "frame_system::pallet::Event", (
    ("ExtrinsicSuccess", 0, (("dispatch_info", DISPATCH_INFO),)),
    ("ExtrinsicFailed", 1, (("dispatch_error", DISPATCH_ERROR), ("dispatch_info", DISPATCH_INFO))),
))  # fmt: skip
SUBNET_EVENT = ("enum", "pallet_subtensor::pallet::Event",
                (("WeightsSet", 6, ((None, INDEX), (None, "u16"))),))  # fmt: skip
EVENT = ("enum", "node_subtensor_runtime::RuntimeEvent", (
    ("System", 0, ((None, SYSTEM_EVENT),)),
    ("SubtensorModule", SUBTENSOR, ((None, SUBNET_EVENT),)),
))  # fmt: skip
PHASE = ("enum", "frame_system::Phase",
         (("ApplyExtrinsic", 0, ((None, "u32"),)), ("Finalization", 1, ()),
          ("Initialization", 2, ())))  # fmt: skip
RECORD = ("struct", "frame_system::EventRecord",
          (("phase", PHASE), ("event", EVENT), ("topics", ("vector", HASH))))  # fmt: skip
ACCOUNT_INFO = ("struct", "frame_system::AccountInfo",
                (("nonce", "u32"), ("consumers", "u32"), ("providers", "u32"),
                 ("sufficients", "u32")))  # fmt: skip

CALL = ("enum", "pallet_subtensor::pallet::Call",
        tuple((name, index, arguments) for index, (name, arguments) in CALLS.items()))  # fmt: skip
RUNTIME_CALL = ("enum", "node_subtensor_runtime::RuntimeCall",
                (("SubtensorModule", SUBTENSOR, ((None, CALL),)),))  # fmt: skip
ADDRESS = ("generic", "sp_runtime::multiaddress::MultiAddress",
           (("AccountId", ACCOUNT), ("AccountIndex", UNIT)),
           ("enum", "", (("Id", 0, ((None, ACCOUNT),)),)))  # fmt: skip
SIGNATURE = ("enum", "sp_runtime::MultiSignature", (
    ("Ed25519", 0, ((None, ("array", 64, "u8")),)),
    ("Sr25519", 1, ((None, ("array", 64, "u8")),)),
    ("Ecdsa", 2, ((None, ("array", 65, "u8")),)),
))  # fmt: skip
EXTRINSIC = ("generic", "sp_runtime::generic::unchecked_extrinsic::UncheckedExtrinsic",
             (("Address", ADDRESS), ("Call", RUNTIME_CALL), ("Signature", SIGNATURE),
              ("Extra", UNIT)),
             BYTES)  # fmt: skip
# The library has its own reading of an era; the other 254 forms differ in their first byte.
ERA = (
    "enum",
    "sp_runtime::generic::era::Era",
    (("Immortal", 0, ()), ("Mortal1", 1, ((None, "u8"),))),
)
MODE = ("enum", "frame_metadata_hash_extension::Mode", (("Disabled", 0, ()), ("Enabled", 1, ())))
METADATA_HASH = ("struct", "frame_metadata_hash_extension::CheckMetadataHash", (("mode", MODE),))
NONCE = ("newtype", "node_subtensor_runtime::check_nonce::CheckNonce", ("compact", "u32"))
TIP = ("newtype", "pallet_transaction_payment::ChargeTransactionPayment", ("compact", "u64"))
OPTIONAL_HASH = ("generic", "Option", (("T", ("array", 32, "u8")),),
                 ("enum", "", (("None", 0, ()), ("Some", 1, ((None, ("array", 32, "u8")),)))),
                 )  # fmt: skip
EXTENSIONS = (
    ("CheckNonZeroSender", UNIT, UNIT),
    ("CheckSpecVersion", UNIT, "u32"),
    ("CheckTxVersion", UNIT, "u32"),
    ("CheckGenesis", UNIT, HASH),
    ("CheckMortality", ERA, HASH),
    ("CheckNonce", NONCE, UNIT),
    ("CheckWeight", UNIT, UNIT),
    ("ChargeTransactionPayment", TIP, UNIT),
    ("SudoTransactionExtension", UNIT, UNIT),
    ("SubtensorTransactionExtension", UNIT, UNIT),
    ("DrandPriority", UNIT, UNIT),
    ("CheckMetadataHash", METADATA_HASH, OPTIONAL_HASH),
)

ITEMS = {
    "System": {
        "Account": Item(ACCOUNT_INFO, (BLAKE,), (ACCOUNT,), bytes(16)),
        "Events": Item(("vector", RECORD), default=b"\0"),
    },
    "SubtensorModule": {
        "Weights": Item(("vector", ("tuple", "u16", "u16")), (IDENTITY, IDENTITY), (INDEX, "u16"),
                        b"\0"),
        "WeightsSetRateLimit": by_netuid("u64", unsigned(100, 64)),
        "MinAllowedWeights": by_netuid("u16", unsigned(1, 16)),
        "WeightsVersionKey": by_netuid("u64", unsigned(0, 64)),
        "CommitRevealWeightsEnabled": by_netuid("bool", b"\1"),
        "CommitRevealWeightsVersion": Item("u16", default=unsigned(4, 16)),
        "RevealPeriodEpochs": by_netuid("u64", unsigned(1, 64)),
        "SubnetEpochIndex": by_netuid("u64", unsigned(0, 64)),
        "LastEpochBlock": by_netuid("u64", unsigned(0, 64)),
        "PendingEpochAt": by_netuid("u64", unsigned(0, 64)),
        "SubnetOwner": by_netuid(ACCOUNT, bytes(32)),
        "SubnetOwnerHotkey": by_netuid(ACCOUNT, bytes(32)),
        "BlocksSinceLastStep": by_netuid("u64", unsigned(0, 64)),
    },
}  # fmt: skip


def storage_key(pallet, item, *keys):
    """Return where the chain stores a value; `keys` are SCALE."""
    hashers = (STORAGE[pallet] | ITEMS.get(pallet, {}))[item].hashers
    hashes = (hashed(hasher, key) for hasher, key in zip(hashers, keys, strict=True))
    return twox(pallet.encode(), 2) + twox(item.encode(), 2) + b"".join(hashes)


class WeightsRegistry(Registry):
    """Types that reading needs none of: enums, structs, compact numbers, type parameters."""

    def _definition(self, kind):
        if isinstance(kind, str) or kind[0] not in {"compact", "enum", "struct", "generic"}:
            return super()._definition(kind)
        if kind[0] == "compact":
            return vector([]) * 2 + b"\x06" + self.number(kind[1]) + vector([])
        path, parameters = kind[1].split("::") if kind[1] else (), ()
        if kind[0] == "generic":
            parameters, inner = kind[2], kind[3]
            body = (
                self._body(inner) if inner[0] == "enum" else b"\x00" + self._fields([(None, inner)])
            )
        else:
            body = self._body(kind)
        named = vector(text(name) + option(self.number(one)) for name, one in parameters)
        return vector(map(text, path)) + named + body + vector([])

    def _body(self, kind):
        if kind[0] == "struct":
            return b"\x00" + self._fields(kind[2])
        return b"\x01" + vector(
            text(name) + self._fields(fields) + bytes([index]) + vector([])
            for name, index, fields in kind[2]
        )

    def _fields(self, fields):
        return vector(
            option(text(name) if name else None) + self.number(one) + option(None) + vector([])
            for name, one in fields
        )


@cache
def metadata(spec_version):
    """Return the metadata of the runtime, V14."""
    registry = WeightsRegistry(spec_version)
    pallets = []
    for name, index in PALLETS.items():
        items = STORAGE[name] | ITEMS.get(name, {})
        entries = vector(entry(registry, item_name, item) for item_name, item in items.items())
        prefix = text("SS58Prefix") + registry.number("u16") + blob(unsigned(42, 16)) + vector([])
        events = {"System": SYSTEM_EVENT, "SubtensorModule": SUBNET_EVENT}.get(name)
        is_subnet = name == "SubtensorModule"
        pallets.append(
            text(name)
            + option(text(name) + entries)
            + option(registry.number(CALL) if is_subnet else None)
            + option(registry.number(events) if events else None)
            + vector([prefix] if name == "System" else [])
            + option(registry.number(ERROR) if is_subnet else None)
            + bytes([index])
        )
    extensions = vector(
        text(name) + registry.number(extra) + registry.number(additional)
        for name, extra, additional in EXTENSIONS
    )
    extrinsic = registry.number(EXTRINSIC) + b"\x04" + extensions
    runtime = registry.number(UNIT)
    return b"meta\x0e" + registry.encode() + vector(pallets) + extrinsic + runtime


def dispatch_info():
    """Return a DispatchInfo: no weight, normal, pays no fee."""
    return compact(0) * 2 + b"\0" + b"\1"


def event_record(extrinsic_index, error=None):
    """Return the record of what became of an extrinsic: success, or a module's error by name."""
    phase = b"\0" + unsigned(extrinsic_index, 32)
    if error is None:
        return phase + b"\0\0" + dispatch_info() + vector([])
    if error == "BadOrigin":
        return phase + b"\0\1\2" + dispatch_info() + vector([])
    module = b"\3" + bytes([SUBTENSOR, ERRORS[error], 0, 0, 0])
    return phase + b"\0\1" + module + dispatch_info() + vector([])


def account_info(nonce):
    """Return an AccountInfo."""
    return unsigned(nonce, 32) + bytes(12)


def boolean(value):
    """Return a truth value."""
    return flag(value=value)
