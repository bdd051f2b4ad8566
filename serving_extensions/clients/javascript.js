// Prints what the model sees in a picture, as JSON.
import { readFile } from "node:fs/promises";

const url = "@URL@";
const key = "@KEY@";
const routines = JSON.parse('@ROUTINES@');

const picture = await readFile(process.argv[2]);
const response = await fetch(url, {
  method: "POST",
  headers: { Authorization: `Bearer ${key}`, "Content-Type": "application/json" },
  body: JSON.stringify({ image_type: "base64", data: picture.toString("base64"), routines }),
});
const answer = await response.text();

if (response.status === 200) {
  console.log(answer);
} else {
  console.error(answer);
  process.exitCode = 1;
}
