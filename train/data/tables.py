"""Tables of labels beside images: CSV, TSV and JSON Lines files whose rows name an image and its class."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from train.data.describe import plural
from train.data.files import File, clean, some

STEMS = ("metadata", "labels", "label", "annotations")
COLUMNS = ("label", "labels", "class", "class_name", "classname", "category", "cls", "target")
LARGEST = 2**30  # bytes of a table
LONGEST = 2**20  # characters of a cell
DELIMITERS = ",;\t|"


@dataclass
class Table:
    """What a table says of images. labels: by the place of the image; column: where they come from, None where there is
    no column of labels; covered: images in its folder; without_image: names in rows of which there is no image."""

    name: str
    rows: int
    column: str | None
    columns: tuple[str, ...] = ()
    labels: dict[int, str | None] = field(default_factory=dict)
    covered: int = 0
    without_image: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        return self.column is not None and bool(self.labels)

    def lines(self) -> list[str]:
        """What did not fit together."""
        if not self.labels:
            return [f"{self.name} is not used: none of its {plural(self.rows, 'row')} names an image"]
        if self.column is None:
            return [f"{self.name} is not used: no column of labels among {', '.join(self.columns)}; see --label-column"]
        lines = []
        if self.without_image:
            count = plural(len(self.without_image), "row")
            lines.append(f"{self.name}: {count} without an image, or with several: {some(self.without_image)}")
        return lines


def is_usual(file: File) -> bool:
    """Whether a table has a name that tables of labels have."""
    return os.path.splitext(file.parts[-1].lower())[0] in STEMS


def read_table(file: File, images: Sequence[File], column: str | None) -> Table:
    """Matches a table's rows with the images in its folder, by path, with or without the extension and the folders
    above. column: of the labels; None: the first of COLUMNS that it has.

    Raises ValueError, one line, for a table that cannot be read and for an image that has two labels.
    """
    header, rows = parsed(file)
    above = len(file.parts) - 1
    places = Places({place: image.parts[above:] for place, image in enumerate(images) if inside(image, file)})
    if any(places.find([name])[0] for name in header):  # a table without a header
        rows, header = [header, *rows], [str(number) for number in range(1, len(header) + 1)]
    lowered = [name.lower() for name in header]
    wanted = [column.lower()] if column else COLUMNS
    labels = next((lowered.index(name) for name in wanted if name in lowered), None)
    best, names = {}, []
    for at in range(len(header)):
        if at != labels:
            values = [row[at] if at < len(row) else None for row in rows]
            found, missing = places.find(values)
            if len(found) > len(best):
                best, names = found, missing
    table = Table(file.name, len(rows), None if labels is None else header[labels], tuple(header))
    table.without_image, table.covered = names, len(places.images)
    for number, place in best.items():
        label = text_of(rows[number][labels] if labels is not None and labels < len(rows[number]) else None, file)
        if table.labels.setdefault(place, label) != label:
            two = f"{table.labels[place]!r} and {label!r}"
            raise ValueError(f"{file.name}: {images[place].name} is both {two}; give every image one class")
    return table


def inside(image: File, table: File) -> bool:
    return image.parts[: len(table.parts) - 1] == table.parts[:-1]


class Places:
    """Images by the names that tables give them."""

    def __init__(self, images: dict[int, tuple[str, ...]]):
        """images: parts of their paths from the table's folder."""
        self.images = images
        self.known: dict[int, dict[str, int | None]] = {}  # by how many parts of the path's end; None: of several

    def at(self, depth: int) -> dict[str, int | None]:
        """By the last `depth` parts: paths of just as many before longer ones, with the extension before without."""
        if depth not in self.known:
            known: dict[str, int | None] = {}
            ends = [(n, key(parts[-depth:]), len(parts) > depth) for n, parts in self.images.items()]
            for stripped, longer in product((False, True), (False, True)):
                level: dict[str, int | None] = {}
                for place, end, is_longer in ends:
                    if is_longer == longer and len(self.images[place]) >= depth:
                        end = os.path.splitext(end)[0] if stripped else end
                        level[end] = None if end in level else place
                known = level | known
            self.known[depth] = known
        return self.known[depth]

    def find(self, values: Iterable[Any]) -> tuple[dict[int, int], list[str]]:
        """The images that values name, by the values' numbers, and the values that name none, or several.

        Folders that all values share are dropped where no value names an image with them."""
        paths = [path_of(value) for value in values]
        found = self.found(paths)
        if not found:
            folders = {path[:-1] for path in paths if path}
            shared = len(os.path.commonprefix(sorted(folders))) if folders else 0
            if shared:
                found = self.found([path[shared:] for path in paths])
        missing = ["/".join(path) for number, path in enumerate(paths) if number not in found]
        return found, [clean(name) if name else "(no name)" for name in missing]

    def found(self, paths: list[tuple[str, ...]]) -> dict[int, int]:
        places = {}
        for number, path in enumerate(paths):
            place = self.at(len(path)).get(key(path)) if path else None
            if place is not None:
                places[number] = place
        return places


def path_of(value: Any) -> tuple[str, ...]:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return ()
    parts = tuple(part for part in str(value).strip().replace("\\", "/").split("/") if part not in ("", "."))
    return () if ".." in parts else parts


def key(parts: Sequence[str]) -> str:
    return clean("/".join(parts)).casefold()


def text_of(value: Any, file: File) -> str | None:
    """A label as text; None for a cell without one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, (list, dict)):
        raise ValueError(f"{file.name}: label {json.dumps(value)[:60]}: must be one name or number")
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    text = "" if value is None else str(value).strip()
    return clean(text) if text else None


def parsed(file: File) -> tuple[list[str], list[list[Any]]]:
    """The names of a table's columns and its rows. Raises ValueError for one that cannot be read."""
    try:
        text = decoded(file)
        if file.parts[-1].lower().endswith(".jsonl"):
            return from_json(text)
        return from_csv(text, "\t" if file.parts[-1].lower().endswith(".tsv") else None)
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise ValueError(f"{file.name}: cannot be read as a table ({error}); fix or remove it") from error


def decoded(file: File) -> str:
    data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"more than {LARGEST:,} bytes")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252")  # as Excel writes it on Windows


def from_csv(text: str, delimiter: str | None) -> tuple[list[str], list[list[str]]]:
    first = text.partition("\n")[0]
    delimiter = delimiter or max(DELIMITERS, key=first.count)
    csv.field_size_limit(LONGEST)
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(row)]
    header = [clean(name) if name.strip() else "" for name in rows[0]] if rows else []
    return header, rows[1:]


def from_json(text: str) -> tuple[list[str], list[list[Any]]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise ValueError(f"line {number} is not JSON") from None
            if not isinstance(rows[-1], dict):
                raise ValueError(f"line {number} is no JSON object")
    header = list(dict.fromkeys(name for row in rows for name in row))
    return header, [[row.get(name) for name in header] for row in rows]
