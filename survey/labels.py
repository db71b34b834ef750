"""Label maps: classes by name, with ids from 1, in the Object Detection API's `StringIntLabelMap` text format.

A label map is a tuple of names; the id of a class is its position plus one, 0 stays free for the background.
"""

from collections.abc import Iterable

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
    """Reads a `.pbtxt` label map.

    Raises:
      InputError: it does not parse, or its ids are not 1..N, each once.
    """
    message = _StringIntLabelMap()
    try:
        text_format.Parse(files.read(path).decode(), message)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: a label map (StringIntLabelMap, .pbtxt) is expected there") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a StringIntLabelMap: {error}") from error
    names = {item.id: item.name or item.display_name for item in message.item}
    if len(names) != len(message.item) or sorted(names) != list(range(1, len(names) + 1)) or not names:
        ids = [item.id for item in message.item]
        raise InputError(f"{path} has class ids {ids}: must be 1 to the number of classes, each once (0 is the background)")
    if len(set(names.values())) != len(names):
        raise InputError(f"{path} names a class twice: {sorted(names.values())}")
    return tuple(names[i] for i in sorted(names))
