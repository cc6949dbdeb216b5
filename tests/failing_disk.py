"""A filesystem that passes everything on to a folder, and fails on demand as a broken disk does.

    failing_disk.py FOLDER MOUNT_POINT

Writing a number to `.fail-after` in it has every change fail with EIO (and nothing else) once so many changes were made;
a second word `all` has reading fail, too. `never` ends that. It holds the number of changes so far.
"""

import errno
import os
import sys
import threading

try:
    from fusepy import FUSE, FuseOSError, Operations, fuse_get_context
except ImportError:
    # Its own name for itself, which distributions change.
    from fuse import FUSE, FuseOSError, Operations, fuse_get_context

CONTROL = "/.fail-after"
# Bytes that are read of it.
DIGITS = 20


class FailingDisk(Operations):
    def __init__(self, root):
        self.root = root
        self.mutex = threading.Lock()
        self.changes = 0
        self.left = None
        self.fails_to_read = False

    def real(self, path):
        return self.root + path

    def change(self):
        with self.mutex:
            self.changes += 1
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise FuseOSError(errno.EIO)

    def look(self):
        if self.left is not None and self.left <= 0 and self.fails_to_read:
            raise FuseOSError(errno.EIO)

    def own(self, path):
        uid, gid, _ = fuse_get_context()
        os.lchown(self.real(path), uid, gid)

    # What only looks.

    def getattr(self, path, fh=None):
        if path == CONTROL:
            return {"st_mode": 0o100600, "st_nlink": 1, "st_size": DIGITS}
        about = os.fstat(fh) if fh else os.lstat(self.real(path))
        keys = ("st_atime", "st_ctime", "st_mtime", "st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_rdev")
        return {**{key: getattr(about, key) for key in keys}, "st_blocks": about.st_blocks}

    def readdir(self, path, fh):
        self.look()
        return [".", ".."] + os.listdir(self.real(path))

    def readlink(self, path):
        return os.readlink(self.real(path))

    def statfs(self, path):
        about = os.statvfs(self.real(path))
        keys = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_frsize", "f_namemax")
        return {key: getattr(about, key) for key in keys}

    def getxattr(self, path, name, position=0):
        return os.getxattr(self.real(path), name, follow_symlinks=False)

    def listxattr(self, path):
        return os.listxattr(self.real(path), follow_symlinks=False)

    def open(self, path, flags):
        if path == CONTROL:
            return 0
        # The kernel has looked at the mode, and reads a page before it writes to a part of it.
        flags &= ~(os.O_APPEND | os.O_EXCL | os.O_NOFOLLOW)
        if flags & os.O_ACCMODE == os.O_WRONLY:
            flags = flags & ~os.O_ACCMODE | os.O_RDWR
        return os.open(self.real(path), flags)

    def read(self, path, size, offset, fh):
        if path == CONTROL:
            return str(self.changes).rjust(DIGITS).encode()[offset : offset + size]
        self.look()
        return os.pread(fh, size, offset)

    def release(self, path, fh):
        if path != CONTROL:
            os.close(fh)

    def flush(self, path, fh):
        pass

    # What changes something.

    def create(self, path, mode, fi=None):
        self.change()
        fh = os.open(self.real(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        self.own(path)
        return fh

    def write(self, path, data, offset, fh):
        if path == CONTROL:
            words = data.decode().split()
            self.left = None if words[0] == "never" else int(words[0])
            self.fails_to_read = "all" in words
            return len(data)
        self.change()
        return os.pwrite(fh, data, offset)

    def truncate(self, path, length, fh=None):
        if path == CONTROL:
            return
        self.change()
        os.truncate(fh if fh else self.real(path), length)

    def fsync(self, path, datasync, fh):
        self.change()
        os.fsync(fh)

    def fsyncdir(self, path, datasync, fh):
        self.change()

    def mknod(self, path, mode, dev):
        self.change()
        os.mknod(self.real(path), mode, dev)
        self.own(path)

    def mkdir(self, path, mode):
        self.change()
        os.mkdir(self.real(path), mode)
        self.own(path)

    def symlink(self, path, target):
        self.change()
        os.symlink(target, self.real(path))
        self.own(path)

    def link(self, path, source):
        self.change()
        os.link(self.real(source), self.real(path), follow_symlinks=False)

    def unlink(self, path):
        self.change()
        os.unlink(self.real(path))

    def rmdir(self, path):
        self.change()
        os.rmdir(self.real(path))

    def rename(self, old, new):
        self.change()
        os.rename(self.real(old), self.real(new))

    def chmod(self, path, mode):
        self.change()
        os.chmod(self.real(path), mode)

    def chown(self, path, uid, gid):
        self.change()
        os.lchown(self.real(path), uid, gid)

    def utimens(self, path, times=None):
        self.change()
        os.utime(self.real(path), times, follow_symlinks=False)

    def setxattr(self, path, name, value, options, position=0):
        self.change()
        os.setxattr(self.real(path), name, value, options, follow_symlinks=False)

    def removexattr(self, path, name):
        self.change()
        os.removexattr(self.real(path), name, follow_symlinks=False)


if __name__ == "__main__":
    os.umask(0)
    options = {"allow_other": True, "default_permissions": True, "nonempty": True, "dev": True, "suid": True}
    FUSE(FailingDisk(sys.argv[1]), sys.argv[2], foreground=True, fsname="failing", **options)
