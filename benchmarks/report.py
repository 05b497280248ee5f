"""The numbers of a benchmark: each printed as soon as it is known, all in one table for a file."""

import json
import os
import platform
import sys
from datetime import datetime
from pathlib import Path

import pandas as pd
import torch

from star.errors import InputError

_FORMATS = (".json", ".csv", ".md")


def device_name(device: torch.device) -> str:
    """The GPU, or the processor with the threads that torch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


class Report:
    """Measured numbers, and what they were measured on; `out` is written anew with each of them. Raises InputError."""

    def __init__(self, out: Path | None, device: torch.device) -> None:
        if out is not None and (out.suffix not in _FORMATS or not out.parent.is_dir()):
            raise InputError(f"--out: {out} should be a {', '.join(_FORMATS)} file in a folder that exists")
        self.out, self.rows = out, []
        self.about = {
            "command": " ".join(["python", *sys.argv]),
            "device": device_name(device),
            "torch": torch.__version__,
            "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        }
        self.say(*(f"{name:<9}{value}" for name, value in self.about.items()))

    @staticmethod
    def say(*lines: str) -> None:
        """Print at once."""
        print(*lines, sep="\n", flush=True)

    def add(
        self, name: str, value: float, unit: str, interval: tuple | None = None, n: int | None = None, note: str = ""
    ) -> None:
        """A number, with its 95 % interval (low, high) where it has one, from `n` measurements."""
        low, high = interval or (None, None)
        self.rows.append({"name": name, "value": value, "low": low, "high": high, "unit": unit, "n": n, "note": note})
        spread = "" if interval is None else f" [{low:.3f}, {high:.3f}]"
        self.say(f"{name:<44} {value:>10.4g}{spread} {unit}" + (f"  ({note})" if note else ""))
        self.write()

    def write(self) -> None:
        """Write what is known so far, whole or not at all."""
        if self.out is None:
            return
        table = pd.DataFrame(self.rows)
        if self.out.suffix == ".json":
            text = json.dumps({"about": self.about, "numbers": self.rows}, indent=1, allow_nan=False) + "\n"
        elif self.out.suffix == ".csv":
            text = table.assign(**self.about).to_csv(index=False)
        else:
            about = "\n".join(f"- {name}: `{value}`" for name, value in self.about.items())
            shown = table.assign(value=table["value"].map("{:.4g}".format)).fillna("")
            text = f"{about}\n\n{shown.to_markdown(index=False, disable_numparse=True)}\n"
        draft = self.out.with_name(f".{self.out.name}.{os.getpid()}")
        draft.write_text(text)
        draft.replace(self.out)
