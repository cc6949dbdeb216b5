"""Writes an OCI layout whose one layer is a tar: make_alpine.py LAYOUT TAR"""

import sys

from make_image import Layout

folder, tar = sys.argv[1:]
with open(tar, "rb") as file:
    content = file.read()
layout = Layout(folder)
layout.tag([layout.image("amd64", [content])], "test")
