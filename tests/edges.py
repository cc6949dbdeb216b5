"""Writes a tar of everything that root filesystems may hold at the edges, and what it holds as JSON.

Usage: edges.py TAR FACTS. Python's own tarfile makes the headers, so that our reader is judged by another's writer.
The facts are lists of entries; bytes stand in them as Latin-1 text.
"""

import hashlib
import io
import json
import struct
import sys
import tarfile

CHARACTER, BLOCK = tarfile.CHRTYPE, tarfile.BLKTYPE
# A capability set as the kernel takes it (struct vfs_cap_data, revision 2), with a newline in it.
CAPABILITY = struct.pack("<5I", 0x02000001, 0x00000A00, 0, 0, 0)
# An access control list as the kernel keeps it (linux/posix_acl_xattr.h): version, then tag, permissions, id.
NOBODY = 0xFFFFFFFF
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in [
        (0x01, 6, NOBODY),  # owner
        (0x02, 7, 1234),  # a user
        (0x04, 4, NOBODY),  # owning group
        (0x08, 5, 4_000_000_000),  # a group
        (0x10, 7, NOBODY),  # mask
        (0x20, 4, NOBODY),  # others
    ]
)
NANOSECONDS = 123_456_789
NOON_1905 = -2_036_577_600
NOON_2100 = 4_102_488_000

entries = []


def entry(name, kind=tarfile.REGTYPE, mode=0o644, owner=(0, 0), mtime="1600000000", body=b"", target="", device=(0, 0), **xattrs):
    """`mtime` in pax's form; names of `xattrs` have `_` for the first dot."""
    entries.append(
        dict(
            name=name,
            kind=kind,
            mode=mode,
            owner=owner,
            mtime=mtime,
            body=body,
            target=target,
            device=device,
            xattrs={key.replace("_", ".", 1): value for key, value in xattrs.items()},
        )
    )


def directory(name, mode=0o755, **more):
    entry(name, kind=tarfile.DIRTYPE, mode=mode, **more)


directory(".")
directory("bin")
entry("bin/ping", mode=0o4755, body=b"\x7fELF" + bytes(range(256)) * 100, security_capability=CAPABILITY)
entry("bin/ping-again", kind=tarfile.LNKTYPE, target="bin/ping")
directory("etc")
directory("old", mtime=f"{NOON_1905}")
entry("etc/binary", body=b"x", user_binary=b"\n\n17 mtime=99999\n\0\xff\xfe\n", user_empty=b"", trusted_long=b"\n" * 3000)
entry("etc/shared", mode=0o674, **{"system_posix_acl_access": ACL})
directory("etc/inherited", **{"system_posix_acl_default": ACL})
entry("etc/of-1905", mtime=f"{NOON_1905}.{NANOSECONDS}")
entry("etc/of-2100", mtime=f"{NOON_2100}.{NANOSECONDS}")
entry("etc/before-the-epoch", mtime="-5")
entry("etc/just-before-the-epoch", mtime="-0.25")
entry("etc/far", kind=tarfile.SYMTYPE, mode=0o777, target="/".join(["d" * 199] * 20) + "/")
entry("etc/caf\udce9\udcff", body=b"not UTF-8")
entry("etc/" + "n" * 255, body=b"a long name")
entry("etc/owned", owner=(4_000_000_000, 4_000_000_001), mode=0o600, body=b"y" * 4096)
directory("dev")
entry("dev/null", kind=CHARACTER, mode=0o666, device=(1, 3))
entry("dev/vda", kind=BLOCK, mode=0o660, owner=(0, 6), device=(254, 300_000))
entry("dev/initctl", kind=tarfile.FIFOTYPE, mode=0o600)
directory("many")
for number in range(3000):
    entry(f"many/{number:04}-{'m' * 195}", body=b"%d" % number)


def fraction(mtime):
    """Whole seconds before, and nanoseconds after: what the kernel keeps."""
    seconds, _, digits = mtime.lstrip("-").partition(".")
    nanoseconds = int(seconds) * 10**9 + int(digits.ljust(9, "0") or 0)
    return divmod(-nanoseconds if mtime.startswith("-") else nanoseconds, 10**9)


def latin(data):
    return data.decode("latin-1")


links = {entry["name"]: 1 for entry in entries}
for each in entries:
    if each["kind"] == tarfile.LNKTYPE:
        links[each["target"]] += 1

facts = []
with tarfile.open(sys.argv[1], "w", format=tarfile.PAX_FORMAT) as archive:
    for each in entries:
        info = tarfile.TarInfo(each["name"])
        info.type, info.mode, info.linkname = each["kind"], each["mode"], each["target"]
        info.uid, info.gid = each["owner"]
        info.devmajor, info.devminor = each["device"]
        info.size = len(each["body"])
        records = {"mtime": each["mtime"]}
        for name, value in each["xattrs"].items():
            records["SCHILY.xattr." + name] = value.decode("utf-8", "surrogateescape")
        info.pax_headers = records
        archive.addfile(info, io.BytesIO(each["body"]))
        primary = next(one for one in entries if one["name"] == each["target"]) if each["kind"] == tarfile.LNKTYPE else each
        seconds, nanoseconds = fraction(primary["mtime"])
        facts.append(
            dict(
                path=latin(each["name"].encode("utf-8", "surrogateescape")),
                kind=latin(primary["kind"]),
                mode=primary["mode"],
                uid=primary["owner"][0],
                gid=primary["owner"][1],
                seconds=seconds,
                nanoseconds=nanoseconds,
                size=len(primary["body"]),
                sha256=hashlib.sha256(primary["body"]).hexdigest(),
                target=primary["target"],
                major=primary["device"][0],
                minor=primary["device"][1],
                links=links[primary["name"]],
                xattrs={name: latin(value) for name, value in primary["xattrs"].items()},
            )
        )
with open(sys.argv[2], "w") as file:
    json.dump(facts, file)
