#!/bin/sh
# Prints what the model sees in a picture, as JSON.
set -eu

url='@URL@'
key='@KEY@'
routines='@ROUTINES@'

data=$(base64 < "$1")
answer=$(
    printf '{"image_type": "base64", "data": "%s", "routines": %s}' "$data" "$routines" | tr -d '\n' |
    curl --silent --show-error --url "$url" --write-out '%{http_code}' \
         --header "Authorization: Bearer $key" --header 'Content-Type: application/json' --data-binary @-
)
body=${answer%???}
status=${answer#"$body"}

if [ "$status" != 200 ]; then
    printf '%s\n' "$body" >&2
    exit 1
fi
printf '%s\n' "$body"
