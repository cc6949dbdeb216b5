"""Writes the kernel that a libkrunfw holds as an ELF file that QEMU starts: kernel_of_libkrunfw.py LIBRARY FILE

The library has the kernel as it lies in memory. Its PVH entry is in the ELF note that Xen defined for it, which the
kernel's own image keeps; QEMU looks for that note by a program header.
"""

import ctypes
import struct
import sys

library, place = sys.argv[1:]
firmware = ctypes.CDLL(library)
address, entry, size = ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_size_t()
firmware.krunfw_get_kernel.restype = ctypes.c_void_p
kernel = firmware.krunfw_get_kernel(ctypes.byref(address), ctypes.byref(entry), ctypes.byref(size))
memory = ctypes.string_at(kernel, size.value)

PHYS32_ENTRY = 18
NOTE = struct.pack("<III4s", 4, 8, PHYS32_ENTRY, b"Xen\0")
note = memory.index(NOTE)

# Headers, then everything on a page of its own. What the kernel keeps behind its image it clears itself.
PAGE = 4096
BEHIND = 16 << 20
PT_LOAD, PT_NOTE, RWX, R = 1, 4, 7, 4
header = struct.pack(
    "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, entry.value, 64, 0, 0, 64, 56, 2, 0, 0, 0
)


def segment(kind, flags, offset, length, behind, align):
    at = address.value + offset
    return struct.pack("<IIQQQQQQ", kind, flags, PAGE + offset, at, at, length, length + behind, align)


header += segment(PT_LOAD, RWX, 0, len(memory), BEHIND, PAGE)
header += segment(PT_NOTE, R, note, len(NOTE) + 8, 0, 4)
with open(place, "wb") as file:
    file.write(header.ljust(PAGE, b"\0") + memory)
