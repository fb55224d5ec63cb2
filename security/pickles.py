"""Decides whether the pickle of a PyTorch checkpoint describes tensors and plain values, and nothing else.

A list of forbidden things always misses one. This walks the instructions on a stack of its own, as the unpickler would,
and knows a dozen harmless ones; whatever else appears is refused, so nothing can be hidden behind it. Nothing is run:
a global stays a name, a tensor a description. The instructions: https://docs.python.org/3/library/pickletools.html
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from security.errors import RefusedFile
from security.policy import MAX_PICKLE_OPERATIONS, MAX_TENSOR_DIMENSIONS, MAX_TENSORS
from security.torch_zip import read_checkpoint

STORAGE_BYTES: dict[str, int] = {
    "torch.DoubleStorage": 8, "torch.FloatStorage": 4, "torch.HalfStorage": 2, "torch.BFloat16Storage": 2,
    "torch.LongStorage": 8, "torch.IntStorage": 4, "torch.ShortStorage": 2, "torch.CharStorage": 1,
    "torch.ByteStorage": 1, "torch.BoolStorage": 1, "torch.ComplexFloatStorage": 8, "torch.storage.UntypedStorage": 1,
}  # fmt: skip
"""Kinds of storage and the bytes of one element. Quantised ones have no safetensors form."""
DTYPE_BYTES: dict[str, int] = {
    "torch.float64": 8, "torch.float32": 4, "torch.float16": 2, "torch.bfloat16": 2,
    "torch.int64": 8, "torch.int32": 4, "torch.int16": 2, "torch.int8": 1,
    "torch.uint64": 8, "torch.uint32": 4, "torch.uint16": 2, "torch.uint8": 1, "torch.bool": 1, "torch.complex64": 8,
    "torch.float8_e4m3fn": 1, "torch.float8_e5m2": 1, "torch.float8_e4m3fnuz": 1, "torch.float8_e5m2fnuz": 1,
    "torch.float8_e8m0fnu": 1,
}  # fmt: skip
"""Element types and their bytes."""
ORDERED_DICT = "collections.OrderedDict"
REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
REBUILD_TENSOR_OF_TYPE = "torch._utils._rebuild_tensor_v3"
REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
CALLABLES = (ORDERED_DICT, REBUILD_TENSOR, REBUILD_TENSOR_OF_TYPE, REBUILD_PARAMETER, "torch.Size", "torch.device")
ALLOWED_GLOBALS = frozenset({*STORAGE_BYTES, *DTYPE_BYTES, *CALLABLES})
"""Every name that may appear, as module.name; compared whole, never by its beginning."""

_MAX_COPIES = 2
"""Tensors may share their numbers (tied weights), but all of them together may not exceed the file this many times."""
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Global:
    """A name. It is never looked up."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage of the file: element type, key and number of elements."""

    kind: str
    key: str
    num_elements: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the pickle describes it."""

    num_bytes: int


@dataclass(slots=True)
class Table:
    """A dict or OrderedDict."""

    ordered: bool
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckedPickle:
    """What an accepted pickle holds: number of tensors and their bytes together."""

    num_tensors: int
    num_bytes: int


def check_torch_file(descriptor: int, name: str) -> CheckedPickle:
    """Checks the PyTorch checkpoint in an open file, container and pickle; nothing of it is run.

    Raises RefusedFile that names the file as `name` and says what is wrong.
    """
    checkpoint = read_checkpoint(descriptor, name)
    return check_pickle(checkpoint.pickle, checkpoint.storages, name)


def check_pickle(data: bytes, storages: Mapping[str, int], name: str) -> CheckedPickle:
    """Checks a checkpoint's pickle. `storages`: bytes of each storage of the file by its key. Raises RefusedFile."""
    machine = _Machine(data, storages)
    try:
        machine.run()
    except _Refused as error:
        raise RefusedFile(
            f"{name} is not converted: {error}. Only tensors and plain values can be taken over; get the .safetensors "
            "version of the model."
        ) from None
    return CheckedPickle(machine.num_tensors, machine.num_bytes)


class _Refused(Exception):
    """What is wrong, as the part of a sentence."""


class _Machine:
    """The stack machine of the unpickler with descriptions instead of objects."""

    def __init__(self, data: bytes, storages: Mapping[str, int]) -> None:
        self.data = data
        self.at = 0
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.used: dict[str, Storage] = {}
        self.num_tensors = 0
        self.num_bytes = 0

    def run(self) -> None:
        """Walks to the end. Raises _Refused."""
        if self.data[:2] != b"\x80\x02":
            raise _Refused("its pickle is not of protocol 2, which torch writes")
        self.at = 2
        for _ in range(MAX_PICKLE_OPERATIONS):
            code = self.take(1)
            if code == b".":
                break
            operation = OPERATIONS.get(code)
            if operation is None:
                raise _Refused(f"its pickle has the instruction {code!r}, which no checkpoint needs")
            operation(self)
        else:
            raise _Refused(f"its pickle has over {MAX_PICKLE_OPERATIONS} instructions")
        if self.at != len(self.data):
            raise _Refused("bytes follow the end of its pickle")
        if len(self.stack) != 1 or self.marks or not isinstance(self.stack[0], Table):
            raise _Refused("its pickle does not end with one table of tensors")
        if self.used.keys() != self.storages.keys():
            raise _Refused("it holds numbers that belong to no tensor")
        if self.num_tensors > MAX_TENSORS or self.num_bytes > _MAX_COPIES * sum(self.storages.values()):
            raise _Refused("its tensors are far more than the file holds")

    def take(self, count: int) -> bytes:
        """The next bytes."""
        found = self.data[self.at : self.at + count]
        if len(found) != count:
            raise _Refused("its pickle is cut off")
        self.at += count
        return found

    def number(self, form: str) -> Any:
        """The next number, in one of struct's forms."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        """Text up to the next line break."""
        end = self.data.find(b"\n", self.at)
        if end < 0 or end - self.at > 200:
            raise _Refused("its pickle names something without end")
        text = self.take(end - self.at)
        self.at += 1
        if not text.isascii() or not text.decode("ascii").isprintable():
            raise _Refused("its pickle names something in unreadable letters")
        return text.decode("ascii")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        """The top of the stack, above the last mark."""
        if not self.stack:
            raise _Refused("its pickle takes what it never put down")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """All values above the last mark, which goes too."""
        if not self.marks:
            raise _Refused("its pickle takes what it never put down")
        values, self.stack = self.stack, self.marks.pop()
        return values

    def top(self, kind: type) -> Any:
        """The top of the stack, if it is of that kind."""
        if not self.stack or type(self.stack[-1]) is not kind:
            raise _Refused("its pickle fills something that is neither a list nor a table")
        return self.stack[-1]

    def remember(self, index: int) -> None:
        """Memo: torch numbers what it remembers in order, each thing once."""
        if not self.stack or index in self.memo:
            raise _Refused("its pickle changes what it remembered")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        value = self.memo.get(index, _NOTHING)
        if value is _NOTHING:
            raise _Refused("its pickle recalls what it never remembered")
        self.push(value)

    def put_all(self, values: list[Any]) -> None:
        """Key, value, key, value ... into the table at the top."""
        table = self.top(Table)
        if len(values) % 2:
            raise _Refused("its pickle has a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int):
                raise _Refused("it has a table whose keys are neither texts nor numbers")
            table.items[key] = self.counted(value)

    def counted(self, value: Any) -> Any:
        """A value that goes into a table or list. Each place of a tensor counts: the same one may stand under many names."""
        if type(value) is Tensor:
            self.num_tensors += 1
            self.num_bytes += value.num_bytes
        return value

    def call(self) -> None:
        """REDUCE: only the constructors of tensors and tables, and only on what they take."""
        arguments, function = self.pop(), self.pop()
        if type(function) is not Global or type(arguments) is not tuple or function.name not in CALLABLES:
            raise _Refused("its pickle calls something")
        match function.name:
            case "collections.OrderedDict":
                self.push(self.ordered(arguments))
            case "torch._utils._rebuild_parameter":
                if len(arguments) != 3 or type(arguments[0]) is not Tensor or not _are_hooks(arguments[2]):
                    raise _Refused("it describes a parameter in an unknown way")
                self.push(arguments[0])
            case "torch.Size" | "torch.device":
                plain = (str, int) if function.name == "torch.device" else (tuple,)
                if len(arguments) not in (1, 2) or any(type(one) not in plain for one in arguments):
                    raise _Refused(f"it describes a {function.name} in an unknown way")
                self.push(arguments)
            case _:
                self.push(self.tensor(function.name, arguments))

    def ordered(self, arguments: tuple[Any, ...]) -> Table:
        """OrderedDict(), or OrderedDict of a list of [key, value], as Python 2 wrote it."""
        table = Table(ordered=True)
        if arguments == ():
            return table
        if len(arguments) != 1 or type(arguments[0]) is not list:
            raise _Refused("it describes a table in an unknown way")
        for pair in arguments[0]:
            if type(pair) not in (list, tuple) or len(pair) != 2 or type(pair[0]) not in (str, int):
                raise _Refused("it describes a table in an unknown way")
            table.items[pair[0]] = self.counted(pair[1])
        return table

    def tensor(self, function: str, arguments: tuple[Any, ...]) -> Tensor:
        """A tensor, checked against its storage. Arguments: storage, offset, size, stride, requires_grad, hooks[, dtype]."""
        has_type = function == REBUILD_TENSOR_OF_TYPE
        count = 7 if has_type else 6
        if len(arguments) not in (count, count + 1) or (len(arguments) > count and arguments[-1] is not None):
            raise _Refused("it describes a tensor in an unknown way")
        storage, offset, shape, strides, gradient, hooks = arguments[:6]
        sound = type(storage) is Storage and type(gradient) is bool and _are_hooks(hooks)
        if not sound or not _are_sizes([offset]) or not _are_sizes(shape) or not _are_sizes(strides):
            raise _Refused("it describes a tensor in an unknown way")
        if len(shape) != len(strides) or len(shape) > MAX_TENSOR_DIMENSIONS:
            raise _Refused(f"it has a tensor of the impossible shape {str(shape)[:60]}")
        bytes_each = STORAGE_BYTES[storage.kind]
        if has_type:
            if type(arguments[6]) is not Global or arguments[6].name not in DTYPE_BYTES or bytes_each != 1:
                raise _Refused("it has a tensor of an unknown type")
            bytes_each = DTYPE_BYTES[arguments[6].name]
        elif storage.kind == "torch.storage.UntypedStorage":
            raise _Refused("it has a tensor of an unknown type")
        stored = storage.num_elements * STORAGE_BYTES[storage.kind]
        elements = math.prod(shape)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if elements else 0
        if elements * bytes_each > stored or (elements and (last + 1) * bytes_each > stored):
            raise _Refused(f"it has a tensor of the shape {str(shape)[:60]} on {stored} bytes")
        return Tensor(elements * bytes_each)

    def storage(self) -> None:
        """BINPERSID: ("storage", kind, key, device, number of elements)."""
        value = self.pop()
        if type(value) is not tuple or len(value) != 5 or value[0] != "storage" or type(value[0]) is not str:
            raise _Refused("its pickle refers to something that is no storage")
        _, kind, key, device, elements = value
        known = type(kind) is Global and kind.name in STORAGE_BYTES and type(key) is str and type(device) is str
        if not known or not _are_sizes([elements]):
            raise _Refused("it describes a storage in an unknown way")
        if self.storages.get(key) != elements * STORAGE_BYTES[kind.name]:
            raise _Refused(f"its storage {key[:20]!r} is not of the size that its tensors need")
        storage = Storage(kind.name, key, elements)
        if self.used.setdefault(key, storage) != storage:
            raise _Refused(f"its storage {key[:20]!r} is described in two ways")
        self.push(storage)

    def build(self) -> None:
        """BUILD: a state dict remembers the versions of its modules in `_metadata`, nothing else."""
        state, target = self.pop(), self.top(Table)
        sound = type(state) is Table and state.items.keys() == {"_metadata"} and type(state.items["_metadata"]) is Table
        if not target.ordered or not sound:
            raise _Refused("its pickle changes the inside of something")

    def name(self) -> None:
        """GLOBAL."""
        name = f"{self.line()}.{self.line()}"
        if name not in ALLOWED_GLOBALS:
            raise _Refused(f"its pickle names {name[:80]}, which is neither a tensor nor a plain value")
        self.push(Global(name))

    def text(self) -> None:
        """BINUNICODE."""
        try:
            self.push(self.take(self.number("<I")).decode("utf-8"))
        except UnicodeDecodeError:
            raise _Refused("it holds a text that is not UTF-8") from None

    def mark(self) -> None:
        """MARK."""
        self.marks.append(self.stack)
        self.stack = []

    def tuple_of(self, count: int) -> None:
        """TUPLE1 to TUPLE3."""
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def append_all(self, values: list[Any]) -> None:
        """APPEND and APPENDS."""
        self.top(list).extend(map(self.counted, values))

    def set_one(self) -> None:
        """SETITEM."""
        value, key = self.pop(), self.pop()
        self.put_all([key, value])


def _are_hooks(value: object) -> bool:
    """True for the empty table that stands where backward hooks would."""
    return type(value) is Table and value.ordered and not value.items


def _are_sizes(values: object) -> bool:
    """True for whole numbers from 0 to 2^53. A bool is an int in Python, and a tuple of a subclass could lie."""
    return type(values) in (tuple, list) and all(type(value) is int and 0 <= value <= 2**53 for value in values)  # type: ignore[attr-defined]


OPERATIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"c": _Machine.name,
    b"R": _Machine.call,
    b"Q": _Machine.storage,
    b"b": _Machine.build,
    b"(": _Machine.mark,
    b"t": lambda machine: machine.push(tuple(machine.pop_to_mark())),
    b")": lambda machine: machine.push(()),
    b"\x85": lambda machine: machine.tuple_of(1),
    b"\x86": lambda machine: machine.tuple_of(2),
    b"\x87": lambda machine: machine.tuple_of(3),
    b"]": lambda machine: machine.push([]),
    b"}": lambda machine: machine.push(Table(ordered=False)),
    b"a": lambda machine: machine.append_all([machine.pop()]),
    b"e": lambda machine: machine.append_all(machine.pop_to_mark()),
    b"s": _Machine.set_one,
    b"u": lambda machine: machine.put_all(machine.pop_to_mark()),
    b"X": _Machine.text,
    b"K": lambda machine: machine.push(machine.number("<B")),
    b"M": lambda machine: machine.push(machine.number("<H")),
    b"J": lambda machine: machine.push(machine.number("<i")),
    b"\x8a": lambda machine: machine.push(int.from_bytes(machine.take(machine.number("<B")), "little", signed=True)),
    b"G": lambda machine: machine.push(machine.number(">d")),
    b"N": lambda machine: machine.push(None),
    b"\x88": lambda machine: machine.push(True),
    b"\x89": lambda machine: machine.push(False),
    b"q": lambda machine: machine.remember(machine.number("<B")),
    b"r": lambda machine: machine.remember(machine.number("<I")),
    b"h": lambda machine: machine.recall(machine.number("<B")),
    b"j": lambda machine: machine.recall(machine.number("<I")),
}
"""Every instruction that may appear, by its byte: what torch itself writes for tensors, tables, lists, texts, numbers."""
