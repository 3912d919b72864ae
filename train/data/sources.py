"""Where images come from: a Hub id, a folder of images, parquet or WebDataset shards, stored or streamed, as rows whose
files are not decoded yet."""

from __future__ import annotations

import errno
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetsError
from torch import Tensor

from train.data.files import Row, list_folder
from train.data.folders import Folder, in_order, read_folder, split_of

BLOCK = 2_048  # rows of a stream that are read, and mixed, together
FAULTS = (DatasetsError, OSError, ValueError, tarfile.TarError)  # what bad data raise in `datasets`

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)

Label = int | str | None  # as it is stored
Position = tuple[int, int, int]  # in a stream: epoch, shards done in it, rows done in the next shard


@dataclass(frozen=True)
class Layout:
    """The columns of a set that hold the image and its label. key: of the label where its column holds JSON; names: of
    a ClassLabel, whose values are numbers. None where there is none."""

    image: str
    label: str | None = None
    key: str | None = None
    names: tuple[str, ...] | None = None

    def value(self, cell: dict | Label) -> Label:
        """The label in a cell of its column."""
        return (cell or {}).get(self.key) if self.key else cell

    def numbers(self, known: Iterable[Label]) -> tuple[dict[Label, int], tuple[str, ...]]:
        """The numbers of the labels, and their names: a ClassLabel's own, else the values `known`, sorted."""
        if self.names is not None:
            return {number: number for number in range(len(self.names))}, self.names
        values = {str(value): value for value in set(known) - {None}}
        names = in_order(values)
        return {values[name]: number for number, name in enumerate(names)}, names


def layout_of(features: Features | None, data: str, label_column: str | None = None) -> Layout:
    """The first column of images; of labels the one that is asked for, else the first of class labels, else `label`,
    `cls` or the key `label` in `json`."""
    features = features or Features()
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    # Else the files' bytes, alone or beside a path, as other programs write them.
    binary = Value("binary"), Value("large_binary")
    images += [n for n, f in features.items() if f in binary or (isinstance(f, dict) and "bytes" in f)]
    if not images:
        raise ValueError(f"{data}: no image column among {', '.join(features)}; store one as datasets.Image")
    columns = {name: f for name, f in features.items() if name != images[0] and isinstance(f, (ClassLabel, Value))}
    if label_column and label_column not in columns:
        raise ValueError(f"{data}: --label-column {label_column}: must be one of {', '.join(columns) or 'none'}")
    if label_column:
        columns = {label_column: columns[label_column]}
    for name, feature in columns.items():
        if isinstance(feature, ClassLabel):
            return Layout(images[0], name, names=tuple(feature.names))
    for name in [label_column] if label_column else ("label", "cls"):
        if name in columns:
            return Layout(images[0], name)
    json = features.get("json")
    if isinstance(json, dict) and isinstance(json.get("label"), Value):
        return Layout(images[0], "json", key="label")
    return Layout(images[0])


class Shards:
    """The splits of a set in parquet, arrow or WebDataset shards, or on the Hub, in the cache of `datasets`."""

    notes: tuple[str, ...] = ()

    def __init__(self, splits: dict[str, Dataset], data: str, label_column: str | None):
        self.splits, self.data = splits, data
        self.layouts = {name: layout_of(split.features, data, label_column) for name, split in splits.items()}

    @property
    def sizes(self) -> dict[str, int]:
        return {name: len(split) for name, split in self.splits.items()}

    def values(self, split: str) -> list[Label]:
        """The labels of a split as they are stored."""
        plan, rows = self.layouts[split], self.splits[split]
        return [plan.value(cell) for cell in rows[plan.label][:]] if plan.label else [None] * len(rows)

    def labelled(self, split: str) -> tuple[Tensor, tuple[str, ...]]:
        """int64 (N,), -1 for a label that the training set has not; and the names."""
        known = "train" if "train" in self.splits else split
        plan, values = self.layouts[known], self.values(split)
        index, names = plan.numbers(() if plan.names else values if known == split else self.values(known))
        labels_N = torch.tensor([index.get(value, -1) for value in values], dtype=torch.int64)
        return labels_N, names if (labels_N >= 0).any() else ()

    def rows(self, split: str, indices: np.ndarray, labels_N: Tensor) -> Stored:
        return Stored(self.splits[split], self.layouts[split].image, indices, labels_N)


def open_stored(data: str, label_column: str | None = None) -> Folder | Shards:
    """The splits of a set. A folder or an archive of images is read where it is; the Hub's files and shards are copied
    into the cache of `datasets`. Raises ValueError, one line, for data that cannot be found or read."""
    return read_folder(data, label_column) or Shards(load(data, streaming=False), data, label_column)


def open_streamed(data: str) -> dict[str, IterableDataset]:
    """The splits of a set on the Hub or in shards, of which nothing is copied. Raises ValueError like `open_stored`."""
    path = Path(data).expanduser()
    listing = list_folder(path) if path.is_dir() else None
    shards = listing and (listing.shards or [f for f in listing.archives if f.name.lower().endswith(".tar")])
    if path.is_file() or (listing and (listing.images or (listing.archives and not shards))):
        raise ValueError(f"{data}: a folder of images is read where it is, without a copy; do not stream it")
    return load(data, streaming=True)


def load(data: str, *, streaming: bool) -> dict[str, Dataset] | dict[str, IterableDataset]:
    """The splits by their usual names."""
    folder = Path(data).expanduser()
    if not folder.is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", data):
        raise ValueError(f"{data}: no such folder; give a folder of images or shards, or a Hub id (owner/name)")
    try:
        splits = load_dataset(str(folder) if folder.is_dir() else data, streaming=streaming)
    except FAULTS as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        if isinstance(cause, OSError) and cause.errno in UNWRITABLE:
            raise cause from None  # a fault of the cache, not of the data
        fault, remedy = "not a folder, nor found on the Hub", "check its name and the connection"
        if folder.is_dir():
            fault, remedy = "folder without usable images or shards", "it must hold images, .parquet or .tar"
        raise ValueError(f"{data}: {fault}: {reason(error)}; {remedy}") from error
    usual = {split_of(name) or name: split for name, split in splits.items()}
    return usual if len(usual) == len(splits) else dict(splits)


def reason(error: Exception) -> str:
    """The first line of an error, or of its cause where it says no more than that there is one."""
    cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None
    lines = str(cause or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class Stored:
    """Rows of a split on disk, by place."""

    def __init__(self, split: Dataset, column: str, indices: np.ndarray, labels_N: Tensor):
        """indices: of the rows that are taken, in order; labels_N: of those."""
        self.cells = split.select_columns([column]).cast_column(column, Image(decode=False)).select(indices)
        self.column, self.indices, self.labels_N = column, indices, labels_N

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, places: Sequence[int]) -> list[Row]:
        cells = zip(places, self.cells[places][self.column], strict=True)
        return [row(cell, self.labels_N[place].item(), f"row {self.indices[place]}") for place, cell in cells]

    def after(self, place: int) -> int:
        """The place to read instead of one whose image cannot be."""
        return (place + 1) % len(self)


class Stream:
    """Rows of shards in an endless order that follows from the seed alone, by place: what is at a place never changes.

    Every epoch takes the shards in a new order, and rows are mixed within blocks of BLOCK. The block in use is in
    memory, undecoded, and the next one, which is read meanwhile. Reading forwards is cheap; any other place costs
    reading on from the latest block before it whose beginning is known: see `seek`.
    """

    def __init__(
        self, split: IterableDataset, layout: Layout, index: dict[Label, int], data: str, *, skip: int, seed: int
    ):
        """split: undecoded; index: the labels' numbers; skip: rows left out at the beginning of the first shard."""
        self.shards = [split.shard(split.num_shards, number) for number in range(split.num_shards)]
        self.layout, self.index, self.data, self.skip, self.seed = layout, index, data, skip, seed
        self.begins: dict[int, Position] = {0: (0, 0, 0)}  # of blocks
        self.blocks: dict[int, Future[list[Row]]] = {}
        self.reader = ThreadPoolExecutor(1)
        self.next, self.rows = 0, self.walk(self.begins[0])  # the block that comes next, and its rows

    def read(self, places: Sequence[int]) -> list[Row]:
        first, last = min(places) // BLOCK, max(places) // BLOCK
        self.blocks = {number: block for number, block in self.blocks.items() if number >= first}
        for number in range(first, last + 2):
            if number not in self.blocks:
                self.blocks[number] = self.reader.submit(self.block, number)
        return [self.blocks[place // BLOCK].result()[place % BLOCK] for place in places]

    def after(self, place: int) -> int:
        """The place to read instead of one whose image cannot be: in the same block."""
        return place // BLOCK * BLOCK + (place + 1) % BLOCK

    def position(self, place: int) -> tuple[int, Position]:
        """The latest block up to a place whose beginning is known, and that beginning: for `seek`."""
        known = max(number for number in list(self.begins) if number <= place // BLOCK)  # a copy: another thread adds
        return known, self.begins[known]

    def seek(self, block: int, begin: Position) -> None:
        """Makes a block and those after it cheap to read, by the `position` of an equal stream."""
        self.begins[block] = tuple(begin)

    def block(self, number: int) -> list[Row]:
        if number != self.next:
            self.next, begin = self.position(number * BLOCK)
            self.rows = self.walk(begin)
        while self.next <= number:
            ends, rows = zip(*islice(self.rows, BLOCK), strict=True)
            self.next += 1
            self.begins[self.next] = ends[-1]
        return [rows[place] for place in np.random.default_rng((self.seed, 1, number)).permutation(BLOCK)]

    def walk(self, begin: Position) -> Iterator[tuple[Position, Row]]:
        """Rows from a position on, without end, each with the position after it. Raises ValueError where there is none,
        and like `rows_of`."""
        epoch, first, done = begin
        while True:
            order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.shards)).tolist()
            found = begin != (epoch, 0, 0)
            for turn in range(first, len(order)):
                done = max(done, 0 if order[turn] else self.skip)
                where = f"{self.data}: shard {order[turn]}"
                with closing(cells_of(self.shards[order[turn]].skip(done), where)) as cells:  # and its file
                    for entry in rows_of(cells, self.layout, self.index, where, first=done):
                        done, found = done + 1, True
                        yield (epoch, turn, done), entry
                done = 0
            if not found:
                raise ValueError(f"{self.data}: no rows after the first {self.skip:,}, too few; do not stream")
            epoch, first = epoch + 1, 0


def rows_of(
    cells: Iterable[dict], layout: Layout, index: dict[Label, int], where: str, *, first: int = 0
) -> Iterator[Row]:
    """Rows of a streamed shard, from the number `first` on. Raises ValueError for a label that has no number."""
    for number, cells_ in enumerate(cells, first):
        name = f"{where}, row {number}"
        label = layout.value(cells_[layout.label]) if layout.label else None
        if label not in index and label not in (None, -1):
            remedy = "store the labels as datasets.ClassLabel, or do not stream"
            raise ValueError(f"{name}: label {label!r} is none of those that the set begins with; {remedy}")
        yield row(cells_[layout.image], index.get(label, -1), name)


def cells_of(shard: IterableDataset, where: str) -> Iterator[dict]:
    """A streamed shard as it is stored. Raises ValueError, one line, where it cannot be read."""
    try:
        yield from shard
    except FAULTS as error:
        raise ValueError(f"{where} cannot be read: {reason(error)}; fix it, then the same command goes on") from error


def row(cell: dict | None, label: int, where: str) -> Row:
    """A row of an undecoded image column; where: its name if it has none."""
    cell = cell or {"bytes": None, "path": None}
    return Row(cell["path"] or where, cell["path"] if cell["bytes"] is None else cell["bytes"], label)
