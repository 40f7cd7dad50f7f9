"""How much memory the page keeps, and how much it takes at most.

``python -m tests.benchmarks.page_memory`` starts ``captum-clip app`` with the embedded models for
each case anew, asks as a browser does (upload, question, events over HTTP), and prints a row: what
the process takes after a first small question, what it keeps above that, and its peak above that.
Then it compares the cosines and maps of large photos with those of `explain`, which reads every
pixel. It reads /proc, so it needs Linux.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from captum_clip import explain, load_clip
from captum_clip.apps.answers import Models
from captum_clip.demo.scenes import draw_scene

BOUNDARY = "page-memory"
MEGABYTE = 10**6
TEXTS = ["a horse", "a dog"]
Files = list[tuple[str, bytes]]


@dataclass
class Server:
    """A page that is served, and what its process takes."""

    address: str
    process: int

    def memory(self, field: str = "VmRSS") -> float:
        """Megabytes of the process; VmHWM is the most since :meth:`forget_peak`."""
        with open(f"/proc/{self.process}/status") as lines:
            [line] = [line for line in lines if line.startswith(f"{field}:")]
        return int(line.split()[1]) * 1024 / MEGABYTE

    def forget_peak(self) -> None:
        """Have VmHWM count from now on."""
        with open(f"/proc/{self.process}/clear_refs", "w") as file:
            file.write("5")

    def post(self, path: str, body: bytes, kind: str) -> Any:
        """The answer to a request."""
        request = urllib.request.Request(
            f"{self.address}/gradio_api/{path}", body, {"Content-Type": kind}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """A file as the gallery of images lists it."""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"'
        body = head.encode() + b"\r\n\r\n" + content + f"\r\n--{BOUNDARY}--\r\n".encode()
        [path] = self.post("upload", body, f"multipart/form-data; boundary={BOUNDARY}")
        return {"image": {"path": path, "meta": {"_type": "gradio.FileData"}}, "caption": None}

    def send(self, session: str, element: str, event: str, data: Sequence[Any]) -> list[str]:
        """Trigger an event of an element, and wait for its end; the messages that popped up."""
        with urllib.request.urlopen(f"{self.address}/config") as answer:
            config = json.load(answer)
        ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
        target = [ids[element], event]
        function = next(
            each["id"]
            for each in config["dependencies"]
            if each["inputs"] and target in each["targets"]
        )
        body = {"data": data, "fn_index": function, "session_hash": session}
        self.post("queue/join?", json.dumps(body).encode(), "application/json")
        messages = []
        source = f"{self.address}/gradio_api/queue/data?session_hash={session}"
        with urllib.request.urlopen(source) as lines:
            for line in lines:
                message = json.loads(line[5:]) if line.startswith(b"data:") else {}
                if message.get("msg") == "log":
                    messages.append(message["log"])
                elif message.get("msg") == "process_completed":
                    assert message["success"], message
        return messages

    def ask(self, session: str, files: Files) -> list[str]:
        """Upload images and show their maps for two texts; the messages that popped up."""
        images = [self.upload(*file) for file in files]
        messages = self.send(session, "images", "upload", [images])
        asked = [0.9, "demo/vit", None, images, "\n".join(TEXTS), "direct", "positive"]
        return messages + self.send(session, "show", "click", asked)


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    """The command as a user starts it, on a free port, after a first question."""
    command = [sys.executable, "-m", "captum_clip", "app", "--port", "0", "--quiet", *options]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            server = Server(process.stdout.readline().split()[0], process.pid)
            server.ask("first", [("small.jpg", photo(300, 200))])
            yield server
        finally:
            process.terminate()


def photo(width: int, height: int, seed: int = 0, **options: Any) -> bytes:
    """A scene with grain, as a JPEG of a camera."""
    scene = Image.fromarray(draw_scene(seed).image)
    pixels = np.asarray(scene.resize((width, height), Image.Resampling.BICUBIC)) // 8 * 7
    grain = np.random.default_rng(seed).integers(0, 12, (height, width, 1), np.uint8)
    return encoded(Image.fromarray(pixels + grain), "JPEG", **options)


def flat(width: int, height: int, mode: str) -> bytes:
    """A small file that unpacks to many pixels."""
    return encoded(Image.new(mode, (width, height)), "PNG")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photos(width: int, height: int) -> Files:
    """Twelve photos."""
    return [(f"{seed}.jpg", photo(width, height, seed)) for seed in range(12)]


CASES: dict[str, tuple[int, Callable[[], Files]]] = {
    "12 photos of 12 MP in one session": (1, lambda: photos(4000, 3000)),
    "12 photos of 24 MP in one session": (1, lambda: photos(6000, 4000)),
    "40 sessions with a photo of 12 MP each": (40, lambda: [("a.jpg", photo(4000, 3000))]),
    "a PNG of 9450 x 9450 pixels in 10 kB": (1, lambda: [("a.png", flat(9450, 9450, "1"))]),
    "a flat PNG of 7000 x 7000 pixels, 1 bit": (1, lambda: [("a.png", flat(7000, 7000, "1"))]),
    "the same with colors and alpha": (1, lambda: [("a.png", flat(7000, 7000, "RGBA"))]),
    "a JPEG of 7000 x 7000 pixels": (1, lambda: [("a.jpg", photo(7000, 7000))]),
    "the same, progressive": (1, lambda: [("a.jpg", photo(7000, 7000, progressive=True))]),
}
"""The number of sessions, and the files that each uploads."""


def measure(sessions: int, files: Files) -> tuple[list[float], set[str]]:
    """Megabytes before, kept, and at the peak; the messages that popped up."""
    with serving() as server:
        before = server.memory()
        server.forget_peak()
        answers = [server.ask(f"session{number}", files) for number in range(sessions)]
        kept, peak = server.memory() - before, server.memory("VmHWM") - before
    return [before, kept, peak], {message for messages in answers for message in messages}


def differences(width: int, height: int) -> tuple[float, float]:
    """How far a photo's cosine on the page is from `explain`'s at most; the least correlation."""
    clip, models = load_clip("demo/vit"), Models()
    cosines, correlations = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, content in photos(width, height):
            path = Path(folder, name)
            path.write_bytes(content)
            both = [
                explain(each, TEXTS, model=clip, hints=False)
                for each in (path, models.read(str(path)))
            ]
            cosines.append((both[0].scores - both[1].scores).abs().max().item())
            maps = [each.maps["positive"].flatten(2)[0] for each in both]
            correlations += [
                torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in zip(*maps, strict=True)
            ]
    return max(cosines), min(correlations)


def main() -> None:
    """Print a row for each case, then the differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=int, nargs="*", default=range(len(CASES)))
    print("| case | before (MB) | kept (MB) | peak (MB) |\n|---|---|---|---|")
    for name, (sessions, make) in (list(CASES.items())[at] for at in parser.parse_args().case):
        numbers, messages = measure(sessions, make())
        print(f"| {name} |", *(f"{number:,.0f} |" for number in numbers), *messages, flush=True)
    for size in ((4000, 3000), (6000, 4000)):
        cosine, correlation = differences(*size)
        print(f"{size}: cosines differ by {cosine:.4f}, maps correlate to {correlation:.4f}")


if __name__ == "__main__":
    main()
