#!/bin/sh
# Reports by mail, by a webhook, or both, that a unit has failed for good: failed.sh UNIT
set -u
. "${HEADRACE_ALERTS:-/etc/headrace-alerts.env}"

UNIT=$1
TEXT="$UNIT failed on $(uname -n). Its log: journalctl -u $UNIT"
status=0
if [ -n "${MAIL_TO:-}" ]; then
    { echo "$TEXT"; echo; journalctl -u "$UNIT" -n 40 --no-pager; } | mail -s "$UNIT failed" "$MAIL_TO" || status=1
fi
if [ -n "${WEBHOOK:-}" ]; then
    # The address may be a secret: not as an argument, which every user of the machine can see.
    printf 'url = "%s"\n' "$WEBHOOK" |
        curl -fsS --retry 3 -H 'Content-Type: application/json' --data "{\"text\": \"$TEXT\"}" -K - || status=1
fi
exit $status
