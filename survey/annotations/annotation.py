"""One labelled object, whatever format it came from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Annotation:
    """A labelled box.

    Attributes:
      image: the image's file name as the annotation file gives it.
      image_size: (height, width) in pixels as the annotation file claims, None where it does not say.
      class_name: the label.
      box: (y0, x0, y1, x1) in pixels of the whole image, half-open. Not yet clipped: it may leave the image.
      source: the annotation file, for errors.
    """

    image: str
    image_size: tuple[int, int] | None
    class_name: str
    box: tuple[float, float, float, float]
    source: str
