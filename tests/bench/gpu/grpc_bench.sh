#!/usr/bin/env bash
# Ranking through gRPC on a card: makes stores and models, serves on some cores, loads from others, prints tables.
#   tests/bench/gpu/grpc_bench.sh [WHAT..]     of: low (1,000 candidates x 4,096 events, grab-512, low load),
#                                                  resident, rates (2,048 x 7,000, grab-dlrm); default: all three
# Settings by environment: BINARY (build/release/bin/backstory), WORK (a scratch directory, made), USERS of grab-dlrm (200),
# DEVICE (cuda:0), SERVER_CORES (0-11), LOAD_CORES (12-15), SECONDS_A_RATE (4), LOW_RATES, RESIDENT_RATES, HIT_RATES (share of
# hits:rate,rate..).
set -uo pipefail
binary=${BINARY:-build/release/bin/backstory}
work=${WORK:-$(mktemp -d)}
users=${USERS:-200}
seconds=${SECONDS_A_RATE:-4}
low_rates=${LOW_RATES:-"50 100 300 600"}
resident_rates=${RESIDENT_RATES:-"600 1200 1800 2400"}
hit_rates=${HIT_RATES:-"0.9:300,600 0.5:100,200 0:50,100"}
binary=$(realpath "$binary")
mkdir -p "$work" && cd "$work" || exit 1
started=$(date +%s)
say() { echo "[$(($(date +%s) - started)) s] $*"; }

# store NAME USERS EVENTS, model NAME: made once.
store() {
  [ -d "store-$1" ] && return
  "$binary" synth --users "$2" --events-per-user "$3" --out "synth-$1" > /dev/null &&
    "$binary" ingest --store "store-$1" --events "synth-$1/events.csv" --items "synth-$1/items.csv" | tail -1
  rm -rf "synth-$1"
}
model() { [ -d "models-$1" ] || "$binary" model init-random "$1" --out "models-$1/$1/1" > /dev/null; }

# serve STORE MODEL FLAGS..: sets `server` and the ports.
serve() {
  rm -f ports
  taskset -c "${SERVER_CORES:-0-11}" "$binary" serve --store "store-$1" --models "models-$2" --device "${DEVICE:-cuda:0}" \
    --port 0 --port-file ports "${@:3}" > server.log 2>&1 &
  server=$!
  for _ in $(seq 600); do
    [ -f ports ] && { port=$(sed -n 1p ports) metrics_port=$(sed -n 3p ports); say "serving $2 $*"; return 0; }
    kill -0 $server 2> /dev/null || break
    sleep 0.1
  done
  tail -3 server.log
  return 1
}
stop() {
  kill $server && wait $server
  grep '"level":"error"' server.log | tail -3
}
load() {
  taskset -c "${LOAD_CORES:-12-15}" "$binary" bench rank --server "127.0.0.1:$port" --user-prefix synthetic- --prime --stages \
    --slo-ms 80 "$@"
}
rates() { for rate in $1; do echo --rate "$rate"; done; }
counts() { curl -s "127.0.0.1:$metrics_port/metrics" | grep -E '^backstory_(device_|state_total|rank_batches|shed_total)'; }

low() {
  echo "== grab-512, 16 users of 4,096 events, 1,000 candidates"
  serve low grab-512 || return 1
  load --seconds "$seconds" --warmup 1 --user-range 1-16 --candidates 1000 $(rates "$low_rates")
  counts
  stop
}
resident() {
  echo "== grab-dlrm, $users users of 7,000 events, all on the card, 2,048 candidates"
  serve dlrm grab-dlrm -p cache_bytes=60000000000 || return 1
  load --seconds "$seconds" --warmup 1 --user-range "1-$users" --candidates 2048 $(rates "$resident_rates")
  counts
  stop
}
# A user is 55 pages of 1.3 MB; the card has room for 40 users, of whom 30 stay.
rates_of_hits() {
  echo "== grab-dlrm, room for 40 users on the card: the others' K/V are made again for every request"
  serve dlrm grab-dlrm -p cache_bytes=60000000000 -p device_cache_bytes=2900000000 || return 1
  # Every user once: from here on all tokens are in host memory.
  load --user-range "1-$users" --candidates 2048 --seconds 0.3 --warmup 0 --rate 10 > /dev/null
  for pair in $hit_rates; do
    echo "-- ${pair%%:*} of the requests go to users whose K/V are there"
    load --seconds "$seconds" --warmup 1 --user-range "1-$users" --resident-users 30 --hit-rate "${pair%%:*}" --candidates 2048 \
      $(rates "$(echo "${pair#*:}" | tr , ' ')")
    counts
  done
  stop
}

command -v nvidia-smi > /dev/null && nvidia-smi --query-gpu=name,driver_version,clocks.sm --format=csv,noheader
for what in "${@:-low resident rates}"; do
  for one in $what; do
    case $one in
      low) store low 16 4096 && model grab-512 && low ;;
      resident) store dlrm "$users" 7000 && model grab-dlrm && resident ;;
      rates) store dlrm "$users" 7000 && model grab-dlrm && rates_of_hits ;;
      *) echo "$one: not one of low, resident, rates" >&2; exit 2 ;;
    esac
  done
done
say done
