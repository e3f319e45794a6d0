"""What a disk holds after a power cut, from the journal of everything that was asked of it.

The model is what POSIX promises and no more: the content of a file is on the disk after a sync of
the file, its name after a sync of the directory. What was not synced may be there or not: of a
file's writes any of them, some torn; of a directory's changes the first few, as every journaling
file system keeps their order. SQLite's shared memory is never on the disk.
"""

import random
import shutil
from dataclasses import replace
from pathlib import Path

FORGOTTEN = ("-shm",)
SECTOR_BYTES = 512
TORN_SHARE = 0.05
# How much of what was not synced is on a disk all the same.
SHARES = (0.1, 0.5, 0.9, 1.0)


class File:
    """The content of one inode: what is on the disk, and what was written since the last sync."""

    def __init__(self, content=b""):
        self.synced = bytearray(content)
        self.pending = []

    def change(self, operation):
        self.pending.append(operation)

    def sync(self):
        for operation in self.pending:
            _apply(self.synced, operation)
        self.pending = []

    def after(self, chance, share):
        """Return the content after a cut that lets this share of the pending changes through.

        Some of them come in part: a disk writes sectors.
        """
        content = bytearray(self.synced)
        for operation in self.pending:
            if chance.random() < share:
                is_torn = operation.kind == "write" and chance.random() < TORN_SHARE
                sectors = -(-len(operation.data) // SECTOR_BYTES)
                end = chance.randint(0, sectors) * SECTOR_BYTES if is_torn else None
                _apply(content, replace(operation, data=operation.data[:end]))
        return bytes(content)


class Link:
    """A symbolic link: no content but its target."""

    def __init__(self, target):
        self.target = target


class Directory:
    """The names in one directory: those on the disk, and the changes since the last sync."""

    def __init__(self):
        self.synced, self.now, self.pending = {}, {}, []

    def change(self, name, node):
        """Give a name to a node, or take it away with None."""
        self.pending.append((name, node))
        _rename(self.now, name, node)

    def sync(self):
        self.synced, self.pending = dict(self.now), []

    def after(self, count):
        names = dict(self.synced)
        for name, node in self.pending[:count]:
            _rename(names, name, node)
        return names


def _apply(content, operation):
    if operation.kind == "write":
        end = operation.offset + len(operation.data)
        if len(content) < end:
            content.extend(bytes(end - len(content)))
        content[operation.offset : end] = operation.data
    elif operation.offset <= len(content):
        del content[operation.offset :]
    else:
        content.extend(bytes(operation.offset - len(content)))


def _rename(names, name, node):
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


class Disk:
    """A directory tree as its journal tells it, from a state that was on the disk as a whole.

    `forgets_failed_syncs`: what a failed sync did not bring to the disk never comes there, though
    readers go on seeing it. Linux does so: the pages count as clean after the error was told.
    `keeps_paths`: a sync also brings the directories to the disk that lead to the file. POSIX does
    not promise it; ext4, XFS and btrfs do it.
    """

    def __init__(self, root, base=None, *, forgets_failed_syncs=False, keeps_paths=False):
        self.root, self.forgets = str(root), forgets_failed_syncs
        self.keeps_paths = keeps_paths
        self.directories = {self.root: Directory()}
        self.inodes = {}
        if base is not None:
            self._load(Path(base), self.root)

    def _load(self, real, path):
        directory = self.directories[path]
        for entry in sorted(real.iterdir()):
            name = f"{path}/{entry.name}"
            if entry.is_symlink():
                node = Link(entry.readlink())
            elif entry.is_dir():
                node = self.directories[name] = Directory()
                self._load(entry, name)
            else:
                node = File(entry.read_bytes())
            directory.change(entry.name, node)
        directory.sync()

    def _node(self, operation):
        """Return the file that a descriptor is open on, by inode: its name may have changed."""
        if operation.inode not in self.inodes:
            self.inodes[operation.inode] = self._named(operation.path)
        return self.inodes[operation.inode]

    def _named(self, path):
        parent, _, name = path.rpartition("/")
        return self.directories[parent].now[name]

    def _enter(self, path, node):
        parent, _, name = path.rpartition("/")
        self.directories[parent].change(name, node)

    def do(self, operation):
        """Bring the model one operation further."""
        handle = getattr(self, f"_{operation.kind}", None)
        is_ours = f"{operation.path}/".startswith(f"{self.root}/")
        if handle and is_ours and (operation.is_applied or operation.kind == "sync"):
            handle(operation)

    def _write(self, operation):
        self._node(operation).change(operation)

    _truncate = _write

    def _open_read(self, operation):
        if operation.path not in self.directories:
            self._node(operation)

    _open_write = _open_read

    def _sync(self, operation):
        if self.keeps_paths and operation.is_applied:
            self._keep_path(operation.path)
        if operation.path in self.directories:
            if operation.is_applied:
                self.directories[operation.path].sync()
        elif operation.is_applied:
            self._node(operation).sync()
        elif self.forgets:
            self._node(operation).pending = []

    def _keep_path(self, path):
        parent, _, name = path.rpartition("/")
        while parent.startswith(self.root):
            if path in self.directories:
                self.directories[parent].synced[name] = self.directories[path]
            path = parent
            parent, _, name = path.rpartition("/")

    def _create(self, operation):
        self.inodes[operation.inode] = File()
        self._enter(operation.path, self.inodes[operation.inode])

    def _mkdir(self, operation):
        self.directories[operation.path] = Directory()
        self._enter(operation.path, self.directories[operation.path])

    def _symlink(self, operation):
        self._enter(operation.path, Link(operation.other))

    def _rename(self, operation):
        node = self._named(operation.path)
        self._enter(operation.path, None)
        self._enter(operation.other, node)

    def _unlink(self, operation):
        self._enter(operation.path, None)

    def lose_power(self, into, chance):
        """Write to `into` what is on the disk now.

        `chance` is a `random.Random` for what was not synced, or None: then none of it is there.
        """
        shutil.rmtree(into, ignore_errors=True)
        Path(into).mkdir(parents=True)
        self._write_out(self.directories[self.root], Path(into), chance)

    def _write_out(self, directory, into, chance):
        kept = chance.randint(0, len(directory.pending)) if chance else 0
        # Each cut has its own mood, so that whole and empty disks are among them.
        share = chance.choice(SHARES) if chance else 0.0
        for name, node in directory.after(kept).items():
            if name.endswith(FORGOTTEN):
                continue
            if isinstance(node, Directory):
                (into / name).mkdir()
                self._write_out(node, into / name, chance)
            elif isinstance(node, Link):
                (into / name).symlink_to(node.target)
            else:
                (into / name).write_bytes(node.after(chance, share) if chance else node.synced)


def cuts(seed, count):
    """Return the ways in which power is lost at one point: nothing unsynced is there, or some."""
    return [None, *(random.Random(f"{seed} {number}") for number in range(count))]
