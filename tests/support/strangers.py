"""A process of strangers for tests: hundreds of connections with one behaviour.

Run as `python -m strangers PORT PATH BEHAVIOUR`; it prints a line when many have been open.
"""

import asyncio
import contextlib
import itertools
import json
import re
import sys
import time

CONNECTIONS, OPEN = 500, 200
"""Those that are tried, and those that have been open before the test begins: more than any limit of a receiver."""
HALF_BODIES_A_SECOND = 250
KB, MB = 1024, 1024 * 1024


MOST = bytes(5 * MB - 1)
NOTIFICATION = b'{"a":[' + b"[]," * (256 * KB // 3 - 10) + b"0]}"
BATCH = (b"mandrill_events=" + b"%22abc" * MB)[: 5 * MB]
"""The bodies of some of them, which are made once."""


def head(path: str, *headers: str) -> bytes:
    """Return the head of a request."""
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


async def send(writer, beginning: bytes, body: bytes) -> None:
    """Send a request piece by piece, so that this process does not buffer hundreds of bodies."""
    writer.write(beginning)
    for at in range(0, len(body), 256 * KB):
        writer.write(body[at : at + 256 * KB])
        await writer.drain()


async def silence(reader, writer, path, number):
    """Open a connection and send nothing."""
    await reader.read()


async def half_a_head(reader, writer, path, number):
    """Send half of a head."""
    writer.write(b"POST ")
    await reader.read()


async def no_body(reader, writer, path, number):
    """Announce a body and do not send it."""
    writer.write(head(f"{path}/sendgrid", "Content-Length: 5000"))
    await reader.read()


async def slow_body(reader, writer, path, number):
    """Send a body byte by byte."""
    writer.write(head(f"{path}/sendgrid", "Content-Length: 5000"))
    while True:
        await asyncio.sleep(0.5)
        writer.write(b"x")
        await writer.drain()


async def most_of_a_body(reader, writer, path, number):
    """Send all but the last byte of the longest allowed body."""
    await send(writer, head(f"{path}/sendgrid", f"Content-Length: {len(MOST) + 1}"), MOST)
    await reader.read()


async def unsigned_notification(reader, writer, path, number):
    """Send the longest notification that is parsed, which costs the most, without a signature."""
    await send(writer, head(f"{path}/ses", f"Content-Length: {len(NOTIFICATION)}"), NOTIFICATION)
    await reader.read()


async def unsigned_batch(reader, writer, path, number):
    """Send the longest batch that is decoded, without a signature."""
    form = "Content-Type: application/x-www-form-urlencoded"
    signature = "X-Mandrill-Signature: x"
    await send(writer, head(f"{path}/mandrill", form, signature, f"Content-Length: {len(BATCH)}"), BATCH)
    await reader.read()


async def garbage(reader, writer, path, number):
    """Send small unsigned batches, 3 MB a second in all."""
    form = "Content-Type: application/x-www-form-urlencoded"
    body = b"mandrill_events=" + b"x" * 17_000
    request = head(f"{path}/mandrill", form, "X-Mandrill-Signature: x", f"Content-Length: {len(body)}") + body
    while True:
        await asyncio.sleep(CONNECTIONS * len(body) / (3 * MB))
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(re.search(rb"content-length: (\d+)", answer)[1]))


async def another_certificate(reader, writer, path, number):
    """Name a missing certificate, each time another one."""
    from senders import ARN, CERTIFICATE_URL  # noqa: PLC0415 - a second of CPU, for this one only

    url = re.sub("-[0-9a-f]{32}", f"-{number:016x}{time.monotonic_ns():016x}", CERTIFICATE_URL)
    notification = {
        "Type": "Notification",
        "TopicArn": ARN,
        "SigningCertURL": url,
        "Signature": "AAAA",
        "SignatureVersion": "1",
    }
    body = json.dumps(notification).encode()
    writer.write(head(f"{path}/ses", f"Content-Length: {len(body)}") + body)
    await reader.read()


async def no_reading(reader, writer, path, number):
    """Send requests and read no response."""
    reader._limit = 1
    writer.transport.pause_reading()
    while True:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        await writer.drain()


async def one_byte_a_chunk(reader, writer, path, number):
    """Send a body in chunks of one byte."""
    writer.write(head(f"{path}/sendgrid", "Transfer-Encoding: chunked"))
    for _ in range(20):
        writer.write(b"1\r\nx\r\n" * 10_000)
        await writer.drain()
    await reader.read()


OF_THE_PROXY = {behaviour.__name__: behaviour for behaviour in (silence, half_a_head, no_reading, one_byte_a_chunk)}
"""What a proxy does not pass on."""
BEHAVIOURS = {
    behaviour.__name__: behaviour
    for behaviour in (
        no_body,
        slow_body,
        most_of_a_body,
        unsigned_notification,
        unsigned_batch,
        garbage,
        another_certificate,
    )
}


async def keep_connected(port: int, path: str, behaviour: str, number: int, opened: set[int]) -> None:
    """Keep a connection open; if it is closed, open another."""
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            opened.add(number)
            if len(opened) == OPEN:
                print("open", flush=True)  # noqa: T201
            try:
                await (BEHAVIOURS | OF_THE_PROXY)[behaviour](reader, writer, path, number)
            finally:
                writer.transport.abort()


async def pass_on_half_a_body(port: int, path: str) -> None:
    """Send a head with a wrong password and half of the body, as a proxy that streams does; wait for the end."""
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(f"{path}/postmark", "Authorization: Basic bm86bm8=", "Content-Length: 5000") + bytes(2500))
        try:
            await reader.read()
        finally:
            writer.transport.abort()


async def pass_on_half_bodies(port: int, path: str) -> None:
    """Pass on half bodies, 250 a second, until the process is killed; print a line after more than five seconds."""
    loop, tasks = asyncio.get_running_loop(), set()
    started_at = loop.time()
    for number in itertools.count():
        await asyncio.sleep(started_at + number / HALF_BODIES_A_SECOND - loop.time())
        tasks.add(task := asyncio.create_task(pass_on_half_a_body(port, path)))
        task.add_done_callback(tasks.discard)
        if number == 6 * HALF_BODIES_A_SECOND:
            print("open", flush=True)  # noqa: T201


async def main(port: str, path: str, behaviour: str) -> None:
    """Keep all connections open until the process is killed."""
    if behaviour == "half_bodies":
        await pass_on_half_bodies(int(port), path)
    opened: set[int] = set()
    await asyncio.gather(*(keep_connected(int(port), path, behaviour, number, opened) for number in range(CONNECTIONS)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
