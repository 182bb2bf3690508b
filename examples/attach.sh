#!/bin/sh
# Two peers on one server, from a shell. Peer 0 waits for vector 1; another peer stores a number in the shared memory
# and a third one rings peer 0. Each `ivsim attach` command is a peer for as long as it runs. The exit code of `wait` is
# 0 if the interrupt arrived, 1 if not. The output is in attach.out.
set -eu
dir=$(mktemp -d)
socket=$dir/socket

ivsim serve --foreground --verbose --socket "$socket" --vectors 2 --length 64K --memfd >"$dir/listening" 2>"$dir/log" &
server=$!
trap 'kill $server; wait $server || true; rm -r "$dir"' EXIT
until [ -s "$dir/listening" ]; do sleep 0.1; done

ivsim attach --socket "$socket" --vectors 2 wait --vector 1 --timeout 60s >"$dir/receiver" 2>/dev/null &
receiver=$!
until grep -q 'peer 0 joined' "$dir/log"; do sleep 0.1; done

ivsim attach --socket "$socket" --vectors 2 peers
ivsim attach --socket "$socket" --vectors 2 poke 0 0x1234abcd
ivsim attach --socket "$socket" --vectors 2 ring 0 1 2>&1
wait $receiver
cat "$dir/receiver"
ivsim attach --socket "$socket" --vectors 2 peek 0 16
