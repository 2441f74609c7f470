"""What a benchmark's server takes, as a file: JSON, JSON lines, or a sheet."""

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from warren.errors import ConfigError
from warren.storage import Location

_MAX_CELL_CHARS = 32_767  # of Excel
_NOT_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_PARTS = {  # of ECMA-376, the least that a sheet needs
    "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{_TYPE}.sheet.main+xml"/>'
    f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_TYPE}.worksheet+xml"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
    "xl/workbook.xml": f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}"><sheets>'
    '<sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{_OFFICE}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
}


def write_submission(report: Mapping[str, Any], file: Location) -> None:
    """Write the submission of a report of `score_answers` as its server takes it.

    Args:
        report: The report.
        file: Where to; its ending must be that of the format.

    Raises:
        ConfigError: The benchmark has nothing to submit, or the file's ending is of another format.
    """
    content, name = report["submission"], f"{report['benchmark']} ({report['convention']})"
    if content is None or report["needs_judge"]:
        raise ConfigError(f"{name} has no server: there is nothing to submit; leave --submission out")
    ending = report["submission_format"]
    if not file.name.endswith(ending):
        raise ConfigError(f"--submission is {file}; what the server of {name} takes ends in {ending}")
    file.put_bytes(_FORMATS[ending](content))


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")


def _json_lines(content: Sequence[Any]) -> bytes:
    return b"".join(_json(row) + b"\n" for row in content)


def sheet(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """Return a table as a sheet of Excel. The same table gives the same bytes.

    Characters that XML cannot hold become spaces, and texts end where Excel's cells do, after 32,767 characters.
    """
    body = "".join(_row(number, values) for number, values in enumerate([columns, *rows], 1))
    parts = {
        **_PARTS,
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{_MAIN}"><sheetData>{body}</sheetData></worksheet>',
    }
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            # `ZipInfo` has a fixed date; a name alone would take the time of writing.
            archive.writestr(zipfile.ZipInfo(name), f"{_HEAD}{text}", zipfile.ZIP_DEFLATED)
    return sink.getvalue()


def _row(number: int, values: Sequence[Any]) -> str:
    return f'<row r="{number}">{"".join(_cells(number, values))}</row>'


def _cells(number: int, values: Sequence[Any]) -> Iterator[str]:
    for column, value in enumerate(values):
        place = f"{_letters(column)}{number}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f'<c r="{place}"><v>{value}</v></c>'
        elif value is not None:
            text = escape(_NOT_XML.sub(" ", str(value))[:_MAX_CELL_CHARS])
            yield f'<c r="{place}" t="inlineStr"><is><t xml:space="preserve">{text}</t></is></c>'


def _letters(column: int) -> str:
    """Return the letters of a column: A to Z, AA and on."""
    letters, rest = "", column + 1
    while rest:
        rest, digit = divmod(rest - 1, 26)
        letters = chr(ord("A") + digit) + letters
    return letters


_FORMATS: Mapping[str, Callable[[Any], bytes]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".xlsx": lambda content: sheet(content["columns"], content["rows"]),
}
