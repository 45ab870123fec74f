"""JPEG files: what their pixels depend on, apart from metadata."""

_START_OF_SCAN, _COMMENT, _JFIF, _ADOBE = 0xDA, 0xFE, 0xE0, 0xEE
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xDA)}
_EXIF, _ICC = b"Exif\0\0", b"ICC_PROFILE\0"


def without_metadata(data: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Take the metadata out of a JPEG, which Pillow parses and may fail at.

    Args:
        data: the file; it may be damaged.

    Returns:
        A JPEG of the segments that pixels depend on, and `exif` and `icc_profile` where it has them, as Pillow names
        them. Pictures behind the first one stay where they are, and nothing points to them.
    """
    view, at = memoryview(data), 2
    kept, told, parts = [view[:at]], dict[str, bytes](), dict[int, bytes]()
    total = 0
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _START_OF_SCAN:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        end = at + 2 + (0 if marker in _WITHOUT_LENGTH else int.from_bytes(view[at + 2 : at + 4], "big"))
        content = bytes(view[at + 4 : end])
        if not (_JFIF <= marker <= 0xEF or marker == _COMMENT) or marker in (_JFIF, _ADOBE):
            kept.append(view[at:end])
        elif content.startswith(_EXIF):
            told.setdefault("exif", content)
        elif content.startswith(_ICC) and len(content) > len(_ICC) + 2:
            number, total = content[len(_ICC) : len(_ICC) + 2]
            parts.setdefault(number, content[len(_ICC) + 2 :])
        at = end
    kept.append(view[at:])
    if parts and sorted(parts) == list(range(1, total + 1)):
        told["icc_profile"] = b"".join(parts[number] for number in sorted(parts))
    return b"".join(kept), told
