"""How files of a tar are grouped into samples. No file is left out silently.

WebDataset's rule: neighbours that share their name up to the first dot of its last part. The rest of the name is the
field: `0.jpg` and `0.txt` are fields `jpg` and `txt` of sample `0`. Files whose own names have dots break that rule
(`page.0.jpg`, `page.0.txt`, `page.1.jpg`, …), so what shares its first part is looked at once more:

* An image and a text with equal names up to the last dot are a sample (`page.0`).
* The other files are one sample (`0.input.jpg`, `0.outputs.txt`), but a number is part of the name: `page.1.jpg` alone
  is a sample without a text.
* Fields of other kinds (`0.cls`, `0.seg.png` beside `0.jpg` and `0.txt`) belong to the sample and are not read.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "img", "tif", "tiff")
_TEXTS = ("txt", "caption", "json")
_SYSTEM_FILES = ("._", ".DS_Store")  # what macOS adds to tars
_MAX_HELD = 256

Group = tuple[str, tuple["Member", ...]]


@dataclass(frozen=True)
class Member:
    """A file of a tar.

    Attributes:
        name: Its path in the tar.
        data: Its bytes.
        fault: Why it cannot be read.
    """

    name: str
    data: bytes = b""
    fault: str = ""

    @property
    def stem(self) -> str:
        """Path up to the last dot of its last part."""
        folder, slash, name = self.name.rpartition("/")
        return folder + slash + (name.rpartition(".")[0] or name)

    @property
    def first_part(self) -> str:
        """Path up to the first dot of its last part, behind the dots it begins with."""
        folder, slash, name = self.name.rpartition("/")
        start = len(name) - len(name.lstrip("."))
        dot = name.find(".", start)
        return folder + slash + (name if dot < 0 else name[:dot])

    @property
    def suffix(self) -> str:
        """What follows the last dot, in lower case."""
        _, dot, suffix = self.name.rpartition("/")[2].rpartition(".")
        return suffix.lower() if dot else ""

    @property
    def is_image(self) -> bool:
        """Whether its name ends as an image's does."""
        return self.suffix in IMAGES

    @property
    def is_text(self) -> bool:
        """Whether its name ends as a caption's or a record's does."""
        return self.suffix in _TEXTS


def group_members(members: Iterable[Member]) -> Iterator[Group]:
    """Yield the samples of a tar as (name, members); every file is in one, except those that macOS adds."""
    held: list[Member] = []
    for member in members:
        if member.name.rpartition("/")[2].startswith(_SYSTEM_FILES):
            continue
        if held and _begins_anew(held, member):
            yield from _samples(held)
            held = []
        held.append(member)
    yield from _samples(held)


def _begins_anew(held: list[Member], member: Member) -> bool:
    last = held[-1]
    if last.first_part != member.first_part or any(other.name.lower() == member.name.lower() for other in held):
        return True
    # A numbered page is complete, or very many files share a name: the held files get no further members.
    is_over = _is_numbered(last) and _is_whole([other for other in held if other.stem == last.stem])
    return last.stem != member.stem and (is_over or len(held) >= _MAX_HELD)


def _samples(held: list[Member]) -> Iterator[Group]:
    """Cut files that share their first part into samples."""
    parts: dict[str, list[Member]] = {}
    for member in held:
        parts.setdefault(member.stem, []).append(member)
    first = held[0].first_part if held else ""
    # `0.1.jpg`, `0.2.jpg`, `0.txt`: numbered images of one text.
    plain, others = parts.get(first, []), [member for member in held if member.stem != first]
    shares_text = any(m.is_text for m in plain) and not _is_whole(plain) and not any(m.is_text for m in others)
    rest: list[Member] = []
    for stem, part in parts.items():
        if _is_whole(part) or (_is_numbered(part[0]) and not shares_text):
            yield stem, tuple(part)
        else:
            rest += part
    if rest and not _is_whole(plain):
        yield first, tuple(rest)


def _is_whole(part: Sequence[Member]) -> bool:
    return any(member.is_image for member in part) and any(member.is_text for member in part)


def _is_numbered(member: Member) -> bool:
    """Whether what stands between the first and the last dot ends with a number, which counts and names no field."""
    return member.stem != member.first_part and member.stem.rpartition(".")[2].isdigit()
