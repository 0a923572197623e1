"""N people at their desks, without think time, over plain sockets: sign in, open the page, judge until time is up.

`python -m benchmarks.judging.people PORT PEOPLE SECONDS WARM WEB_PIDS` prints one line of JSON. A process of its own,
so that what it costs is seen; it reads no more of an answer than it needs.
"""

import asyncio
import json
import re
import resource
import sys
import time
import urllib.parse
import uuid
from dataclasses import dataclass, field

import psutil

from benchmarks.judging.house import PASSWORD, SLUG

TASK = re.compile(rb'data-comparison="([0-9a-f-]{36})" data-order="([0-9,]+)"')
LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)


@dataclass
class Told:
    """What all of them saw."""

    seconds: list[float] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    met: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    empty: int = 0


class Line:
    """One connection, kept open, with a browser's headers and its cookie."""

    def __init__(self, port: int) -> None:
        self.port, self.cookie, self.again = port, "", 0

    async def open(self) -> None:
        """Connect."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, method: str, path: str, form: str | None = None, page: bool = True) -> tuple[int, bytes, bytes]:
        """Send and read the whole answer: status, head, body."""
        origin = f"http://127.0.0.1:{self.port}"
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nSec-Fetch-Site: same-origin\r\n"
        head += "User-Agent: bench\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: en\r\n"
        head += (
            "Sec-Fetch-Mode: navigate\r\nAccept: text/html,application/xhtml+xml\r\n"
            if page
            else ("Sec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\nAccept: */*\r\n")
        )
        if self.cookie:
            head += f"Cookie: {self.cookie}\r\n"
        if form is not None:
            head += f"Origin: {origin}\r\nReferer: {origin}/p/{SLUG}/judge\r\n"
            head += f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(form)}\r\n"
        request = f"{head}\r\n{form or ''}".encode()
        self.writer.write(request)
        try:
            answer = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            # An idle line was closed, or the outcome is unknown: once more, under the same key, as a browser does.
            self.again += 1
            await self.open()
            self.writer.write(request)
            answer = await self.reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(answer)
        body = await self.reader.readexactly(int(length[1])) if length else b""
        return int(answer[9:12]), answer, body


async def sign_in(number: int, port: int) -> Line:
    """A person at the page."""
    line = Line(port)
    await line.open()
    form = urllib.parse.urlencode({"username": f"load-{number}", "password": PASSWORD, "next": f"/p/{SLUG}/judge"})
    status, head, _ = await line.ask("POST", "/sign-in", form)
    found = re.search(rb"set-cookie: ([^;\r]+)", head, re.IGNORECASE)
    if status != 303 or found is None:
        raise SystemExit(f"load-{number} could not sign in: {status}")
    line.cookie = found[1].decode()
    return line


async def judge(line: Line, told: Told, begins: float, ends: float) -> None:
    """Judge until the end; what comes before `begins` warms up and is not timed."""
    held: list[tuple[bytes, bytes]] = []
    verdicts = 0
    while time.perf_counter() < ends:
        if not held:
            status, _, body = await line.ask("GET", f"/p/{SLUG}/judge")
            held = list(dict.fromkeys(TASK.findall(body)))
            if status != 200 or not held:
                told.empty += 1
                await asyncio.sleep(0.05)
            continue
        comparison, order = held.pop(0)
        key, verdicts = str(uuid.uuid4()), verdicts + 1
        form = (
            f"comparison_id={comparison.decode()}&key={key}&verdict={('left', 'right', 'tie')[verdicts % 3]}"
            f"&order={order.decode().replace(',', '%2C')}&first_key_ms=900&active_ms=2100"
            f"&held={'%2C'.join(c.decode() for c, _ in held)}"
        )
        started = time.perf_counter()
        status, _, body = await line.ask("POST", f"/p/{SLUG}/judgments", form, page=False)
        done = time.perf_counter()
        if status != 200:
            told.errors.append(f"{status} {body[:200].decode(errors='replace')}")
            continue
        told.keys.append(key)
        told.met.append(comparison.decode())
        if started >= begins and done <= ends:
            told.seconds.append(done - started)
        known = {comparison, *(c for c, _ in held)}
        held += [task for task in dict.fromkeys(TASK.findall(body)) if task[0] not in known]


async def load(port: int, people: int, seconds: float, warm: float, web_pids: list[int]) -> dict[str, object]:
    """All of them at once."""
    lines = [await sign_in(i, port) for i in range(people)]
    told = Told()
    begins = time.perf_counter() + warm
    webs = [psutil.Process(pid) for pid in web_pids]
    cpu = {"client": 0.0, "web": 0.0}

    async def note() -> None:
        """CPU of the timed seconds only: signing in has its price, and is not judging."""
        await asyncio.sleep(warm)
        cpu["client"], cpu["web"] = -spent(), -sum(map(spent_by, webs))
        await asyncio.sleep(seconds)
        cpu["client"] += spent()
        cpu["web"] += sum(map(spent_by, webs))

    await asyncio.gather(note(), *(judge(line, told, begins, begins + seconds) for line in lines))
    return {
        "people": people,
        "judged": len(told.seconds),
        "per_s": len(told.seconds) / seconds,
        "client_cpu": cpu["client"] / seconds,
        "web_cpu": cpu["web"] / seconds,
        "web_cpu_ms_each": 1000 * cpu["web"] / max(1, len(told.seconds)),
        "ms": [round(1000 * s, 3) for s in told.seconds],
        "keys": told.keys,
        "errors": told.errors,
        "empty": told.empty,
        "sent_again": sum(line.again for line in lines),
    }


def spent() -> float:
    """CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def spent_by(process: psutil.Process) -> float:
    """CPU seconds of another."""
    used = process.cpu_times()
    return float(used.user + used.system)


if __name__ == "__main__":
    port, people, seconds, warm, *pids = sys.argv[1:]
    told = load(int(port), int(people), float(seconds), float(warm), [int(pid) for pid in pids])
    print(json.dumps(asyncio.run(told)))
