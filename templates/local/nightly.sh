#!/bin/sh
# Predicts one day, yesterday or the one that is named, and then verifies it: nightly.sh [2026-11-22]
set -eu

DAY=${1:-$(date -u -d yesterday +%F)}
. "${HEADRACE_ENV:-/etc/headrace.env}"

exec 9> "${HEADRACE_LOCK:-/run/headrace/lock}"
if ! flock -n 9; then
    echo "headrace: an earlier run of nightly.sh has not ended" >&2
    exit 75
fi

/opt/headrace/bin/headrace --model="$MODEL" --input="$INPUT" --output="$OUTPUT"
exec /opt/headrace/bin/headrace verify --output="$OUTPUT"
