"""The numbers of a benchmark: each printed as soon as it is known, all in one table for a file."""

import json
import math
import os
import sys
from datetime import datetime
from pathlib import Path

import torch

from star.errors import InputError
from star.runtime import processor, revision


def device_name(device: torch.device) -> str:
    """The GPU, or the processor with the threads that torch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


class Report:
    """Measured numbers, and what they were measured on; `out`.md and `out`.json are written anew with each of them.

    Raises InputError when `out`'s folder does not exist.
    """

    def __init__(self, out: Path | None, device: torch.device, module: str = "training") -> None:
        if out is not None and not out.parent.is_dir():
            raise InputError(f"--out: the folder {out.parent} does not exist; make it first")
        self.out, self.rows = out, []
        self.about = {
            "command": " ".join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]]),
            "device": device_name(device),
            "torch": torch.__version__,
            "date": datetime.now().astimezone().isoformat(timespec="minutes"),
            "revision": revision() or "unknown",
            "load": _load(),
        }
        self.say(*(f"{name:<9}{value}" for name, value in self.about.items()))

    @staticmethod
    def say(*lines: str) -> None:
        """Print at once."""
        print(*lines, sep="\n", flush=True)

    def add(
        self, name: str, value: float, unit: str, interval: tuple | None = None, n: int | None = None, note: str = ""
    ) -> None:
        """A number, with its 95 % interval (low, high) where it has one, from `n` measurements; nan is said, not kept."""
        if math.isnan(value):
            self.say(f"{name}: cannot be measured here")
            return
        interval = None if n == 1 else interval  # one measurement has no spread
        low, high = interval or (None, None)
        self.rows.append({"name": name, "value": value, "low": low, "high": high, "unit": unit, "n": n, "note": note})
        spread = "" if interval is None else f" [{low:.3f}, {high:.3f}]"
        self.say(f"{name:<44} {value:>10.4g}{spread} {unit}" + (f"  ({note})" if note else ""))
        if self.out is not None:
            _write(self.out.with_name(f"{self.out.name}.md"), self.markdown())
            numbers = {"about": self.about, "numbers": self.rows}
            _write(self.out.with_name(f"{self.out.name}.json"), json.dumps(numbers, indent=1, allow_nan=False) + "\n")

    def markdown(self) -> str:
        """What was measured on, and a table of the numbers."""
        lines = [f"- {name}: `{value}`" for name, value in self.about.items()]
        lines += ["", "| what | value | 95 % interval | unit | n | note |", "|---|---|---|---|---|---|"]
        for row in self.rows:
            interval = "" if row["low"] is None else f"[{row['low']:.3f}, {row['high']:.3f}]"
            cells = (row["name"], f"{row['value']:.4g}", interval, row["unit"], row["n"] or "", row["note"])
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        return "\n".join(lines) + "\n"


def _load() -> str:
    """How many processes wanted a core in the last minute, where the system tells."""
    return f"{os.getloadavg()[0]:.1f} processes at the start" if hasattr(os, "getloadavg") else "unknown"


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(file)
