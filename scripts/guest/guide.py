"""Extracts the commands and the config of the operators' pages, so that the guest runs what the pages say.

    guide.py PAGE.md… DIR      writes DIR/NAME.sh for each block below `<!-- run: NAME -->` (its lines that begin with
                               `# `), DIR/NAME.toml for each below `<!-- config: NAME -->`, and DIR/NAME.service for
                               each below `<!-- unit: NAME -->`
"""
import re
import sys
from pathlib import Path

guide, directory = "".join(Path(page).read_text() for page in sys.argv[1:-1]), Path(sys.argv[-1])
directory.mkdir(parents=True, exist_ok=True)
blocks = re.findall(r"<!-- (run|config|unit): (\S+) -->\n```\w+\n(.*?)```", guide, re.S)
for kind, name, text in blocks:
    if kind == "run":
        lines = [line.removeprefix("# ") for line in text.splitlines()]
        (directory / f"{name}.sh").write_text("set -e\n" + "\n".join(lines) + "\n")
    else:
        kinds = {"config": "toml", "unit": "service"}
        (directory / f"{name}.{kinds[kind]}").write_text(text)
names = [name for _, name, _ in blocks]
assert len(set(names)) == len(names) > 8, names
print(f"the guide has the blocks {', '.join(names)}")
