"""A server that changes the protocol when it is asked to, then gives back what it gets until there is no more."""

import os
import socket

listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
while True:
    client, _ = listener.accept()
    head = b""
    while b"\r\n\r\n" not in head:
        part = client.recv(4096)
        if not part:
            break
        head += part
    head, _, rest = head.partition(b"\r\n\r\n")
    if b"upgrade: mirror" in head.lower():
        client.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: mirror\r\n\r\n" + rest)
        while part := client.recv(4096):
            client.sendall(part)
    else:
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
    client.close()
