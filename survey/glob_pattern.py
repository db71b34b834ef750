"""Glob patterns of names with slashes, such as those of objects in Cloud Storage."""

import re


def expression(pattern: str) -> str:
    r"""A glob pattern of names with slashes as a regular expression.

    >>> print(expression("a/**/*.tif"))
    a/(?:(?!\.)[^/]*/)*(?!\.)[^/]*\.tif
    """
    parts = pattern.split("/")
    result = ""
    for i, part in enumerate(parts):
        if part == "**":
            # Any number of folders; at the end also the file.
            result += r"(?:(?!\.)[^/]*/)*" + (r"(?!\.)[^/]*" if i == len(parts) - 1 else "")
            continue
        if part[:1] in ("*", "?", "["):
            result += r"(?!\.)"  # a leading dot must be asked for, as on local disks
        for sign in re.findall(r"\[!?\]?[^\]]*\]|.", part, re.DOTALL):
            if sign.startswith("[") and len(sign) > 1:
                inner = re.sub(r"[\[\\^&~|]", r"\\\g<0>", sign[1:-1])
                result += "[" + ("^" + inner[1:] if inner.startswith("!") else inner) + "]"
            else:
                result += {"*": "[^/]*", "?": "[^/]"}.get(sign, re.escape(sign))
        result += "/" if i < len(parts) - 1 else ""
    return result
