#!/usr/bin/env bash
# mkdocs-material 9.8.2: pages built with the `offline` plugin load a script of their search from another machine.
#
# Guess before the run: the plugin is for sites that open from the disk without a network, so that every script they load lies in them;
# the `privacy` plugin is for sites that name other machines' files themselves.
# Seen: each page loads iframe-worker, a stand-in for the worker that searches, which pages from the disk need, from unpkg.com. Only the
# `privacy` plugin on top would put it into the site, and fetches it while the site is built.
# Output: scripts of other machines: https://unpkg.com/iframe-worker/shim
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet mkdocs==1.6.1 mkdocs-material==9.8.2
mkdir "$folder/docs"
echo "# A page" >"$folder/docs/index.md"
cat >"$folder/mkdocs.yml" <<'SITE'
site_name: A site
theme: {name: material, font: false}
plugins: [search, offline]
SITE
NO_MKDOCS_2_WARNING=1 "$folder/venv/bin/mkdocs" build --quiet --config-file "$folder/mkdocs.yml" --site-dir "$folder/site"
"$folder/venv/bin/python" - "$folder/site/index.html" <<'PYTHON'
import re
import sys
from pathlib import Path

found = re.findall(r'<script[^>]* src="(https?://[^"]+)"', Path(sys.argv[1]).read_text())
print("scripts of other machines:", *found)
assert found == ["https://unpkg.com/iframe-worker/shim"], "the plugin brings what it needs now"
PYTHON
