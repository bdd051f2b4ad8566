"""Prints what the model sees in a picture, as JSON."""

import base64
import json
import sys
from pathlib import Path

import requests

URL = "@URL@"
KEY = "@KEY@"
ROUTINES = json.loads("@ROUTINES@")

picture = Path(sys.argv[1]).read_bytes()
body = {"image_type": "base64", "data": base64.b64encode(picture).decode(), "routines": ROUTINES}
response = requests.post(URL, json=body, headers={"Authorization": f"Bearer {KEY}"})

if response.status_code != 200:
    sys.exit(response.text)
print(response.text)
