"""Checkpoints that must not be converted, in four tables. Those that would do harm make the file named by `marker`.

Nothing here works on Safelight; the payloads are the plain ones that every scanner's test set has.
"""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace

from tests.security import checkpoint_files as files
from tests.security.checkpoint_files import (
    ORDERED,
    PROTOCOL,
    STOP,
    Record,
    call,
    checkpoint,
    deflated,
    group,
    listing,
    name,
    number,
    pickled,
    records,
    sizes,
    storage,
    table,
    tensor,
    text,
    zipped,
)


def touch(marker: str) -> bytes:
    """The argument of a program call that makes the marker."""
    return text(f"touch {marker}")


def python(marker: str) -> bytes:
    """Python code that makes the marker."""
    return text(f"open({marker!r}, 'w').close()")


def evaluated(marker: str) -> bytes:
    return call("builtins", "eval", python(marker))


def program(marker: str) -> bytes:
    return listing(text("touch"), text(marker))


Maker = Callable[[str], bytes]

CALLS: dict[str, Maker] = {
    "os.system": lambda marker: call("os", "system", touch(marker)),
    "posix.system": lambda marker: call("posix", "system", touch(marker)),
    "nt.system": lambda marker: call("nt", "system", touch(marker)),
    "os.popen": lambda marker: call("os", "popen", touch(marker)),
    "os.execvp": lambda marker: call("os", "spawnvp", number(0), text("touch"), program(marker)),
    "os.putenv": lambda marker: call("os", "putenv", text("LD_PRELOAD"), text(marker)),
    "subprocess.call": lambda marker: call("subprocess", "call", program(marker)),
    "subprocess.run": lambda marker: call("subprocess", "run", program(marker)),
    "subprocess.Popen": lambda marker: call("subprocess", "Popen", program(marker)),
    "subprocess.getoutput": lambda marker: call("subprocess", "getoutput", touch(marker)),
    "pty.spawn": lambda marker: call("pty", "spawn", program(marker)),
    "builtins.eval": evaluated,
    "builtins.exec": lambda marker: call("builtins", "exec", python(marker)),
    "__builtin__.eval": lambda marker: call("__builtin__", "eval", python(marker)),
    "builtins.open": lambda marker: call("builtins", "open", text(marker), text("w")),
    "io.open": lambda marker: call("io", "open", text(marker), text("w")),
    "builtins.__import__": lambda marker: call("builtins", "__import__", text("antigravity")),
    "builtins.getattr": lambda marker: call("builtins", "getattr", name("os", "path"), text("os")),
    "importlib.import_module": lambda marker: call("importlib", "import_module", text("antigravity")),
    "runpy.run_module": lambda marker: call("runpy", "run_module", text("antigravity")),
    "runpy._run_code": lambda marker: call("runpy", "_run_code", python(marker), b"}"),
    "timeit.timeit": lambda marker: call(
        "timeit", "timeit", python(marker), text("pass"), name("timeit", "default_timer"), number(1)
    ),
    "cProfile.run": lambda marker: call("cProfile", "run", python(marker)),
    "pdb.run": lambda marker: call("pdb", "run", python(marker)),
    "pydoc.pipepager": lambda marker: call("pydoc", "pipepager", text(""), touch(marker)),
    "code.interact": lambda marker: call("code", "interact", python(marker)),
    "trace.Trace": lambda marker: call("trace", "Trace"),
    "pkgutil.resolve_name": lambda marker: call("pkgutil", "resolve_name", text("os:system")),
    "operator.methodcaller": lambda marker: call("operator", "methodcaller", text("system"), touch(marker)),
    "functools.partial": lambda marker: call("functools", "partial", name("os", "system"), touch(marker)),
    "functools.reduce": lambda marker: call(
        "functools", "reduce", name("builtins", "eval"), listing(python(marker), b"}")
    ),
    "marshal.loads": lambda marker: call("marshal", "loads", text("x")),
    "types.FunctionType": lambda marker: call("types", "FunctionType", number(1)),
    "pickle.loads": lambda marker: call("pickle", "loads", text("x")),
    "torch.load": lambda marker: call("torch", "load", text(marker)),
    "torch.serialization.load": lambda marker: call("torch.serialization", "load", text(marker)),
    "torch.storage._load_from_bytes": lambda marker: call("torch.storage", "_load_from_bytes", text("x")),
    "torch.hub.load": lambda marker: call("torch.hub", "load", text("a/b"), text("c")),
    "torch.jit.load": lambda marker: call("torch.jit", "load", text(marker)),
    "torch.compile": lambda marker: call("torch", "compile", text(marker)),
    "torch.ops.load_library": lambda marker: call("torch._ops", "load_library", text(marker)),
    "numpy.load": lambda marker: call("numpy", "load", text(marker)),
    "numpy runstring": lambda marker: call("numpy.testing._private.utils", "runstring", python(marker), b"}"),
    "numpy scalar": lambda marker: call(
        "numpy.core.multiarray", "scalar", call("numpy", "dtype", text("f8")), text("x")
    ),
    "ctypes.CDLL": lambda marker: call("ctypes", "CDLL", text(marker)),
    "shutil.rmtree": lambda marker: call("shutil", "rmtree", text(marker)),
    "urllib.request.urlopen": lambda marker: call("urllib.request", "urlopen", text("http://127.0.0.1:9/")),
    "socket.create_connection": lambda marker: call("socket", "create_connection", group(text("127.0.0.1"), number(9))),
    "webbrowser.open": lambda marker: call("webbrowser", "open", text("http://127.0.0.1:9/")),
    "pip.main": lambda marker: call("pip", "main", listing(text("install"), text("x"))),
    "_codecs.encode": lambda marker: call("_codecs", "encode", text("x"), text("rot13")),
    "builtins.bytearray": lambda marker: call("builtins", "bytearray", number(1 << 40)),
    "copyreg._reconstructor": lambda marker: call(
        "copyreg", "_reconstructor", name("os", "DirEntry"), name("builtins", "object"), b"N"
    ),
    "torch prefix": lambda marker: call("torch._utils_extra", "_rebuild_tensor_v2", touch(marker)),
    "torch attribute path": lambda marker: call("torch._utils", "_rebuild_tensor_v2.__globals__", touch(marker)),
    "OrderedDict attribute": lambda marker: call("collections", "OrderedDict.fromkeys", listing()),
    "collections with a space": lambda marker: call("collections ", "OrderedDict"),
    "a letter that looks alike": lambda marker: call("cоllections", "OrderedDict"),
    "parameter with state": lambda marker: call(
        "torch._utils", "_rebuild_parameter_with_state", tensor(), b"\x89", ORDERED, b"}"
    ),
    "tensor subclass": lambda marker: call(
        "torch._tensor", "_rebuild_from_type_v2", name("os", "system"), touch(marker)
    ),
    "torch.load, only named": lambda marker: name("torch", "load"),
    "lightning callback": lambda marker: name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
}
"""A value beside a sound tensor that calls, or only names, something that is neither a tensor nor a plain value."""

LIVE = frozenset({
    "os.system", "posix.system", "os.popen", "os.execvp", "subprocess.call", "subprocess.run", "subprocess.Popen",
    "subprocess.getoutput", "pty.spawn", "builtins.eval", "builtins.exec", "builtins.open", "io.open", "runpy._run_code",
    "timeit.timeit", "cProfile.run", "pydoc.pipepager", "functools.reduce", "INST", "OBJ", "STACK_GLOBAL", "protocol 4",
    "protocol 0", "DUP and POP", "garbage behind the payload", "no STOP", "payload after a sound pickle",
    "memo overwritten", "memo of a global", "SETITEM on an object", "payload as a key", "payload inside a storage",
    "payload in hooks", "compressed pickle",
})  # fmt: skip
"""Of these a plain unpickler makes the marker; the tests show that, so that it is known that they are not duds."""


def inside(payload: bytes) -> bytes:
    """The payload as one more value of the table."""
    return pickled(text("payload"), payload)


TRICKS: dict[str, Maker] = {
    "INST": lambda marker: inside(b"(" + touch(marker) + b"ios\nsystem\n"),
    "OBJ": lambda marker: inside(b"(" + name("subprocess", "Popen") + program(marker) + b"o"),
    "NEWOBJ": lambda marker: inside(name("builtins", "object") + b")\x81"),
    "NEWOBJ_EX": lambda marker: inside(name("builtins", "object") + b")}\x92"),
    "STACK_GLOBAL": lambda marker: inside(text("os") + text("system") + b"\x93" + group(touch(marker)) + b"R"),
    "EXT1": lambda marker: inside(b"\x82\x01"),
    "EXT2": lambda marker: inside(b"\x83\x01\x00"),
    "EXT4": lambda marker: inside(b"\x84\x01\x00\x00\x00"),
    "PERSID": lambda marker: inside(b"P0\n"),
    "NEXT_BUFFER": lambda marker: inside(b"\x97"),
    "BYTEARRAY8": lambda marker: inside(b"\x96" + struct.pack("<Q", 1) + b"x"),
    "FRAME": lambda marker: inside(b"\x95" + struct.pack("<Q", 8) + b"N"),
    "protocol 4": lambda marker: b"\x80\x04" + inside(call("os", "system", touch(marker)))[2:],
    "protocol 0": lambda marker: f"cos\nsystem\n(S'touch {marker}'\ntR.".encode(),
    "second PROTO": lambda marker: inside(PROTOCOL + b"N"),
    "DUP and POP": lambda marker: inside(evaluated(marker) + b"20"),
    "POP_MARK": lambda marker: inside(b"(N1N"),
    "a global built upon": lambda marker: inside(
        name("collections", "OrderedDict") + table(text("fromkeys"), number(1)) + b"b"
    ),
    "a tensor built upon": lambda marker: inside(tensor() + table(text("data"), number(1)) + b"b"),
    "a table given attributes": lambda marker: inside(ORDERED + table(text("items"), number(1)) + b"b"),
    "a plain dict given attributes": lambda marker: inside(b"}" + table(text("_metadata"), ORDERED) + b"b"),
    "memo overwritten": lambda marker: inside(
        ORDERED + b"q\x010" + name("os", "system") + b"q\x010h\x01" + group(touch(marker)) + b"R"
    ),
    "memo overwritten, no POP": lambda marker: pickled(
        *(text("a"), text("x") + b"q\x01", text("b"), text("y") + b"q\x01")
    ),
    "memo of a global": lambda marker: inside(name("os", "system") + b"q\x05" + group(touch(marker)) + b"R"),
    "memo that is not there": lambda marker: inside(b"h\x63"),
    "mark taken twice": lambda marker: inside(b"tt"),
    "stack run dry": lambda marker: PROTOCOL + b"R" + STOP,
    "SETITEM on a tensor": lambda marker: inside(tensor() + number(0) + number(1) + b"s"),
    "SETITEMS on a list": lambda marker: inside(b"](" + number(0) + number(1) + b"u"),
    "SETITEM on an object": lambda marker: inside(evaluated(marker) + b"0" + b"}" + number(0) + number(1) + b"s"),
    "APPEND to a table": lambda marker: inside(b"}" + number(0) + b"a"),
    "key without a value": lambda marker: inside(b"}(" + number(0) + b"u"),
    "a tuple as a key": lambda marker: pickled(group(number(1)), number(2)),
    "payload as a key": lambda marker: pickled(evaluated(marker), number(2)),
    "garbage behind the payload": lambda marker: PROTOCOL + evaluated(marker) + b"\xff\xfe broken",
    "no STOP": lambda marker: PROTOCOL + table(text("weight"), tensor(), text("payload"), evaluated(marker)),
    "cut inside a text": lambda marker: pickled()[:-1] + b"X\xff\xff\x00\x00abc",
    "payload after a sound pickle": lambda marker: pickled() + PROTOCOL + evaluated(marker) + STOP,
    "bytes after STOP": lambda marker: pickled() + b"\0",
    "ends with a list": lambda marker: PROTOCOL + listing(tensor()) + STOP,
    "ends with a tensor": lambda marker: PROTOCOL + tensor() + STOP,
    "ends with two tables": lambda marker: PROTOCOL + table(text("weight"), tensor()) + table() + STOP,
    "ends below a mark": lambda marker: PROTOCOL + b"(" + table(text("weight"), tensor()) + STOP,
    "ends with two values": lambda marker: PROTOCOL + tensor() + table() + STOP,
    "a name without end": lambda marker: PROTOCOL + b"c" + b"a" * 500,
    "payload inside a storage": lambda marker: inside(storage(elements=evaluated(marker) + b"0" + number(4))),
    "payload in hooks": lambda marker: inside(tensor(hooks=evaluated(marker))),
    "too many instructions": lambda marker: inside(b"](" + b"N" * 2_100_000 + b"e"),
}
"""Pickles in a sound container whose instructions, order or end are not what torch writes."""


def alone(value: bytes) -> bytes:
    """A pickle with this one tensor and no other."""
    return PROTOCOL + table(text("weight"), value) + STOP


TENSORS: dict[str, bytes] = {
    "strides of zero": alone(tensor(shape=sizes(10**6, 10**6), strides=sizes(0, 0))),
    "a small stride of zero": alone(tensor(shape=sizes(3, 2), strides=sizes(0, 1))),
    "larger than its storage": alone(tensor(shape=sizes(5), strides=sizes(1))),
    "reaching past its storage": alone(tensor(shape=sizes(2, 2), strides=sizes(3, 1))),
    "offset past its storage": alone(tensor(shape=sizes(1), strides=sizes(1), offset=number(4))),
    "negative offset": alone(tensor(offset=number(-1))),
    "negative stride": alone(tensor(strides=sizes(-1, 1))),
    "impossibly large": alone(tensor(shape=sizes(2**60, 2**60), strides=sizes(1, 1))),
    "nine dimensions": alone(tensor(shape=sizes(*[1] * 9), strides=sizes(*[1] * 9))),
    "strides of another length": alone(tensor(strides=sizes(1))),
    "shape is a text": alone(tensor(shape=text("22"))),
    "gradient is a number": alone(tensor(gradient=number(1))),
    "hooks are given": alone(tensor(hooks=call("collections", "OrderedDict", listing(group(number(1), number(2)))))),
    "with metadata": alone(tensor(more=table(text("conj"), number(1)))),
    "storage of another size": alone(tensor(storage(elements=number(8)))),
    "storage in bytes, not elements": alone(tensor(storage(elements=number(16)))),
    "storage with a negative size": alone(tensor(storage(elements=number(-4)))),
    "storage with a size of True": alone(tensor(storage(elements=b"\x88"))),
    "storage that is not there": alone(tensor(storage("7"))),
    "storage with a path as key": alone(tensor(storage("../data.pkl"))),
    "storage of two types": inside(tensor(storage(kind="IntStorage"))),
    "storage of an unknown type": alone(tensor(storage(kind="QInt8Storage"))),
    "untyped storage in an old tensor": alone(
        tensor(storage(kind="UntypedStorage", module="torch.storage", elements=number(16)))
    ),
    "a storage that is a tuple": alone(group(text("module"), text("x")) + b"Q"),
    "a reference that is a text": alone(text("storage") + b"Q"),
    "typed tensor of an unknown type": alone(
        name("torch._utils", "_rebuild_tensor_v3")
        + group(storage(), number(0), sizes(1), sizes(1), b"\x89", ORDERED, name("torch", "float32"))
        + b"R"
    ),
    "a thousand views of one storage": pickled(
        *(part for index in range(1000) for part in (text(f"t{index}"), tensor()))
    ),
    "one tensor under a thousand names": pickled(
        text("first"), tensor() + b"q\x01", *(part for index in range(1000) for part in (text(f"t{index}"), b"h\x01"))
    ),
    "numbers of no tensor": PROTOCOL + table() + STOP,
}
"""Pickles whose names are all harmless, and whose tensors are not what the file holds."""

SOUND = pickled()


def changed(index: int, **changes: object) -> bytes:
    """A sound checkpoint with one member's record changed."""
    members = records(SOUND)
    members[index] = replace(members[index], **changes)  # type: ignore[arg-type]
    return zipped(members)


def with_payload_named(other: str, marker: str) -> list[Record]:
    return [Record(other, PROTOCOL + evaluated(marker) + STOP)]


def tar_of(marker: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("pickle")
        data = PROTOCOL + evaluated(marker) + STOP
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."

CONTAINERS: dict[str, Maker] = {
    "a bare pickle": lambda marker: PROTOCOL + evaluated(marker) + STOP,
    "before zip, as until 2020": lambda marker: LEGACY_MAGIC + PROTOCOL + evaluated(marker) + STOP,
    "tar": tar_of,
    "7z": lambda marker: b"7z\xbc\xaf\x27\x1c\0\x04" + bytes(64),
    "gzip": lambda marker: gzip.compress(checkpoint(SOUND)),
    "empty": lambda marker: b"",
    "four bytes": lambda marker: b"PK\x03\x04",
    "an empty zip": lambda marker: zipped([]),
    "compressed pickle": lambda marker: zipped([deflated(records(inside(evaluated(marker)))[0]), *records(SOUND)[1:]]),
    "compressed storage": lambda marker: zipped(
        [*records(SOUND)[:2], deflated(Record("archive/data/0", bytes(1 << 20)))]
    ),
    "compressed by its own header only": lambda marker: changed(0, local_method=8),
    "compressed by the directory only": lambda marker: changed(0, method=8, local_method=0),
    "encrypted": lambda marker: changed(0, flags=0x0801),
    "encrypted by its own header only": lambda marker: changed(0, local_flags=0x0801),
    "strong encryption": lambda marker: changed(0, flags=0x0840),
    "patched data": lambda marker: changed(0, flags=0x0820),
    "masked headers": lambda marker: changed(0, flags=0x2800),
    "wrong checksum": lambda marker: changed(0, crc=1),
    "wrong checksum of a storage": lambda marker: changed(2, crc=1),
    "another checksum in its own header": lambda marker: changed(0, local_crc=1),
    "another name in its own header": lambda marker: changed(0, local_name="archive/data.pkx"),
    "pickle named otherwise in the directory": lambda marker: changed(
        0, name="archive/other.pkl", local_name="archive/data.pkl"
    ),
    "size that lies": lambda marker: changed(0, size=4),
    "record that promises a descriptor": lambda marker: changed(0, flags=0x0808),
    "unknown extra field": lambda marker: changed(0, extra=b"\x75\x70\x04\0abcd"),
    "zip64 field that lies": lambda marker: changed(0, extra=b"\x01\0\x10\0" + struct.pack("<QQ", 7, 7)),
    "pickle twice": lambda marker: zipped([*records(SOUND), *with_payload_named("archive/data.pkl", marker)]),
    "pickle twice, the first bad": lambda marker: zipped(
        [*with_payload_named("archive/data.pkl", marker), *records(SOUND)]
    ),
    "pickle that is not listed": lambda marker: zipped(
        [*records(SOUND), replace(with_payload_named("archive/data.pkl", marker)[0], listed=False)]
    ),
    "second root": lambda marker: zipped([*records(SOUND), *with_payload_named("other/data.pkl", marker)]),
    "second root without a pickle": lambda marker: zipped([*records(SOUND), Record("other/.format_version", b"1")]),
    "second pickle": lambda marker: zipped([*records(SOUND), *with_payload_named("archive/constants.pkl", marker)]),
    "code of TorchScript": lambda marker: zipped([*records(SOUND), Record("archive/code/__torch__.py", b"x")]),
    "name in capitals": lambda marker: changed(0, name="archive/DATA.PKL"),
    "name that leaves the folder": lambda marker: zipped([*records(SOUND), Record("archive/../evil", b"x")]),
    "absolute name": lambda marker: zipped([*records(SOUND), Record("/etc/evil", b"x")]),
    "backslashes": lambda marker: zipped([*records(SOUND), Record("archive\\evil", b"x")]),
    "name with a line break": lambda marker: zipped([*records(SOUND), Record("archive/data/0\n", b"x")]),
    "root with a control character": lambda marker: zipped(
        [replace(one, name=one.name.replace("archive", "a\x1b[")) for one in records(SOUND)]
    ),
    "no root": lambda marker: zipped([replace(one, name=one.name.removeprefix("archive/")) for one in records(SOUND)]),
    "no pickle": lambda marker: zipped(records(SOUND)[1:]),
    "bytes before": lambda marker: zipped(records(SOUND), before=PROTOCOL + evaluated(marker) + STOP),
    "zip behind a zip": lambda marker: checkpoint(inside(evaluated(marker))) + checkpoint(SOUND),
    "bytes behind": lambda marker: zipped(records(SOUND), after=b"\0"),
    "comment": lambda marker: zipped(records(SOUND), comment=b"hello"),
    "comment that is not there": lambda marker: checkpoint(SOUND)[:-2] + b"\x05\0",
    "another directory in the comment": lambda marker: zipped(
        records(SOUND), comment=checkpoint(inside(evaluated(marker)))
    ),
    "gap between members": lambda marker: changed(1, gap=PROTOCOL + evaluated(marker) + STOP),
    "member too few": lambda marker: zipped(records(SOUND), count=3),
    "member too many": lambda marker: zipped(records(SOUND), count=5),
    "bytes in the directory": lambda marker: zipped(records(SOUND), in_directory=PROTOCOL + evaluated(marker) + STOP),
    "cut off": lambda marker: checkpoint(SOUND)[:-30],
    "cut off in the middle": lambda marker: checkpoint(SOUND)[:200],
    "other byte order": lambda marker: zipped(
        [records(SOUND)[0], Record("archive/byteorder", b"big"), *records(SOUND)[2:]]
    ),
    "large small member": lambda marker: zipped([*records(SOUND)[:3], Record("archive/version", b"3" * 5000)]),
    "an unused storage": lambda marker: checkpoint(SOUND, {"0": bytes(16), "1": b"hidden"}),
}
"""Files whose container is not one that torch writes."""


def bad_checkpoints(marker: str) -> dict[str, bytes]:
    """Every bad checkpoint by name, as the bytes of the file."""
    made = {f"call: {key}": checkpoint(inside(make(marker))) for key, make in CALLS.items()}
    made |= {f"trick: {key}": checkpoint(make(marker)) for key, make in TRICKS.items()}
    made |= {f"tensor: {key}": checkpoint(pickle) for key, pickle in TENSORS.items()}
    return made | {f"container: {key}": make(marker) for key, make in CONTAINERS.items()}


def payloads(marker: Callable[[str], str]) -> dict[str, bytes]:
    """The pickles that make a marker of their own when they are loaded without care, by name."""
    made = {key: inside(make(marker(key))) for key, make in CALLS.items() if key in LIVE}
    made |= {key: make(marker(key)) for key, make in TRICKS.items() if key in LIVE}
    return made | {"compressed pickle": inside(evaluated(marker("compressed pickle")))}


NUM_BAD = len(CALLS) + len(TRICKS) + len(TENSORS) + len(CONTAINERS)
__all__ = ["CALLS", "CONTAINERS", "LIVE", "NUM_BAD", "TENSORS", "TRICKS", "bad_checkpoints", "files", "payloads"]
