"""Makes an initramfs (cpio, "newc" format) from a root file system's tar and more files, without privileges.

    archive.py ROOT.tar OUT.cpio [FILE=PATH...]      FILE goes to /PATH, and may be run

What a test doesn't need (documentation, translations, package caches) is left out. Owners and modes are those of the tar.
"""
import sys
import tarfile

LEFT_OUT = ("usr/share/doc/", "usr/share/man/", "usr/share/locale/", "var/cache/apt/", "var/lib/apt/lists/", "boot/initrd")
S_IFREG, S_IFLNK, S_IFDIR = 0o100000, 0o120000, 0o040000


class Archive:
    def __init__(self, path):
        self.out = open(path, "wb")
        self.inode = 0

    def add(self, name, mode, uid, gid, data):
        self.inode += 1
        name = name.encode() + b"\0"
        numbers = (self.inode, mode, uid, gid, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        self.out.write(b"070701" + b"".join(b"%08x" % n for n in numbers) + name)
        self.pad(6 + 13 * 8 + len(name))
        self.out.write(data)
        self.pad(len(data))

    def pad(self, written):
        self.out.write(b"\0" * (-written % 4))

    def close(self):
        self.add("TRAILER!!!", 0, 0, 0, b"")
        self.out.close()


def main():
    root, out, more = sys.argv[1], sys.argv[2], sys.argv[3:]
    archive = Archive(out)
    with tarfile.open(root) as tar:
        for entry in tar:
            name = entry.name.removeprefix("./")
            if not name or name.startswith(LEFT_OUT):
                continue
            if entry.isdir():
                archive.add(name, S_IFDIR | entry.mode, entry.uid, entry.gid, b"")
            elif entry.issym():
                archive.add(name, S_IFLNK | 0o777, entry.uid, entry.gid, entry.linkname.encode())
            elif entry.isfile() or entry.islnk():
                # A hard link becomes a copy.
                archive.add(name, S_IFREG | entry.mode, entry.uid, entry.gid, tar.extractfile(entry).read())
    dirs = set()
    for pair in more:
        file, name = pair.split("=", 1)
        parts = name.split("/")[:-1]
        for dir in ("/".join(parts[: n + 1]) for n in range(len(parts))):
            if dir not in dirs:
                archive.add(dir, S_IFDIR | 0o755, 0, 0, b"")
                dirs.add(dir)
        with open(file, "rb") as source:
            archive.add(name, S_IFREG | 0o755, 0, 0, source.read())
    archive.close()


main()
