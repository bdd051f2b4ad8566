// Prints what the model sees in a picture, as JSON.
import { readFile } from "node:fs/promises";
import axios from "axios";

const url = "@URL@";
const key = "@KEY@";
const routines = JSON.parse('@ROUTINES@');

const picture = await readFile(process.argv[2]);
const { status, data } = await axios.post(
  url,
  { image_type: "base64", data: picture.toString("base64"), routines },
  { headers: { Authorization: `Bearer ${key}` }, validateStatus: null },
);
const answer = JSON.stringify(data);

if (status === 200) {
  console.log(answer);
} else {
  console.error(answer);
  process.exitCode = 1;
}
