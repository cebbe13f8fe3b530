#!/usr/bin/env python3
"""Opens the trial's page in a headless Chromium, in the sizes of a phone, a desktop and paper, and reports faults: plots
without lines, overlapping labels, a page wider than its window, requests to other hosts, errors of the browser. The exit
status is 1 if there is a fault, and 77 if there is no Chromium.

  scripts/check-page.py target/trial/trial.html [DIR]      pictures of the page go into DIR
"""

import html
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

WIDTHS = [500, 800, 1280]

# A browser looks for updates and more by itself; this one asks nobody anything.
ALONE = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]

# Runs in a copy of the page and leaves what it saw in an element.
LOOK = """
<pre id="seen"></pre><script>
const wrong = [];
const say = (what) => wrong.push(what);
const seen = (e) => e.getClientRects().length > 0 && getComputedStyle(e).visibility === 'visible';
const text = (e) => e.textContent.trim().replace(/\\s+/g, ' ').slice(0, 60);
const plots = [...document.querySelectorAll('svg.plot')];
let lines = 0;
for (const [at, plot] of plots.entries()) {
  const box = plot.getBoundingClientRect();
  if (box.width < 150 || box.height < 50) say(`plot ${at} is ${box.width} by ${box.height}`);
  const own = [...plot.querySelectorAll('.line')].filter((l) => l.getBBox().width > 0);
  lines += own.length;
  if (own.length === 0) say(`plot ${at} has no line`);
  for (const line of own) {
    const r = line.getBoundingClientRect();
    if (r.left < box.left - 2 || r.right > box.right + 2 || r.top < box.top - 2 || r.bottom > box.bottom + 2)
      say(`a line leaves plot ${at}`);
  }
}
let labels = 0;
for (const axis of document.querySelectorAll('.x, .y')) {
  const rects = [...axis.querySelectorAll('span')].filter(seen).map((e) => [text(e), e.getBoundingClientRect()]);
  labels += rects.length;
  for (const [i, [a, ra]] of rects.entries()) {
    if (ra.left < -1 || ra.right > document.documentElement.clientWidth + 1) say(`the label "${a}" is cut off`);
    for (const [b, rb] of rects.slice(i + 1))
      if (ra.left < rb.right - 1 && rb.left < ra.right - 1 && ra.top < rb.bottom - 3 && rb.top < ra.bottom - 3)
        say(`the labels "${a}" and "${b}" lie on top of each other`);
  }
}
const width = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth > width) say(`the page is ${document.documentElement.scrollWidth} wide, its window ${width}`);
for (const entry of performance.getEntriesByType('resource')) say(`it fetches ${entry.name}`);
for (const e of document.querySelectorAll('h1, h2, td, th, figcaption, .tiles li')) {
  if (!seen(e) || (text(e) === '' && e.tagName !== 'TD' && e.tagName !== 'TH')) say(`an empty ${e.tagName}`);
}
document.getElementById('seen').textContent = JSON.stringify({ width, plots: plots.length, lines, labels, wrong });
</script>
"""


def browse(chromium, page, profile, *options):
    command = [chromium, "--headless=new", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--v=0"]
    command += [*ALONE, f"--user-data-dir={profile}", "--virtual-time-budget=5000", *options, page.as_uri()]
    if os.geteuid() == 0:
        command.insert(1, "--no-sandbox")
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def main():
    page = pathlib.Path(sys.argv[1]).resolve()
    dir = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else page.parent).resolve()
    chromium = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
    if chromium is None:
        print("there is no Chromium here")
        return 77
    source = page.read_text(encoding="utf-8")
    wrong = []
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        copy = scratch / "page.html"
        copy.write_text(source.replace("</body>", LOOK + "</body>"), encoding="utf-8")
        for width in WIDTHS:
            done = browse(chromium, copy, scratch / "profile", f"--window-size={width},900", "--dump-dom")
            said = re.search(r'<pre id="seen">(.+?)</pre>', done.stdout, re.DOTALL)
            if said is None:
                print(f"Chromium showed nothing: {done.stdout[-500:]}{done.stderr[-2000:]}")
                return 1
            seen = json.loads(html.unescape(said[1]))
            wrong += [f"{width} wide: {what}" for what in seen["wrong"]]
            wrong += [f"{width} wide: {line}" for line in done.stderr.splitlines() if "CONSOLE" in line]
            print(f"{seen['width']} pixels wide: {seen['plots']} plots, {seen['lines']} lines, {seen['labels']} labels")
            if seen["plots"] == 0:
                wrong.append(f"{width} wide: no plot")
            picture = dir / f"trial-{width}.png"
            browse(chromium, page, scratch / "profile", f"--window-size={width},5000", f"--screenshot={picture}")
            if not picture.exists():
                wrong.append(f"no picture {picture}")
        paper = dir / "trial.pdf"
        browse(chromium, page, scratch / "profile", "--no-pdf-header-footer", f"--print-to-pdf={paper}")
        if not paper.exists() or paper.stat().st_size < 10_000:
            wrong.append("it can't be printed")
    for what in wrong:
        print(f"WRONG: {what}")
    print(f"pictures and {paper.name} in {dir}")
    return 1 if wrong else 0


sys.exit(main())
