#!/usr/bin/env bash
# From a bare Debian 12 to real users ranked by a real server:
#   deploy/quickstart.sh           install, build, load the bundled MovieLens set, serve, rank, measure the AUC
#   deploy/quickstart.sh --json    the same; the last line on stdout is one JSON object
#   deploy/quickstart.sh --stop    end the server it left running (its data stays in .quickstart/)
#   deploy/quickstart.sh --clean   end the server and delete .quickstart/
# Works as root or with sudo, with or without systemd, and again in seconds. Exit code 0 only if every step worked.
set -euo pipefail
cd "$(dirname "$0")/.."
home=$PWD/.quickstart
binary=build/release/bin/backstory
data=deploy/data/ml-latest-small
json=0

say() { printf '\n== %s\n' "$*" >&2; }
alive() { [ -s "$home/pid" ] && kill -0 "$(cat "$home/pid")" 2>/dev/null; }
stop() {
  alive || return 0
  local pid; pid=$(cat "$home/pid")
  kill -TERM "$pid"
  for _ in $(seq 300); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  rm -f "$home/pid" "$home/port"
  echo "stopped the server (pid $pid)" >&2
}

for option in "$@"; do
  case "$option" in
    --json) json=1 ;;
    --stop) stop; exit 0 ;;
    --clean) stop; rm -rf "$home"; exit 0 ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done
mkdir -p "$home"

say "packages"
deploy/install.sh

say "build (the first time takes minutes)"
launcher=(); command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
cuda=OFF; nvidia-smi >/dev/null 2>&1 && cuda=AUTO
cmake --preset release -DBACKSTORY_CUDA=$cuda "${launcher[@]}" >"$home/configure.log" || { cat "$home/configure.log" >&2; exit 1; }
before=$(stat -c %Y "$binary" 2>/dev/null || echo none)
cmake --build --preset release --target backstory --parallel "$(nproc)" >"$home/build.log" 2>&1 ||
  { grep -E -A12 'error|FAILED' "$home/build.log" | head -40 >&2; exit 1; }
[ "$before" = "$(stat -c %Y "$binary")" ] || stop  # a new binary deserves a new server

if [ ! -e "$home/loaded" ]; then
  stop
  say "load 100,836 real ratings into RocksDB"
  rm -rf "$home/store"
  "$binary" ingest --store "$home/store" --namespace movielens --preset movielens \
    --events "$data/ratings.csv" --items "$data/movies.csv"
  touch "$home/loaded"
fi

if ! alive; then
  say "serve"
  rm -f "$home/port"
  setsid nohup "$binary" serve --store "$home/store" --models models/zoo --port 0 --admin-port 0 --metrics-port 0 \
    --port-file "$home/port" >"$home/server.log" 2>&1 </dev/null &
  echo $! >"$home/pid"
  for _ in $(seq 300); do
    [ -s "$home/port" ] && break
    alive || { tail -20 "$home/server.log" >&2; exit 1; }
    sleep 0.1
  done
  [ -s "$home/port" ] || { echo "the server is not ready after 30 s, see $home/server.log" >&2; exit 1; }
fi
server=127.0.0.1:$(head -1 "$home/port")

say "rank held-out movies for real users (server $server, pid $(cat "$home/pid"))"
"$binary" evaluate --server "$server" --namespace movielens --preset movielens --events "$data/ratings.csv" \
  --items "$data/movies.csv" --card models/zoo/grab-ml/1/card.json --show 3 --json-file "$home/result.json"
say "recommend movies to real users, ranked, with the old ratings that steered each"
for user in 414 599 474; do
  echo "user $user:"
  "$binary" recommend --server "$server" --namespace movielens --user "$user" --count 5 --beam 50 --explain 2 --rank
done
say "the server stays up: $server  (end it with deploy/quickstart.sh --stop)"
[ $json = 0 ] || cat "$home/result.json"
