"""Label maps: classes by name, with ids from 1, in the Object Detection API's `StringIntLabelMap` text format.

A label map is a tuple of names; the id of a class is its position plus one, 0 stays free for the background. Written is always
`.pbtxt`; read are also the name lists of other tools, one name a line or `names` in a YOLO `data.yaml`.
"""

import re
from collections.abc import Iterable
from typing import Any

import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from survey import files
from survey.errors import InputError

LabelMap = tuple[str, ...]


def _label_map_message() -> type:
    """`StringIntLabelMap` of the Object Detection API (object_detection/protos/string_int_label_map.proto)."""
    field = descriptor_pb2.FieldDescriptorProto
    proto = descriptor_pb2.FileDescriptorProto(name="rookery/string_int_label_map.proto", package="object_detection.protos")
    item = proto.message_type.add(name="StringIntLabelMapItem")
    for number, name, kind in (
        (1, "name", field.TYPE_STRING),
        (2, "id", field.TYPE_INT32),
        (3, "display_name", field.TYPE_STRING),
    ):
        item.field.add(name=name, number=number, type=kind, label=field.LABEL_OPTIONAL)
    label_map = proto.message_type.add(name="StringIntLabelMap")
    label_map.field.add(
        name="item",
        number=1,
        type=field.TYPE_MESSAGE,
        label=field.LABEL_REPEATED,
        type_name=".object_detection.protos.StringIntLabelMapItem",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(proto)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("object_detection.protos.StringIntLabelMap"))


_StringIntLabelMap = _label_map_message()


def from_names(names: Iterable[str]) -> LabelMap:
    """The label map of the classes seen, in alphabetical order so that it does not depend on the order of files."""
    return tuple(sorted(set(names)))


def write(path: str, classes: LabelMap) -> None:
    """Writes `labels.pbtxt`."""
    message = _StringIntLabelMap()
    for i, name in enumerate(classes, start=1):
        message.item.add(name=name, id=i)
    files.write(path, text_format.MessageToString(message, as_utf8=True).encode())


def read(path: str) -> LabelMap:
    """Reads a label map: `.pbtxt`, `.yaml`, or a list of names, told apart by ending and content.

    Raises:
      InputError: it does not parse, its ids are not one after the other, or a class is named twice or not at all.
    """
    try:
        text = files.read(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist: a label map is expected there (StringIntLabelMap, .pbtxt, or one name a line)"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a label map: it is not UTF-8 text ({error})") from error
    if path.endswith((".yaml", ".yml")):
        names = _from_yaml(path, text)
    elif path.endswith(".pbtxt") or re.search(r"^\s*item\s*:?\s*\{", text, re.MULTILINE):
        names = _from_pbtxt(path, text)
    else:
        names = [line.strip() for line in text.rstrip().splitlines()]
    if not names:
        raise InputError(f"{path} names no class: one a line is expected, or items of a StringIntLabelMap")
    if "" in names:
        raise InputError(
            f"{path} has no name for class {names.index('') + 1} (line {names.index('') + 1} of a list of names): the classes "
            "after it would shift; name it, or take the line out"
        )
    if len(set(names)) != len(names):
        raise InputError(f"{path} names a class twice: {sorted(names)}")
    return tuple(names)


def _from_pbtxt(path: str, text: str) -> list[str]:
    message = _StringIntLabelMap()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise InputError(f"{path} is not a StringIntLabelMap: {error}") from error
    names = {item.id: item.name or item.display_name for item in message.item}
    if len(names) != len(message.item) or sorted(names) != list(range(1, len(names) + 1)) or not names:
        ids = [item.id for item in message.item]
        raise InputError(f"{path} has class ids {ids}: must be 1 to the number of classes, each once (0 is the background)")
    return [names[i] for i in sorted(names)]


def _from_yaml(path: str, text: str) -> list[str]:
    """`names` of a YOLO data.yaml: a list, or a mapping from numbers that count from 0."""
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    names = value.get("names") if isinstance(value, dict) else None
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise InputError(f"{path} numbers its names {list(names)}: must be 0 to the number of classes less one, each once")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list):
        raise InputError(f"{path} has no `names`: the list of classes of a YOLO data.yaml is expected")
    return [str(name).strip() for name in names]
