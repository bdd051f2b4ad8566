"""Prints what the server answers."""

import sys

import requests

response = requests.request(
    "@METHOD@",
    "@URL@",
    headers={
        "Authorization": "Bearer @KEY@",
        "Content-Type": "@TYPE@",
    },
    data="@BODY@",
)

if not response.ok:
    sys.exit(response.text)
print(response.text)
