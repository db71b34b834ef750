"""A patch as a tf.train.Example, and Examples as a TFRecord file, written without TensorFlow.

Workers that cut patches need none of TensorFlow's second of start-up and hundreds of megabytes. The messages below are those
of tensorflow/core/example/{example,feature}.proto by field number and type, which is all that the wire format knows of them.
"""

import hashlib
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import simplejpeg
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from survey.boxes import area
from survey.errors import InputError
from survey.labels import LabelMap


def _example_message() -> type:
    field = descriptor_pb2.FieldDescriptorProto
    proto = descriptor_pb2.FileDescriptorProto(name="rookery/example.proto", package="rookery", syntax="proto3")
    for name, kind in (("BytesList", field.TYPE_BYTES), ("FloatList", field.TYPE_FLOAT), ("Int64List", field.TYPE_INT64)):
        proto.message_type.add(name=name).field.add(name="value", number=1, type=kind, label=field.LABEL_REPEATED)
    feature = proto.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes_list", "float_list", "int64_list"), start=1):
        type_name = ".rookery." + "".join(part.capitalize() for part in name.split("_"))
        feature.field.add(
            name=name, number=number, type=field.TYPE_MESSAGE, type_name=type_name, label=field.LABEL_OPTIONAL, oneof_index=0
        )
    features = proto.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=field.TYPE_MESSAGE, type_name=".rookery.Feature", label=field.LABEL_OPTIONAL)
    features.field.add(
        name="feature",
        number=1,
        type=field.TYPE_MESSAGE,
        type_name=".rookery.Features.FeatureEntry",
        label=field.LABEL_REPEATED,
    )
    example = proto.message_type.add(name="Example")
    example.field.add(
        name="features", number=1, type=field.TYPE_MESSAGE, type_name=".rookery.Features", label=field.LABEL_OPTIONAL
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(proto)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("rookery.Example"))


_Example = _example_message()


FORMATS = ("jpeg", "png")
SUBSAMPLINGS = ("444", "420")


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the pixels of a patch are stored.

    Attributes:
      image_format: "jpeg", or "png" without loss: about twice the bytes of quality 95 and a tenth of the speed.
      jpeg_quality: 1 to 100.
      jpeg_subsampling: "444" keeps chroma at full resolution, "420" halves it both ways. On a NEON forest survey, halving it
        triples the error (RMSE 9.0 of 255 instead of 3.0 at quality 95) for a third fewer bytes.
    """

    image_format: str = "jpeg"
    jpeg_quality: int = 95
    jpeg_subsampling: str = "444"

    def __post_init__(self) -> None:
        if self.image_format not in FORMATS:
            raise InputError(f"--image_format={self.image_format}: must be one of {', '.join(FORMATS)}")
        if not 1 <= self.jpeg_quality <= 100:
            raise InputError(f"--jpeg_quality={self.jpeg_quality}: must be from 1 to 100")
        if self.jpeg_subsampling not in SUBSAMPLINGS:
            raise InputError(
                f"--jpeg_subsampling={self.jpeg_subsampling}: must be one of {', '.join(SUBSAMPLINGS)}; 444 keeps colour sharp"
            )

    def encode(self, pixels: np.ndarray) -> bytes:
        """An image as bytes, the same on every machine.

        Args:
          pixels: uint8 [H, W, 3], RGB.
        """
        if self.image_format == "png":
            return encode_png(pixels)
        return encode_jpeg(pixels, self.jpeg_quality, self.jpeg_subsampling)


def encode_jpeg(pixels: np.ndarray, quality: int, subsampling: str = "444") -> bytes:
    """JPEG of an image, the same bytes on every machine: the accurate DCT, as the fast one may differ between processors.

    Args:
      pixels: uint8 [H, W, 3], RGB.
      quality: 1 to 100.
      subsampling: of chroma, "444" or "420".
    """
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling=subsampling, fastdct=False
    )
    return encoded


def encode_png(pixels: np.ndarray) -> bytes:
    """PNG of an image, without loss.

    Args:
      pixels: uint8 [H, W, 3], RGB.
    """
    import imagecodecs  # here: JPEG needs none of its many libraries

    # Level 1: higher ones take several times as long for some percent of photographs.
    encoded: bytes = bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels), level=1))
    return encoded


def example(
    *,
    patch_id: int,
    filename: str,
    encoded: bytes,
    image_format: str = "jpeg",
    patch_size: int,
    boxes_patch_px: np.ndarray,
    class_ids: np.ndarray,
    classes: LabelMap,
) -> bytes:
    """One patch as a serialised tf.train.Example with the Object Detection API's keys.

    Args:
      patch_id: the patch's number; also written as a decimal string to image/source_id, which Model Garden turns into a
        number with `tf.strings.to_number` (official/vision/dataloaders/utils.py:33).
      filename: file name of the mosaic.
      encoded: the pixels, as `Encoding.encode` gives them.
      image_format: of these bytes, "jpeg" or "png".
      patch_size: its side in pixels.
      boxes_patch_px: [N, 4], yxyx in patch pixels, inside the patch.
      class_ids: [N], from 1.
      classes: the label map.

    Returns:
      Bytes that are equal for equal arguments: map keys are sorted.
    """
    boxes = np.asarray(boxes_patch_px, np.float64).reshape(-1, 4)
    class_ids = np.asarray(class_ids, np.int64)
    message: Any = _Example()
    feature = message.features.feature

    def put(key: str, kind: str, values: Iterable[Any]) -> None:
        target = getattr(feature[key], kind)
        target.SetInParent()  # an empty list is still a list of this kind
        target.value.extend(values)

    put("image/encoded", "bytes_list", [encoded])
    put("image/format", "bytes_list", [image_format.encode()])
    put("image/filename", "bytes_list", [filename.encode()])
    put("image/source_id", "bytes_list", [str(patch_id).encode()])
    put("image/patch_id", "int64_list", [patch_id])
    put("image/height", "int64_list", [patch_size])
    put("image/width", "int64_list", [patch_size])
    for i, side in enumerate(("ymin", "xmin", "ymax", "xmax")):
        put(f"image/object/bbox/{side}", "float_list", (boxes[:, i] / patch_size).tolist())
    put("image/object/class/label", "int64_list", class_ids.tolist())
    put("image/object/class/text", "bytes_list", [classes[i - 1].encode() for i in class_ids])
    put("image/object/is_crowd", "int64_list", [0] * len(boxes))
    put("image/object/area", "float_list", area(boxes).tolist())
    serialised: bytes = message.SerializeToString(deterministic=True)
    return serialised


def frame(record: bytes) -> bytes:
    """A record as it stands in a TFRecord file: length, its checksum, the bytes, their checksum."""
    length = struct.pack("<Q", len(record))
    return b"".join((length, struct.pack("<I", _masked_crc32c(length)), record, struct.pack("<I", _masked_crc32c(record))))


def write_tfrecord(path: str, records: Iterable[bytes]) -> str:
    """Writes a whole TFRecord file and waits until it is on disk.

    Returns:
      Its sha256, hex.
    """
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for record in records:
            framed = frame(record)
            digest.update(framed)
            file.write(framed)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _masked_crc32c(data: bytes) -> int:
    # tensorflow/core/lib/hash/crc32c.h: rotated right by 15 bits plus a constant, so that a checksum of bytes that hold
    # checksums themselves stays useful.
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
