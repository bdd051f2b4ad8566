// Prints what the model sees in a picture, as JSON.
import { readFile } from "node:fs/promises";

const url = "@URL@";
const key = "@KEY@";
const routines: unknown = JSON.parse('@ROUTINES@');

const picture = await readFile(process.argv[2] ?? "picture.jpg");
const response = await fetch(url, {
  method: "POST",
  headers: { Authorization: `Bearer ${key}`, "Content-Type": "application/json" },
  body: JSON.stringify({ image_type: "base64", data: picture.toString("base64"), routines }),
});
const answer = await response.text();

if (response.ok) {
  console.log(answer);
} else {
  console.error(answer);
  process.exitCode = 1;
}
