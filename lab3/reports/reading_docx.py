"""A Word document → HTML with mammoth → blocks; its pictures are kept by their content."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

from lab3.errors import UsageError
from lab3.grading.problems import shown
from lab3.reports.model import Picture
from lab3.reports.reading_blocks import Blocks
from lab3.reports.reading_html import read_fragment
from lab3.reports.reading_pictures import MOST_PICTURE_BYTES, Pictures

_MOST_UNPACKED = 400 << 20
_MOST_XML = 40 << 20  # of one of its files of XML
_MOST_FILES = 4000
_MARK = "lab3-embedded:"
_STYLES = """
p[style-name='标题'] => h1:fresh
p[style-name='标题 1'] => h1:fresh
p[style-name='标题 2'] => h2:fresh
p[style-name='标题 3'] => h3:fresh
p[style-name='标题 4'] => h4:fresh
p[style-name='Title'] => h1:fresh
p[style-name='Subtitle'] => h2:fresh
p[style-name='Code'] => pre:separator('\\n')
p[style-name='代码'] => pre:separator('\\n')
p[style-name='Source Code'] => pre:separator('\\n')
p[style-name='HTML Preformatted'] => pre:separator('\\n')
r[style-name='Verbatim Char'] => code
r[style-name='HTML Code'] => code
"""


def read_docx(data: bytes, pictures: Pictures, *, name: str) -> Blocks:
    """The blocks of the document `name`. Raises UsageError if it is broken or unpacks to more than anybody reads."""
    import mammoth

    _check(data, name)
    kept: list[tuple[bytes, str]] = []

    def keep(image: Any) -> Mapping[str, str]:
        kept.append(_image(image))
        return {"src": f"{_MARK}{len(kept) - 1}"}

    try:
        made = mammoth.convert_to_html(
            io.BytesIO(data),
            convert_image=mammoth.images.img_element(keep),
            style_map=_STYLES,
            include_embedded_style_map=False,
        )
    except Exception as error:  # whatever a library of XML or zip trips over
        raise _broken(name, f"{type(error).__name__}: {shown(str(error))}") from error
    blocks = Blocks()

    def picture(target: str, alt: str) -> Picture:
        number = target.removeprefix(_MARK)
        if number == target:
            return pictures.linked(target, alt)
        image, why = kept[int(number)]
        label = f"picture {int(number) + 1} of {name}"
        return pictures.missing(label, why=why, alt=alt) if why else pictures.embedded(image, target=label, alt=alt)

    read_fragment(made.value, blocks, picture=picture, line=None)
    blocks.join_terminals()
    return blocks


def _image(image: Any) -> tuple[bytes, str]:
    """(bytes, "") or (b"", why not)."""
    try:
        with image.open() as stream:
            data = stream.read(MOST_PICTURE_BYTES + 1)
    except Exception as error:  # a picture that is linked and not held, or whose file is missing
        return b"", f"the document does not hold it: {shown(str(error).partition(chr(10))[0])}"
    return data, ""


def _check(data: bytes, name: str) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise _broken(name, str(error)) from error
    large = any(each.file_size > _MOST_XML for each in entries if each.filename.lower().endswith((".xml", ".rels")))
    if large or len(entries) > _MOST_FILES or sum(each.file_size for each in entries) > _MOST_UNPACKED:
        raise _broken(name, "it unpacks to more than anybody reads")


def _broken(name: str, why: str) -> UsageError:
    return UsageError(f"{shown(name)} is no Word document that can be read", why=why, todo="save it again as .docx")
