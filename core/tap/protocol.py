"""The NBD protocol's numbers and layouts; no I/O.

Names follow the protocol document (doc/proto.md of the NBD project); all is big endian.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

# -- handshake -------------------------------------------------------------------------

INIT_MAGIC: Final = 0x4E42444D41474943
OPTION_MAGIC: Final = 0x49484156454F5054
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9

FIXED_NEWSTYLE: Final = 1
NO_ZEROES: Final = 2

OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10

REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERR_UNSUP: Final = 1 << 31 | 1
REP_ERR_POLICY: Final = 1 << 31 | 2
REP_ERR_INVALID: Final = 1 << 31 | 3
REP_ERR_PLATFORM: Final = 1 << 31 | 4
REP_ERR_TLS_REQD: Final = 1 << 31 | 5
REP_ERR_UNKNOWN: Final = 1 << 31 | 6
REP_ERR_SHUTDOWN: Final = 1 << 31 | 7
REP_ERR_TOO_BIG: Final = 1 << 31 | 9

INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_DESCRIPTION: Final = 2
INFO_BLOCK_SIZE: Final = 3

GREETING: Final = Struct(">QQH")
"""INIT_MAGIC, OPTION_MAGIC, handshake flags."""
CLIENT_FLAGS: Final = Struct(">I")
OPTION: Final = Struct(">QII")
"""OPTION_MAGIC, option, length of its data."""
OPTION_REPLY: Final = Struct(">QIII")
"""OPTION_REPLY_MAGIC, option, reply type, length of its data."""
EXPORT_NAME_REPLY: Final = Struct(">QH")
"""Size, transmission flags; 124 zeros follow unless NO_ZEROES was agreed on."""
EXPORT_NAME_ZEROES: Final = bytes(124)
INFO_EXPORT_REPLY: Final = Struct(">HQH")
INFO_BLOCK_SIZE_REPLY: Final = Struct(">HIII")
INFO_TYPE: Final = Struct(">H")
U32: Final = Struct(">I")
U16: Final = Struct(">H")

MAX_NAME: Final = 4096
"""Bytes of the longest string the protocol knows."""
MAX_OPTION: Final = 64 << 10
"""Bytes of option data that are worth reading; more is skipped and refused."""

# -- transmission ----------------------------------------------------------------------

HAS_FLAGS: Final = 1
READ_ONLY: Final = 2
SEND_FLUSH: Final = 4
SEND_FUA: Final = 8
SEND_TRIM: Final = 32
SEND_WRITE_ZEROES: Final = 64
SEND_DF: Final = 128
CAN_MULTI_CONN: Final = 256
SEND_CACHE: Final = 1024
SEND_FAST_ZERO: Final = 2048

REQUEST_MAGIC: Final = 0x25609513
SIMPLE_MAGIC: Final = 0x67446698
STRUCTURED_MAGIC: Final = 0x668E33EF

CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7

FLAG_FUA: Final = 1
FLAG_NO_HOLE: Final = 2
FLAG_DF: Final = 4
FLAG_REQ_ONE: Final = 8
FLAG_FAST_ZERO: Final = 16

COMMAND_FLAGS: Final = {
    CMD_READ: FLAG_FUA | FLAG_DF,
    CMD_WRITE: FLAG_FUA,
    CMD_FLUSH: FLAG_FUA,
    CMD_TRIM: FLAG_FUA,
    CMD_CACHE: FLAG_FUA,
    CMD_WRITE_ZEROES: FLAG_FUA | FLAG_NO_HOLE | FLAG_FAST_ZERO,
    CMD_BLOCK_STATUS: FLAG_FUA | FLAG_REQ_ONE,
}
"""The flags that each command may have; the protocol allows FUA everywhere."""

CHUNK_DONE: Final = 1
CHUNK_NONE: Final = 0
CHUNK_OFFSET_DATA: Final = 1
CHUNK_OFFSET_HOLE: Final = 2
CHUNK_BLOCK_STATUS: Final = 5
CHUNK_ERROR: Final = 1 << 15 | 1

STATE_DATA: Final = 0
STATE_HOLE: Final = 3
"""A hole that reads as zeros."""

EPERM: Final = 1
EIO: Final = 5
EINVAL: Final = 22
ENOSPC: Final = 28
EOVERFLOW: Final = 75
ENOTSUP: Final = 95

MIN_BLOCK: Final = 1
PREFERRED_BLOCK: Final = 4096
MAX_BLOCK: Final = 32 << 20
"""Bytes of the largest READ or WRITE."""

REQUEST: Final = Struct(">QQQI")
"""Magic, flags and type as one word; cookie; offset; length."""
SIMPLE: Final = Struct(">QQ")
"""Magic and error as one word; cookie."""
CHUNK: Final = Struct(">QQI")
"""Magic, flags and type as one word; cookie; length of what follows."""
DATA_CHUNK: Final = Struct(">QQIQ")
"""A chunk's header, and the offset that stands before its data."""
HOLE_CHUNK: Final = Struct(">QQIQI")
"""A chunk's header, then offset and length of the hole."""
ERROR_CHUNK: Final = Struct(">QQIIH")
"""A chunk's header, then the error and the length of the message behind it."""

REQUEST_WORD: Final = REQUEST_MAGIC << 32
SIMPLE_WORD: Final = SIMPLE_MAGIC << 32
CHUNK_WORD: Final = STRUCTURED_MAGIC << 32
LAST_DATA_WORD: Final = CHUNK_WORD | CHUNK_DONE << 16 | CHUNK_OFFSET_DATA

assert REQUEST.size == 28
assert SIMPLE.size == 16
assert CHUNK.size == 20
