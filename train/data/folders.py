"""Folders and archives of images as data sets: which images are in which split and class, by one rule."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from train.data.archives import UNREAD, is_archive, open_archive
from train.data.describe import plural
from train.data.files import OTHER, PACKED, File, Files, Listing, clean, list_archive, list_folder, some
from train.data.tables import Table, is_usual, read_table

SPLITS = {  # names of folders, in any case: those that `datasets` knows, and two more
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
WORD = re.compile(rf"(?<![^\W\d_])({'|'.join(sorted(SPLIT_OF, key=len, reverse=True))})(?![^\W\d_])", re.IGNORECASE)
PLAIN = ("data", "image", "images", "img", "imgs", "photos", "pictures")  # at the end of every class: they say nothing
SPLIT_COLUMNS = ("split", "set", "subset", "fold")
TABLES = "table of another name than metadata or labels (--label-column NAME reads it)"

Placed = list[tuple[tuple[str, ...], int]]  # cleaned parts of paths, and the images' places in the listing


@dataclass(frozen=True)
class Folder:
    """A data set of files. files: by split; classes: of each, None without one; names: the classes of the training
    set in order, none where there are not two; notes: what else was understood, a line each."""

    files: dict[str, list[File]]
    classes: dict[str, list[str | None]]
    names: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        return {split: len(files) for split, files in self.files.items()}

    def labelled(self, split: str) -> tuple[Tensor, tuple[str, ...]]:
        """int64 (N,), -1 without a class of the training set; and the names."""
        index = {name: number for number, name in enumerate(self.names)}
        labels_N = torch.tensor([index.get(name, -1) for name in self.classes[split]], dtype=torch.int64)
        return labels_N, self.names if (labels_N >= 0).any() else ()

    def rows(self, split: str, indices: Sequence[int], labels_N: Tensor) -> Files:
        return Files([self.files[split][index] for index in indices], labels_N)


def read_folder(data: str, label_column: str | None = None) -> Folder | None:
    """The data set in a folder of images, in an archive, or of one image; None for anything else: shards, a Hub id.

    Raises ValueError, one line with the remedy, for data without images and where two readings are possible.
    """
    listing = list_data(data)
    if listing is None:
        return None
    images, notes = listing.images, []
    splits = below_splits(to_splits([(cleaned(image), place) for place, image in enumerate(images)], data, notes))
    classes = {split: [class_of(parts) for parts, _ in placed] for split, placed in splits.items()}
    classes = without_plain_ends(classes)
    places = {split: [place for _, place in placed] for split, placed in splits.items()}
    folders = {
        place: name for split, names in classes.items() for place, name in zip(places[split], names, strict=True)
    }
    if (labels := from_tables(listing, folders, label_column, data, notes)) is not None:
        classes = {split: [labels.get(place) for place in of] for split, of in places.items()}
    else:
        raw = {split: [images[place].parts[-len(parts) : -1] for parts, place in of] for split, of in splits.items()}
        notes += spellings(classes, raw)
    known = set(classes.get("train", next(iter(classes.values())))) - {None}
    notes += unlike(known, classes)
    names = in_order(known) if len(known) > 1 else ()
    files = {split: [images[place] for place in of] for split, of in places.items()}
    return Folder(files, classes, names, (*notes, *listing.lines()))


def list_data(data: str) -> Listing | None:
    """The images and tables of a folder, of an archive that is given itself or lies alone in it, or one image."""
    path = Path(data).expanduser()
    if not path.is_dir():
        return list_file(path, data) if path.is_file() else None
    listing = list_folder(path)
    if listing.images and listing.fonts:
        both = f"images ({listing.images[0].name}) and fonts ({some([file.name for file in listing.fonts])})"
        raise ValueError(f"{data}: holds {both}; keep one kind in it")
    if listing.images:
        if sets := [file.name for file in listing.shards if holds_images(file)]:
            first = listing.images[0].name
            raise ValueError(f"{data}: holds images ({first}) and shards of images ({some(sets)}); keep one kind in it")
        for file in listing.shards:
            listing.leave(OTHER, file.name)
        for file in listing.archives:
            listing.leave(PACKED, file.name)
        return listing
    archives = listing.archives
    if listing.shards or (len(archives) > 1 and all(file.name.lower().endswith(".tar") for file in archives)):
        return None
    if len(archives) > 1:
        names = some([file.name for file in archives])
        raise ValueError(f"{data}: holds {len(archives)} archives ({names}); unpack those that you mean, or give one")
    if archives:
        (archive,) = archives
        if open_archive(archive.source).is_shard():
            return None
        listing.join(list_archive(archive.source, archive.parts[:-1]))
    if not listing.images:
        raise ValueError(no_images(listing, data))
    return listing


def holds_fonts(data: str) -> bool:
    """Whether data are a folder of fonts, without images."""
    path = Path(data).expanduser()
    listing = list_folder(path) if path.is_dir() else Listing()
    return bool(listing.fonts) and not listing.images


def list_file(path: Path, data: str) -> Listing:
    """One image, or the images of an archive."""
    if is_archive(path.name):
        if open_archive(str(path)).is_shard():
            raise ValueError(f"{data}: a WebDataset shard; give the folder that holds it")
        listing = list_archive(str(path))
    elif path.name.lower().endswith(UNREAD):
        raise ValueError(f"{data}: this kind of archive is not read; unpack it and give the folder")
    else:
        listing = Listing()
        listing.add(File((path.name,), str(path)))
        if listing.shards or listing.tables:
            raise ValueError(f"{data}: a file; give the folder that holds it")
    if not listing.images:
        raise ValueError(no_images(listing, data))
    return listing


def no_images(listing: Listing, data: str) -> str:
    files = [file.name for file in (*listing.tables, *listing.shards)]
    found = [*listing.lines(), *([f"only {some(files)}"] if files else [])]
    what = "; ".join(found) or "empty"
    return f"{data}: without usable images or shards: {what}; it must hold images, .parquet or .tar"


def holds_images(file: File) -> bool:
    """Whether a shard has a column of files' bytes."""
    import pyarrow
    import pyarrow.parquet

    if not file.name.endswith(".parquet"):
        return True
    try:
        fields = pyarrow.parquet.read_schema(file.source)
    except (OSError, pyarrow.ArrowInvalid):
        return False
    kinds = [field.type for field in fields]
    kinds += [child.type for kind in kinds if pyarrow.types.is_struct(kind) for child in kind]
    return any(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind) for kind in kinds)


def cleaned(image: File) -> tuple[str, ...]:
    return tuple(clean(part) for part in image.parts)


def split_of(folder: str) -> str | None:
    return SPLIT_OF.get(folder.casefold())


def alone(placed: Placed) -> str | None:
    """The one folder that holds all images."""
    tops = {parts[0] if len(parts) > 1 else None for parts, _ in placed}
    return tops.pop() if len(tops) == 1 else None


def within(placed: Placed) -> Placed:
    return [(parts[1:], place) for parts, place in placed]


def tops_of(placed: Placed) -> list[str]:
    return sorted({parts[0] for parts, _ in placed if len(parts) > 1})


def to_splits(placed: Placed, data: str, notes: list[str]) -> dict[str, Placed]:
    """Images by split, their paths from there: the folders below the wrappers if all are named as splits, else all
    images are for training."""
    while (top := alone(placed)) is not None:
        below = tops_of(within(placed))
        if split_of(top) and not (below and all(map(split_of, below))):
            break
        placed = within(placed)
    tops = tops_of(placed)
    named, others = ([top for top in tops if bool(split_of(top)) is kind] for kind in (True, False))
    if not named:
        refuse_hidden_splits(placed, data)
        return {"train": placed}
    if others:
        nested = any(len(parts) > 2 and parts[0] in named for parts, _ in placed)
        if len(named) == 1 and not nested:
            notes.append(f"{named[0]} is a class, since classes without folders in them lie beside it")
            return {"train": placed}
        kind = "a split" if len(named) == 1 else "splits"
        readings = f"{listed(named)} could be {kind} with {listed(others)} beside, or all of them classes"
        remedy = f"move {listed(others)} elsewhere, or all of them below a folder train/ to make them classes"
        raise ValueError(f"{data}: {readings}; {remedy}")
    if loose := [parts[0] for parts, _ in placed if len(parts) == 1]:
        beside = f"{some(loose)} {'is' if len(loose) == 1 else 'are'} beside {listed(named)}"
        raise ValueError(f"{data}: {beside}; move {'it' if len(loose) == 1 else 'them'} into one of them")
    for split, count in Counter(map(split_of, named)).items():
        if count > 1:
            same = listed([top for top in named if split_of(top) == split])
            raise ValueError(f"{data}: {same} are all names of the {split} split; join them into one folder")
    return {split: [(p[1:], place) for p, place in placed if split_of(p[0]) == split] for split in map(split_of, named)}


def listed(folders: list[str]) -> str:
    return " and ".join(f"{folder}/" for folder in folders[:3]) + (" and others" if len(folders) > 3 else "")


def refuse_hidden_splits(placed: Placed, data: str) -> None:
    """Raises ValueError for folders that differ by the name of a split alone, such as train2017 and val2017, and for
    splits below classes."""
    alike: dict[tuple, dict[str, str]] = {}
    for parts, _ in placed:
        for depth, folder in enumerate(parts[:-1]):
            if word := WORD.search(folder):
                rest = (*parts[:depth], WORD.sub("*", folder).casefold())
                alike.setdefault(rest, {})[split_of(word[0])] = "/".join(parts[: depth + 1])
    for found in alike.values():
        if "train" in found and len(found) > 1:
            remedy = "call them train/ and test/ at the top, or move all below a folder train/ if they are classes"
            raise ValueError(f"{data}: {listed(sorted(found.values()))} could be splits or classes; {remedy}")


def below_splits(splits: dict[str, Placed]) -> dict[str, Placed]:
    """Looks through folders that hold all of a split, unless another split has them as one class of several. Where it
    has classes, so is a folder of images alone, but for one such as images/."""

    def looked_through(placed: Placed, classes: Collection[str] = ()) -> Placed:
        while (top := alone(placed)) is not None and top not in classes:
            if classes and top.casefold() not in PLAIN and not tops_of(within(placed)):
                break
            placed = within(placed)
        return placed

    found = [tops_of(looked_through(placed)) for placed in splits.values()]
    classes = {top for tops in found if len(tops) > 1 for top in tops}
    return {split: looked_through(placed, classes) for split, placed in splits.items()}


def class_of(parts: tuple[str, ...]) -> str | None:
    return "/".join(parts[:-1]) or None


def without_plain_ends(classes: dict[str, list[str | None]]) -> dict[str, list[str | None]]:
    """Classes without a folder such as images/ that lies in each of them."""
    known = {name for names in classes.values() for name in names} - {None}
    ends = {name.rpartition("/")[2].casefold() for name in known}
    if len(ends) != 1 or not ends <= set(PLAIN) or not all("/" in name for name in known):
        return classes
    return {split: [name and name.rpartition("/")[0] for name in names] for split, names in classes.items()}


def from_tables(
    listing: Listing, folders: dict[int, str | None], column: str | None, data: str, notes: list[str]
) -> dict[int, str | None] | None:
    """Labels of images by their place, if they come from tables and not from the folders."""
    has_classes = len(set(folders.values()) - {None}) > 1
    tables: list[Table] = []
    for file in listing.tables:
        if column is None and not is_usual(file):
            listing.leave(TABLES, file.name)
            continue
        try:
            tables.append(read_table(file, listing.images, column))
        except ValueError as error:
            if is_usual(file) and (column or not has_classes):
                raise ValueError(f"{data}: {error}") from error
            notes.append(f"not used: {error}")
    used = [table for table in tables if table.usable]
    if column and not used:
        found = "; ".join(f"{table.name} has {', '.join(table.columns)}" for table in tables) or "there is no table"
        raise ValueError(f"{data}: --label-column {column}: no table that names images has it; {found}")
    if has_classes and column is None:
        for table in used:
            if 2 * len(table.labels) >= table.covered and not agree(table.labels, folders):
                readings = f"classes could be the folders or the column {table.column} of {table.name}"
                remedy = f"--label-column {table.column} takes the column; move the table elsewhere for the folders"
                raise ValueError(f"{data}: {readings}; {remedy}")
        notes += [f"{table.name} is not used: the folders are the classes" for table in tables]
        return None
    notes += [line for table in tables if not column or table.usable for line in table.lines()]
    return joined(used, listing, data, notes) if used else None


def joined(tables: list[Table], listing: Listing, data: str, notes: list[str]) -> dict[int, str | None]:
    """The labels of several tables."""
    labels: dict[int, str | None] = {}
    for table in tables:
        for place, label in table.labels.items():
            if labels.setdefault(place, label) != label:
                name, two = listing.images[place].name, f"{labels[place]!r} and {label!r}"
                raise ValueError(f"{data}: {name} is both {two} in {table.name} and another table; keep one of them")
        notes.append(f"classes: column {table.column} of {table.name}")
        if split := [name for name in table.columns if name.lower() in SPLIT_COLUMNS and name != table.column]:
            notes.append(f"{table.name}: column {split[0]} is not used; folders train/ and test/ make splits")
    if bare := [file.name for place, file in enumerate(listing.images) if place not in labels]:
        notes.append(f"{plural(len(bare))} without a row, so without a class: {some(bare)}")
    return labels


def agree(labels: dict[int, str | None], folders: dict[int, str | None]) -> bool:
    """Whether labels divide images as folders do, whatever they call the parts."""
    pairs = {(label, folders[place]) for place, label in labels.items()}
    return len(pairs) == len({label for label, _ in pairs}) == len({folder for _, folder in pairs})


def spellings(classes: dict[str, list[str | None]], raw: dict[str, list[tuple[str, ...]]]) -> list[str]:
    """Notes on classes whose folders' names differ by what cannot be seen. raw: parts of them as they are stored."""
    spelled: dict[str | None, set[tuple[str, ...]]] = {}
    for split, names in classes.items():
        for name, parts in zip(names, raw[split], strict=True):
            spelled.setdefault(name, set()).add(parts)
    same = sorted(name for name, ways in spelled.items() if name and len(ways) > 1)
    return [f"one class each, spelled in ways that look alike (spaces, Unicode form): {some(same)}"] if same else []


def unlike(known: Collection[str], classes: dict[str, list[str | None]]) -> list[str]:
    """Notes on classes that differ by case, and on those that training lacks."""
    notes = []
    every = {name for names in classes.values() for name in names} - {None}
    cases = Counter(name.casefold() for name in every)
    if same := sorted(name for name in every if cases[name.casefold()] > 1):
        notes.append(f"different classes whose names differ by capitals alone: {some(same)}")
    for split, names in classes.items():
        if len(known) > 1 and (missing := Counter(name for name in names if name and name not in known)):
            count = sum(missing.values())
            notes.append(f"{split}: {plural(count)} of classes that training lacks: {some(sorted(missing))}")
    return notes


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Numbers by their value, other names by their letters and the numbers in them."""

    def natural(name: str) -> tuple:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)], name

    names = list(names)
    if all(re.fullmatch(r"[-+]?\d+(\.\d+)?", name) for name in names):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names, key=natural))
