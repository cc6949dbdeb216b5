"""Writes an OCI layout with an image for this machine, whose one layer is a tar: make_layout.py LAYOUT TAR"""

import os
import sys

from make_image import Layout

folder, tar = sys.argv[1:]
with open(tar, "rb") as file:
    content = file.read()
layout = Layout(folder)
layout.tag([layout.image({"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine], [content])], "test")
