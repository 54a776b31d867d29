"""A server that keeps clients waiting: at /late for its answer, at /pauses for the rest of it. Meanwhile it takes no other,
and lets one wait for that. Pages of all origins may read what it says."""

import os
import socket
import time

listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=0)
while True:
    client, _ = listener.accept()
    path = client.recv(65536).partition(b" ")[2].partition(b" ")[0]
    head = b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: 4\r\nConnection: close\r\n\r\n"
    try:
        time.sleep(4 if path == b"/late" else 0)
        client.sendall(head + b"ha")
        time.sleep(4 if path == b"/pauses" else 0)
        client.sendall(b"lf")
    except OSError:
        # Who asked waits no longer.
        pass
    client.close()
