"""Writes an OCI layout with an image for two platforms, whose layers do all that layers can do to each other.

    make_image.py [--gzip] LAYOUT [MARK [ARCHITECTURE…]]

The layout's tag is `test`. Layers are packed in three ways: not at all, with gzip, and with zstd. A file named MARK tells
one image from another. Without architectures it is for amd64 and arm64.
With --gzip all layers are packed with gzip, the only packing that Docker's own media types have.
"""

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

OCI = "application/vnd.oci.image."


class Layout:
    def __init__(self, folder):
        self.folder = folder
        os.makedirs(f"{folder}/blobs/sha256", exist_ok=True)
        with open(f"{folder}/oci-layout", "w") as file:
            json.dump({"imageLayoutVersion": "1.0.0"}, file)

    def put(self, content, media_type, **more):
        digest = hashlib.sha256(content).hexdigest()
        with open(f"{self.folder}/blobs/sha256/{digest}", "wb") as file:
            file.write(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content), **more}

    def put_json(self, value, media_type, **more):
        return self.put(json.dumps(value).encode(), media_type, **more)

    def image(self, architecture, layers):
        packed = [self.put(pack(layer, at), f"{OCI}layer.v1.tar{ENDINGS[at % 3]}") for at, layer in enumerate(layers)]
        config = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}manifest.v1+json",
            "config": self.put_json(config, f"{OCI}config.v1+json"),
            "layers": packed,
        }
        return self.put_json(
            manifest, f"{OCI}manifest.v1+json", platform={"os": "linux", "architecture": architecture}
        )

    def tag(self, manifests, name):
        index = self.put_json(
            {"schemaVersion": 2, "mediaType": f"{OCI}index.v1+json", "manifests": manifests},
            f"{OCI}index.v1+json",
            annotations={"org.opencontainers.image.ref.name": name},
        )
        with open(f"{self.folder}/index.json", "w") as file:
            json.dump({"schemaVersion": 2, "manifests": [index]}, file)


# The first word of the command line, if it is the option.
ALL_GZIP = sys.argv[1:2] == ["--gzip"]
ENDINGS = ["+gzip"] * 3 if ALL_GZIP else ["+gzip", "", "+zstd"]


def pack(layer, at):
    if ALL_GZIP or at % 3 == 0:
        return gzip.compress(layer, 1, mtime=0)
    if at % 3 == 1:
        return layer
    return subprocess.run(["zstd", "-q", "-c", "-B1000"], input=layer, stdout=subprocess.PIPE, check=True).stdout


def layer(*entries):
    """Entries are ("dir/",), ("file", content), ("link", "->", target), ("link", "=>", target); then attributes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            attributes = entry[-1] if isinstance(entry[-1], dict) else {}
            name, *rest = [part for part in entry if not isinstance(part, dict)]
            member = tarfile.TarInfo(name.rstrip("/"))
            member.mtime = 1_700_000_000
            content = b""
            if name.endswith("/"):
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            elif rest[:1] == ["->"]:
                member.type, member.linkname, member.mode = tarfile.SYMTYPE, rest[1], 0o777
            elif rest[:1] == ["=>"]:
                member.type, member.linkname = tarfile.LNKTYPE, rest[1]
            elif rest:
                content = rest[0] if isinstance(rest[0], bytes) else rest[0].encode()
            else:
                member.type = attributes["type"]
            for key, value in attributes.items():
                setattr(member, key, value)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def whiteout(path):
    folder, slash, name = path.rpartition("/")
    return (f"{folder}{slash}.wh.{name}", "")


def opaque(folder):
    return (f"{folder}/.wh..wh..opq", "")


def busybox():
    """A static busybox, so that steps can run in the image."""
    path = subprocess.run(["sh", "-c", "command -v busybox"], stdout=subprocess.PIPE, check=True).stdout.decode().strip()
    with open(path, "rb") as file:
        return file.read()


def layers(architecture, mark):
    shell = busybox() if architecture == "amd64" else b"nothing that runs here"
    marks = [layer((mark, mark))] if mark else []
    return marks + [
        layer(("bin/",), ("bin/busybox", shell, {"mode": 0o755}), ("bin/sh", "->", "busybox")),
        layer(
            ("etc/",),
            ("etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
            ("etc/hidden", "lower"),
            ("etc/gone/",),
            ("etc/gone/deep/",),
            ("etc/gone/deep/file", "lower"),
            ("etc/replaced", "lower"),
            ("usr/",),
            ("usr/share/",),
            ("usr/share/opaque/",),
            ("usr/share/opaque/old", "lower"),
            ("usr/share/opaque/old-folder/",),
            ("usr/share/opaque/old-folder/x", "lower"),
            ("was-a-folder/",),
            ("was-a-folder/inside", "lower"),
            ("was-a-file", "lower"),
            ("linked/",),
            ("linked/one", "shared"),
            ("linked/two", "=>", "linked/one"),
            ("linked/three", "=>", "linked/one"),
        ),
        layer(
            ("etc/",),
            whiteout("etc/hidden"),
            whiteout("etc/gone"),
            ("etc/replaced", "upper", {"mode": 0o600, "uid": 7, "gid": 8}),
            ("usr/",),
            ("usr/share/",),
            ("usr/share/opaque/", {"mode": 0o700}),
            # The mark stands behind what its layer brings, and hides only what is below.
            ("usr/share/opaque/new", "upper"),
            opaque("usr/share/opaque"),
            ("was-a-folder", "now a file"),
            ("was-a-file/",),
            ("was-a-file/inside", "upper"),
        ),
        layer(
            ("linked/",),
            ("linked/one", "changed"),
            whiteout("linked/three"),
            ("tmp/", {"mode": 0o1777}),
            ("usr/",),
            ("usr/device", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3, "mode": 0o666}),
            ("usr/pipe", {"type": tarfile.FIFOTYPE}),
            ("usr/setuid", "x", {"mode": 0o4755}),
            ("usr/capable", "x", {"pax_headers": {"SCHILY.xattr.user.note": "of layer three"}}),
            ("usr/absolute", "->", "/etc/passwd"),
            (f"architecture-is-{architecture}", architecture),
        ),
        layer(("etc/",), ("etc/hidden", "back again")),
    ]


def main():
    folder, *more = sys.argv[2 if ALL_GZIP else 1 :]
    mark, *architectures = more or [""]
    layout = Layout(folder)
    architectures = architectures or ["amd64", "arm64"]
    layout.tag([layout.image(architecture, layers(architecture, mark)) for architecture in architectures], "test")


if __name__ == "__main__":
    main()
