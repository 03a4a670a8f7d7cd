"""A WebSocket that echoes text and binary messages; the standard library only."""

import base64
import hashlib
import os
import signal
import socketserver
import struct
import sys

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        self.rfile.readline()
        headers = {}
        while line := self.rfile.readline().strip():
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip()
        key = headers.get(b"sec-websocket-key")
        if key is None:
            body = b"this function speaks WebSocket\n"
            self.wfile.write(
                b"HTTP/1.1 426 Upgrade Required\r\nconnection: close\r\n"
                b"content-length: %d\r\n\r\n%b" % (len(body), body)
            )
            return
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        self.wfile.write(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n"
            b"connection: upgrade\r\nsec-websocket-accept: " + accept + b"\r\n\r\n"
        )
        print("opened", flush=True)
        while self.frame():
            pass
        print("closed", flush=True)

    def frame(self):
        """Echoes one frame; False at the end of the connection."""
        head = self.rfile.read(2)
        if len(head) < 2:
            return False
        first, length = head[0], head[1] & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self.rfile.read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.rfile.read(8))
        mask = self.rfile.read(4) if head[1] & 0x80 else bytes(4)
        data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(length)))
        kind = first & 0x0F
        if kind == 9:  # ping
            first = 0x8A
        elif kind == 10:  # pong
            return True
        if len(data) < 126:
            size = bytes([len(data)])
        elif len(data) < 1 << 16:
            size = b"\x7e" + struct.pack("!H", len(data))
        else:
            size = b"\x7f" + struct.pack("!Q", len(data))
        self.wfile.write(bytes([first]) + size + data)
        return kind != 8  # close


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
host, port = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8080"))
Server((host, port), Echo).serve_forever()
