"""What the user writes after --shards, and the shards that it means, checked against the manifests beside them."""

import itertools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from common import addresses
from common.errors import CannotList, InputError, Missing, Refused, ShardError
from common.manifest import MAX_MANIFEST_BYTES, SUFFIX, manifest_name, parse_manifest
from common.shard_index import open_index
from common.spelling import spelled
from common.stores import find, open_store
from common.stores.retries import Retry

SPLITS = ("train", "val", "test")
OPENED_AT_ONCE = 16  # indexes in flight
_RANGE = re.compile(r"[<{](\d+)\.\.(\d+)[>}]")
_MAGIC = re.compile(r"[*?\[]")
_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True)
class ShardSet:
    """The shards of one split, or of whatever was named.

    Attributes:
        shards: addresses or paths of the tars, in order, none twice.
        manifests: folder address -> {split: Manifest} of those manifests that list one of the shards.
        options: of the stores (never printed). retry: of remote reads.
        notes: lines that the user should see once.
        gone: tars that a manifest lists and a pattern covers, but that are not there; see find_shards(strict=False).
        of_layer: whether these are a layer's tars.
    """

    shards: tuple
    manifests: dict = field(default_factory=dict, repr=False)
    options: dict | None = field(default=None, repr=False)
    retry: Retry = Retry()
    notes: tuple = ()
    gone: tuple = ()
    of_layer: bool = False

    def __iter__(self):
        return iter(self.shards)

    def __len__(self):
        return len(self.shards)

    @property
    def listed(self):
        """Samples that the manifests list, whether they were asked for or not; 0 without a manifest."""
        return sum(m.keyframes for splits in self.manifests.values() for m in splits.values())

    def entry(self, tar):
        """ManifestShard of one of the shards, or None."""
        folder, name = addresses.split(tar)
        manifests = self.manifests.get(folder, {}).values()
        return next((m.by_name[name] for m in manifests if name in m.by_name), None)


def expand_ranges(pattern):
    """Every name that the `<000..099>` and `{000..099}` ranges of a pattern stand for, in order.

    Widths are kept (`<08..11>` gives 08, 09, 10, 11). Raises ValueError for a range that runs backwards.
    """
    parts = _RANGE.split(pattern)  # text, first, last, text, first, last, … text
    choices = []
    for first, last in zip(parts[1::3], parts[2::3], strict=True):
        if int(first) > int(last):
            raise InputError(f"{addresses.shown(pattern)}: the range {first}..{last} runs backwards")
        width = len(first)
        choices.append([f"{i:0{width}d}" for i in range(int(first), int(last) + 1)])
    texts = parts[::3]
    return [
        texts[0] + "".join(n + t for n, t in zip(numbers, texts[1:], strict=True))
        for numbers in itertools.product(*choices)
    ]


def find_shards(patterns, split=None, options=None, retry=None, strict=True):
    """The ShardSet that patterns name.

    Args:
        patterns: one or several of: the path or address of a tar, a glob, a `{000..099}` or `<000..099>` range, a list of
            these with commas, a folder, a manifest, a pipe: command. A ShardSet is returned as it is.
        split: which split a folder stands for; None: all that it holds.
        options, retry: see common.stores.open_store.
        strict: False does without what is damaged or missing, for commands that check or mend; `gone` names the latter.
    A range may reach past the last shard, but must meet one. Of what a manifest lists and a pattern covers, nothing may
    be missing. Raises ValueError (ShardError), naming what matches nothing or is missing, and the remedy.
    """
    if isinstance(patterns, ShardSet):
        return patterns
    if isinstance(patterns, (str, os.PathLike)):
        patterns = [patterns]
    patterns = [part for pattern in patterns for part in _listed_apart(str(pattern))]
    if not patterns:
        raise ShardError("no shards given; name a folder, tars or a manifest")
    folders = _Folders(options, retry or Retry(), strict)
    found = dict.fromkeys(itertools.chain.from_iterable(_resolve(p, split, folders) for p in patterns))
    gone = tuple(tar for tar in folders.gone if tar not in found)
    manifests, notes = _checked([*found, *gone], folders)
    return ShardSet(tuple(found), manifests, options, folders.retry, notes, gone)


def find_beside(shards, split):
    """The ShardSet of another split in the folders of a ShardSet's shards; it has no shards where there is none."""
    folders = _Folders(shards.options, shards.retry)
    found = []
    for folder in dict.fromkeys(addresses.split(s)[0] for s in shards if not addresses.is_pipe(s)):
        found += _of_folder(folder, split, folders) or []
    manifests, notes = _checked(found, folders)
    return ShardSet(tuple(found), manifests, shards.options, shards.retry, notes)


def open_stores(shards):
    """Folder address -> Store of the folders of a ShardSet's shards."""
    folders = dict.fromkeys(addresses.split(tar)[0] for tar in shards if not addresses.is_pipe(tar))
    return {folder: open_store(folder or ".", shards.options, shards.retry) for folder in folders}


def load_indexes(shards, stores=None):
    """(ShardIndex, Stat of the tar) of every shard of a ShardSet, read in parallel and held against the manifests.

    stores: what open_stores gives, where it is needed later too. Raises ShardError; see common.shard_index.open_index.
    """
    stores = stores or open_stores(shards)

    def load(tar):
        folder, name = addresses.split(tar)
        entry = shards.entry(tar)
        try:
            index, stat = open_index(stores[folder], name, of_layer=shards.of_layer)
        except Missing as error:
            raise ShardError(f"{error}{'; its manifest lists it' if entry else ''}") from None
        check_listed(index, entry)
        return index, stat

    return in_parallel(load, shards)


def check_listed(index, entry):
    """Raise ShardError where an index is not of the shard that a manifest lists as `entry`; None lists nothing."""
    if entry is not None and (entry.sha256, entry.keyframes) != (index.tar_sha256, len(index.keys)):
        raise ShardError(
            f"{index.tar}: is not the shard that its manifest lists; copy it anew or run {spelled('preprocess.run')} again"
        )


def in_number_order(names):
    """Names sorted by the numbers in them, train-1000.tar behind train-999.tar: the order of a manifest."""
    return sorted(names, key=lambda name: [(int(p), p) if p.isdecimal() else (-1, p) for p in _NUMBER.split(name)])


def in_parallel(function, items):
    """function of each item, in order, by a few threads; the first error is raised and ends the rest."""
    with ThreadPoolExecutor(OPENED_AT_ONCE, "open") as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()


class _Folders:
    """The stores and manifests of the folders that were met, each opened once."""

    def __init__(self, options, retry, strict=True):
        self.options, self.retry, self.strict = options, retry, strict
        self._stores, self._manifests = {}, {}
        self.refused = {}  # folder -> the error that says why what is in it cannot be told
        self.gone = {}  # the keys are tars that are listed and covered, but not there

    def store(self, folder):
        if folder not in self._stores:
            self._stores[folder] = open_store(folder or ".", self.options, self.retry)
        return self._stores[folder]

    def manifest(self, folder, split, strict=None):
        """Manifest of a split in a folder, or None where there is none.

        S3 refuses, to whoever may not list, what is not there: that too is None, and `refused` keeps what was said.
        """
        key = (folder, split)
        if key not in self._manifests:
            store, name = self.store(folder), manifest_name(split)
            try:
                self._manifests[key] = parse_manifest(store.read(name, MAX_MANIFEST_BYTES), store.path(name))
            except Missing:
                self._manifests[key] = None
            except Refused as error:
                self._manifests[key] = None
                self.refused[folder] = error
            except ShardError:
                if self.strict if strict is None else strict:
                    raise
                self._manifests[key] = None
        return self._manifests[key]

    def names(self, folder):
        """Names in a folder. Raises CannotList."""
        return self.store(folder).list()

    def exists(self, folder, name):
        """Whether a file can be read in a folder; not, where it is refused."""
        try:
            return self.store(folder).exists(name)
        except Refused as error:
            self.refused[folder] = error
            return False


def _listed_apart(pattern):
    """The parts of a comma-separated list; a pattern whose commas belong to a path stays whole."""
    if "," not in pattern or addresses.is_pipe(pattern) or ("?" in pattern and addresses.is_remote(pattern)):
        return [pattern]
    folder = os.path.dirname(pattern)
    if os.path.exists(pattern) or ("," in folder and os.path.isdir(folder)):
        return [pattern]
    return [part for part in pattern.split(",") if part]


def _resolve(pattern, split, folders):
    """Addresses of the tars that one pattern stands for."""
    if addresses.is_pipe(pattern):
        return expand_ranges(pattern)
    if not addresses.is_remote(pattern):
        pattern = pattern.removeprefix("file://")
    folder, name = addresses.split(pattern)
    if name.endswith(SUFFIX) and not _MAGIC.search(name):
        return _of_manifest(folder, name, folders)
    if is_folder(pattern):
        folder = addresses.plain_folder(pattern)
        found = _of_folder(folder, split, folders)
        if not found:
            if folder in folders.refused:
                raise folders.refused[folder]
            wanted = f"{split} shards" if split else "shards"
            raise ShardError(
                f"{addresses.shown(pattern)}: holds no {wanted}; make them with: make shards (or check the path)"
            )
        return found
    found = [pattern] if _exists_here(pattern) else _matching(pattern, folders)
    if not found:
        raise ShardError(
            f"no shard matches {addresses.shown(pattern)!r}; make them with: make shards (or check the path)"
        )
    return found


def is_folder(pattern):
    """Whether a pattern names a folder: one that is there, or an address that does not look like a file's."""
    pattern = str(pattern)
    if addresses.is_pipe(pattern):
        return False
    if not addresses.is_remote(pattern):
        return os.path.isdir(pattern.removeprefix("file://"))
    _, name = addresses.split(pattern)
    return not name or not (re.search(r"[*?]", name) or _RANGE.search(name) or name.endswith((".tar", ".json")))


def _exists_here(pattern):
    return not addresses.is_remote(pattern) and os.path.isfile(pattern)


def _of_manifest(folder, name, folders):
    manifest = folders.manifest(folder, name.removesuffix(SUFFIX), strict=True)
    if manifest is None:
        raise ShardError(f"{folders.store(folder).path(name)}: no such manifest")
    return [addresses.join(folder, shard.name) for shard in manifest.shards]


def _of_folder(folder, split, folders):
    """Tars of a split in a folder, by its manifest where there is one, else by their names; [] where there are none."""
    found = []
    for own in (split,) if split else SPLITS:
        manifest = folders.manifest(folder, own)
        if manifest is not None:
            found += [addresses.join(folder, shard.name) for shard in manifest.shards]
            continue
        try:
            names = folders.names(folder)
        except CannotList as error:
            folders.refused.setdefault(folder, error)
            continue
        found += [addresses.join(folder, n) for n in in_number_order(names) if fnmatchcase(n, f"{own}-*.tar")]
    if not split and not found:
        try:
            names = in_number_order(folders.names(folder))
            found = [addresses.join(folder, n) for n in names if n.endswith(".tar")]
        except CannotList:
            pass
    return found


def _matching(pattern, folders):
    """Tars that a glob or range stands for, where they are there or a manifest lists them."""
    folder, name = addresses.split(pattern)
    if not addresses.is_remote(pattern) and os.path.isdir(folder):  # whatever characters are in its name
        names = [addresses.join(folder, n) for n in expand_ranges(name)]
    else:
        names = [addresses.join(f, n) for f in expand_ranges(folder) for n in expand_ranges(name)]
    if len(names) == 1 and not _MAGIC.search(addresses.split(names[0])[1]) and addresses.is_remote(pattern):
        return names  # one address, written out: opening it tells whether it is there
    found, by_folder = [], {}
    for name in names:
        by_folder.setdefault(addresses.split(name)[0], []).append(addresses.split(name)[1])
    for folder, wanted in by_folder.items():
        for own in _folders_of(folder, folders):
            found += _matches_in(own, wanted, folders)
    return found


def _folders_of(folder, folders):
    """The folders that one with *, ? and [] in it stands for; itself, where it is there under its very name."""
    if addresses.scheme_of(folder) in ("http", "https") or not _MAGIC.search(folder):
        return [folder]  # an http server lists no folders, and its ? begins a query
    if addresses.is_remote(folder) and not re.search(r"[*?]", folder) and _is_there(folder, folders):
        return [folder]
    return find(folder, folders.options, folders.retry)


def _is_there(folder, folders):
    try:
        return bool(folders.names(folder))
    except CannotList:
        return any(folders.manifest(folder, split) for split in SPLITS)


def _matches_in(folder, wanted, folders):
    """Tars of one folder that one of the `wanted` names or globs covers."""
    store = folders.store(folder)
    plain = {name for name in wanted if not _MAGIC.search(name)}
    globs = [name for name in wanted if name not in plain]

    def covered(name):
        return (
            name in plain
            or name in globs
            or (name.endswith(".tar") and not name.startswith(".") and any(fnmatchcase(name, g) for g in globs))
        )

    splits = dict.fromkeys(name.rpartition("-")[0] for name in wanted if "-" in name)
    splits = [s for s in splits if s and not _MAGIC.search(s)] or list(SPLITS)
    listed = [s.name for split in splits if (m := folders.manifest(folder, split)) for s in m.shards if covered(s.name)]
    try:
        there = {name for name in folders.names(folder) if covered(name)}
    except CannotList:
        there = set(listed) or _found_by_name(folder, wanted, folders)
        if not there and folder in folders.refused:
            raise folders.refused[folder] from None
        if globs and not there:
            raise
    gone = [name for name in listed if name not in there]
    if gone and folders.strict:
        others = f", nor are {len(gone) - 1} others" if len(gone) > 1 else ""
        raise ShardError(
            f"{store.path(gone[0])}: its manifest lists it, but it is not there{others}; copy it, "
            f"run {spelled('preprocess.run')} again, or name the shards that you want"
        )
    folders.gone |= dict.fromkeys(addresses.join(folder, name) for name in gone)
    order = {name: i for i, name in enumerate(wanted)}
    return [addresses.join(folder, n) for n in sorted(in_number_order(there), key=lambda n: order.get(n, 0))]


def _found_by_name(folder, wanted, folders):
    """Those of the names that are there under their very name, in a folder that does not list."""
    names = [name for name in wanted if not re.search(r"[*?]", name)]
    there = in_parallel(lambda name: folders.exists(folder, name), names)
    return {name for name, found in zip(names, there, strict=True) if found}


def _checked(shards, folders):
    """(manifests, notes) of the folders of `shards`: what was left out, and what no manifest lists."""
    manifests, notes = {}, []
    chosen = {}
    for tar in (s for s in shards if not addresses.is_pipe(s)):
        folder, name = addresses.split(tar)
        chosen.setdefault((folder, name.rpartition("-")[0]), []).append(name)
    for (folder, split), names in chosen.items():
        if not split:
            continue  # a name of one's own, which no manifest has
        manifest = folders.manifest(folder, split)
        where = folders.store(folder).path(manifest_name(split))
        if manifest is None:
            notes.append(_without_manifest(where, names))
            continue
        manifests.setdefault(folder, {})[split] = manifest
        samples = sum(manifest.by_name[n].keyframes for n in names if n in manifest.by_name)
        if samples < manifest.keyframes:
            notes.append(f"{samples} of the {manifest.keyframes} samples of {where}: the other shards were not named")
        strange = [n for n in names if n not in manifest.by_name]
        if strange:
            others = f" and {len(strange) - 1} others" if len(strange) > 1 else ""
            notes.append(f"{strange[0]}{others}: not in {where}")
    return manifests, tuple(notes)


def _without_manifest(where, names):
    """The note on shards that nothing can be held against; their numbers may show that some are missing."""
    numbers = {int(found[-1]) for name in names if (found := re.findall(r"\d+", name))}
    gaps = sorted(set(range(max(numbers, default=0))) - numbers) if len(numbers) == len(names) else []
    named = ", ".join(map(str, gaps[:3])) + ", …" * (len(gaps) > 3)
    missing = f"; by their numbers {len(gaps)} are missing ({named})" if gaps else ""
    whole = f"the {len(names)} shards are" if len(names) > 1 else "this one shard is"
    return f"{where}: there is no such manifest, so nothing tells whether {whole} all of the set{missing}; copy it too"
